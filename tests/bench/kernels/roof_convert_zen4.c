/* fp8 weights converted and multiplied as pairs (kernels/cpu/vec16_pairs.h). */
#include "kernels/cpu/variant.h"
#include "kernels/cpu/vec16_pairs.h"

#include "tests/bench/kernels/roof_paths.h"

#define PANELS   4
#define BLOCK    (KRN_BLOCK * KRN_PANEL_COLUMNS)
#define STEPS    (KRN_BLOCK / 2) /* of a block */
#define ROWS_MAX 16
#define HIDE(x)  __asm__ volatile("" : "+v"(x))

static _Alignas(64) uint8_t codes[(PANELS + 1) * BLOCK];
static _Alignas(64) float inputs[ROWS_MAX * STEPS];

/* R rows, P panels: two vectors of words at once, of two panels or of two steps. */
VEC_INLINE void stream(const int R, const int P, const float *a, const uint8_t *from)
{
    v16_f sum[8][8], w[4];
    v16_i before[4], now[2];
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) {
        before[p] = v16_no_codes();
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
            sum[r][2 * p] = sum[r][2 * p + 1] = v16_zero();
    }
    const int together = P == 1 ? 2 : 1;
    for (int j = 0; j < (int)STEPS; j += together) {
#pragma GCC unroll 2
        for (int i = 0; i < P * together; i += 2) {
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                const int p = (i + h) % P, step = j + (i + h) / P;
                v16_i x = v16_load_words(from + p * (int)BLOCK + step * 2 * (int)KRN_PANEL_COLUMNS);
                now[h] = v16_pairs_of(before[p], x);
                before[p] = x;
            }
            v16_four_pairs(R <= 2, now, w);
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                const int p = (i + h) % P, step = j + (i + h) / P;
#pragma GCC unroll 8
                for (int r = 0; r < R; r++)
                    v16_add_pairs_two(&sum[r][2 * p], a + r * (int)STEPS + step, w + 2 * h);
            }
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            HIDE(sum[r][2 * p]);
            HIDE(sum[r][2 * p + 1]);
        }
}

KRN_VEC_TARGET static void once(uint32_t rows)
{
    const uint8_t *end = codes + PANELS * BLOCK;
    if (rows == 1)
        stream(1, 4, inputs, codes);
    else if (rows == 2)
        for (const uint8_t *from = codes; from < end; from += 2 * BLOCK)
            stream(2, 2, inputs, from);
    else if (rows == 4)
        for (const uint8_t *from = codes; from < end; from += 2 * BLOCK)
            stream(4, 2, inputs, from);
    else
        for (const uint8_t *from = codes; from < end; from += BLOCK)
            for (uint32_t r = 0; r < rows; r += 8)
                stream(8, 1, inputs + r * STEPS, from);
}

double roof_convert_zen4(uint32_t rows)
{
    const uint32_t repeats = 200;
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++)
        inputs[i] = krn_bits_f32(0x78207830); /* two numbers */
    for (size_t i = 0; i < sizeof codes; i++)
        codes[i] = (uint8_t)(0x30 + i * 7 % 16);
    for (uint32_t i = 0; i < repeats; i++)
        once(rows);
    return (double)repeats * PANELS * BLOCK;
}
