/* Keyed 64-bit sum of cache pieces. Owns nothing, any thread.
 *
 * Definition (all arithmetic modulo 2^64, words little-endian; a GPU twin must follow it):
 *
 *   mix(x):  x ^= x >> 30; x *= 0xbf58476d1ce4e5b9; x ^= x >> 27; x *= 0x94d049bb133111eb;
 *            x ^= x >> 31                                     (the splitmix64 finaliser)
 *   G      = 0x9e3779b97f4a7c15
 *   s      = mix(key + G) ^ tweak;  s = mix(s + G)
 *   k[j]   = mix(s + (j + 1) * G)                             j = 0..7
 *   The data, zero-padded to a multiple of 32 bytes, is a row of blocks b = 0, 1, .. of four words
 *   w[0..3]. Lane i (0..3) starts as k[4 + i]; for each block
 *     x          = w[i] ^ (k[i] + b * STEP)                   STEP = 0xa0761d6478bd642f
 *     lane[i]   += low32(x) * high32(x)                       (32 x 32 -> 64 bits)
 *     lane[i^1] += w[i]
 *   result: h = size; for i = 0..3: h = mix((h ^ lane[i]) + G)
 *
 * Why it finds what goes wrong with pages. A changed word always changes lane[i^1] by the
 * difference, so a single bad word is found with certainty, and several bad words unless their
 * differences cancel in the plain sum and in the keyed product sum. Swapped or shifted pieces keep
 * the plain sum but meet other multiplier words (k[i] + b * STEP), so the product sum differs.
 * Zero runs are not silent: a zero word adds low32 * high32 of its own position's key. Truncation
 * and zero extension change `size`, which enters the fold. A page of another place, model or
 * numerics has another tweak or key, so every multiplier differs.
 *
 * All contributions to a lane commute: 16-byte unit u belongs to block u / 2, lanes 2 * (u % 2) and
 * 2 * (u % 2) + 1, and touches no other lane; any number of threads may sum parts and add. Against
 * an attacker it proves nothing. */
#include "base/sum.h"

#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define SUM_G    0x9e3779b97f4a7c15ull
#define SUM_STEP 0xa0761d6478bd642full

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are read as they lie");

/* Four lanes as one vector: gcc splits it to what the machine has. */
typedef uint64_t v4 __attribute__((vector_size(32)));

static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* The two kinds of contribution apart, so that the loop needs no shuffle: lane[i] is products[i] +
 * plain[i ^ 1]. */
typedef struct sum_state {
    v4 products, plain, keys;
} sum_state;

static void blocks_any(sum_state *state, const uint8_t *data, size_t blocks)
{
    const v4 step = {SUM_STEP, SUM_STEP, SUM_STEP, SUM_STEP};
    for (size_t b = 0; b < blocks; b++) {
        v4 words;
        memcpy(&words, data + 32 * b, 32);
        v4 mixed = words ^ state->keys;
        state->products += (mixed & 0xffffffffu) * (mixed >> 32);
        state->plain += words;
        state->keys += step;
    }
}

#if defined(__x86_64__)
/* Written out, because gcc makes three multiplications of the one of two halves. */
__attribute__((target("avx2"))) static void blocks_avx2(sum_state *state, const uint8_t *data,
                                                        size_t blocks)
{
    const __m256i step = _mm256_set1_epi64x((long long)SUM_STEP);
    __m256i products = (__m256i)state->products, plain = (__m256i)state->plain,
            keys = (__m256i)state->keys;
    for (size_t b = 0; b < blocks; b++) {
        __m256i words = _mm256_loadu_si256((const __m256i *)(data + 32 * b));
        __m256i mixed = _mm256_xor_si256(words, keys);
        products =
            _mm256_add_epi64(products, _mm256_mul_epu32(mixed, _mm256_srli_epi64(mixed, 32)));
        plain = _mm256_add_epi64(plain, words);
        keys = _mm256_add_epi64(keys, step);
    }
    state->products = (v4)products;
    state->plain = (v4)plain;
    state->keys = (v4)keys;
}

/* Two blocks at a time; `blocks` is even. */
__attribute__((target("avx512f"))) static void blocks_avx512(sum_state *state, const uint8_t *data,
                                                             size_t blocks)
{
    const __m512i step = _mm512_set1_epi64((long long)(2 * SUM_STEP));
    v4 second = state->keys + SUM_STEP;
    __m512i products = _mm512_setzero_si512(), plain = _mm512_setzero_si512();
    __m512i keys =
        _mm512_inserti64x4(_mm512_castsi256_si512((__m256i)state->keys), (__m256i)second, 1);
    for (size_t b = 0; b < blocks; b += 2) {
        __m512i words = _mm512_loadu_si512(data + 32 * b);
        __m512i mixed = _mm512_xor_si512(words, keys);
        products =
            _mm512_add_epi64(products, _mm512_mul_epu32(mixed, _mm512_srli_epi64(mixed, 32)));
        plain = _mm512_add_epi64(plain, words);
        keys = _mm512_add_epi64(keys, step);
    }
    state->products +=
        (v4)_mm512_castsi512_si256(products) + (v4)_mm512_extracti64x4_epi64(products, 1);
    state->plain += (v4)_mm512_castsi512_si256(plain) + (v4)_mm512_extracti64x4_epi64(plain, 1);
    state->keys = (v4)_mm512_castsi512_si256(keys);
}
#endif

static sl_sum_set best_set(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return SL_SUM_AVX512;
    if (__builtin_cpu_supports("avx2"))
        return SL_SUM_AVX2;
#endif
    return SL_SUM_PLAIN;
}

static void sum_blocks(sl_sum_set set, sum_state *state, const uint8_t *data, size_t blocks)
{
#if defined(__x86_64__)
    size_t pairs = blocks & ~(size_t)1;
    if (set == SL_SUM_AVX512) {
        blocks_avx512(state, data, pairs);
        data += 32 * pairs;
        blocks -= pairs;
    }
    if (set >= SL_SUM_AVX2) {
        blocks_avx2(state, data, blocks);
        return;
    }
#endif
    blocks_any(state, data, blocks);
}

static uint64_t sum_by(sl_sum_set set, uint64_t key, uint64_t tweak, const void *data, size_t size)
{
    const uint8_t *at = data;
    uint64_t s = mix((mix(key + SUM_G) ^ tweak) + SUM_G);
    sum_state state = {0};
    for (uint64_t i = 0; i < 4; i++) {
        state.keys[i] = mix(s + (i + 1) * SUM_G);
        state.products[i] = mix(s + (i + 5) * SUM_G);
    }
    sum_blocks(set, &state, at, size / 32);
    if (size % 32) {
        uint8_t last[32] = {0};
        memcpy(last, at + size / 32 * 32, size % 32);
        sum_blocks(set, &state, last, 1);
    }
    uint64_t h = size;
    for (int i = 0; i < 4; i++)
        h = mix((h ^ (state.products[i] + state.plain[i ^ 1])) + SUM_G);
    return h;
}

uint64_t sl_sum64(uint64_t key, uint64_t tweak, const void *data, size_t size)
{
    return sum_by(best_set(), key, tweak, data, size);
}

bool sl_sum64_by(sl_sum_set set, uint64_t key, uint64_t tweak, const void *data, size_t size,
                 uint64_t *out_sum)
{
    if (set > best_set())
        return false;
    *out_sum = sum_by(set, key, tweak, data, size);
    return true;
}
