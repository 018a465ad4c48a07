/* Random numbers. Owns nothing (the kernel owns the entropy); pure otherwise; any thread. */
#include "base/rng.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "base/assert.h"

void sl_random_bytes(void *out_bytes, size_t size)
{
    uint8_t *at = out_bytes;
    while (size > 0) {
        size_t want = size < 256 ? size : 256; /* never cut short by a signal up to 256 */
        ssize_t got = getrandom(at, want, 0);
        if (got < 0 && errno == EINTR)
            continue;
        sl_assert(got > 0);
        at += got;
        size -= (size_t)got;
    }
}

uint64_t sl_random_u64(void)
{
    uint64_t value;
    sl_random_bytes(&value, sizeof(value));
    return value;
}

static uint64_t rotl64(uint64_t x, int bits)
{
    return (x << bits) | (x >> (64 - bits));
}

static void sip_rounds(uint64_t v[4], int rounds)
{
    for (int i = 0; i < rounds; i++) {
        v[0] += v[1];
        v[1] = rotl64(v[1], 13) ^ v[0];
        v[0] = rotl64(v[0], 32);
        v[2] += v[3];
        v[3] = rotl64(v[3], 16) ^ v[2];
        v[0] += v[3];
        v[3] = rotl64(v[3], 21) ^ v[0];
        v[2] += v[1];
        v[1] = rotl64(v[1], 17) ^ v[2];
        v[2] = rotl64(v[2], 32);
    }
}

uint64_t sl_siphash(const uint64_t key[2], const void *data, size_t size)
{
    const uint8_t *at = data;
    uint64_t v[4] = {key[0] ^ 0x736f6d6570736575ull, key[1] ^ 0x646f72616e646f6dull,
                     key[0] ^ 0x6c7967656e657261ull, key[1] ^ 0x7465646279746573ull};
    uint64_t last = (uint64_t)(size & 0xff) << 56;
    for (; size >= 8; size -= 8, at += 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        v[3] ^= word;
        sip_rounds(v, 2);
        v[0] ^= word;
    }
    for (size_t i = 0; i < size; i++)
        last |= (uint64_t)at[i] << (8 * i);
    v[3] ^= last;
    sip_rounds(v, 2);
    v[0] ^= last;
    v[2] ^= 0xff;
    sip_rounds(v, 4);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

void sl_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out_words[4])
{
    uint32_t x[4] = {counter[0], counter[1], counter[2], counter[3]};
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)x[0] * 0xD2511F53u;
        uint64_t b = (uint64_t)x[2] * 0xCD9E8D57u;
        x[0] = (uint32_t)(b >> 32) ^ x[1] ^ k0;
        x[1] = (uint32_t)b;
        x[2] = (uint32_t)(a >> 32) ^ x[3] ^ k1;
        x[3] = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    memcpy(out_words, x, sizeof(x));
}

double sl_keyed_uniform(uint64_t seed, uint64_t position, uint32_t stream)
{
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32), stream, 0};
    uint32_t x[4];
    sl_philox4x32(counter, key, x);
    uint64_t bits = (((uint64_t)x[0] << 21) ^ (x[1] >> 11)) & ((1ull << 53) - 1);
    return (double)bits * 0x1p-53;
}
