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

/* Inlined into each variant below, so that each is compiled for its own instruction set. */
static inline __attribute__((always_inline)) void blocks_body(sum_state *state, const uint8_t *data,
                                                              size_t blocks)
{
    const v4 step = {SUM_STEP, SUM_STEP, SUM_STEP, SUM_STEP};
    v4 products = state->products, plain = state->plain, keys = state->keys;
    for (size_t b = 0; b < blocks; b++) {
        v4 words;
        memcpy(&words, data + 32 * b, 32);
        v4 mixed = words ^ keys;
        products += (mixed & 0xffffffffu) * (mixed >> 32);
        plain += words;
        keys += step;
    }
    state->products = products;
    state->plain = plain;
    state->keys = keys;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void blocks_avx2(sum_state *state, const uint8_t *data,
                                                        size_t blocks)
{
    blocks_body(state, data, blocks);
}
#endif

static void sum_blocks(sum_state *state, const uint8_t *data, size_t blocks)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        blocks_avx2(state, data, blocks);
        return;
    }
#endif
    blocks_body(state, data, blocks);
}

uint64_t sl_sum64(uint64_t key, uint64_t tweak, const void *data, size_t size)
{
    const uint8_t *at = data;
    uint64_t s = mix((mix(key + SUM_G) ^ tweak) + SUM_G);
    sum_state state = {0};
    for (uint64_t i = 0; i < 4; i++) {
        state.keys[i] = mix(s + (i + 1) * SUM_G);
        state.products[i] = mix(s + (i + 5) * SUM_G);
    }
    sum_blocks(&state, at, size / 32);
    if (size % 32) {
        uint8_t last[32] = {0};
        memcpy(last, at + size / 32 * 32, size % 32);
        sum_blocks(&state, last, 1);
    }
    uint64_t h = size;
    for (int i = 0; i < 4; i++)
        h = mix((h ^ (state.products[i] + state.plain[i ^ 1])) + SUM_G);
    return h;
}
