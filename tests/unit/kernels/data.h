/* Random and extreme test data from a small generator; the seed is
 * fixed by the caller, so a failure repeats. */
#ifndef TESTS_UNIT_KERNELS_DATA_H
#define TESTS_UNIT_KERNELS_DATA_H

#include "kernels/kernels.h"
#include "tests/unit/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct dice {
    uint64_t state;
} dice;

static inline uint32_t roll(dice *d)
{
    d->state = d->state * 6364136223846793005ull + 1442695040888963407ull;
    uint64_t x = d->state ^ (d->state >> 29);
    return (uint32_t)(x >> 24);
}
static inline uint32_t roll_below(dice *d, uint32_t limit)
{
    return (uint32_t)((uint64_t)roll(d) * limit >> 32);
}
/* About normal, sum of uniforms. */
static inline float roll_float(dice *d, float size)
{
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (float)roll_below(d, 1 << 20) / (1 << 20) - 0.5f;
    return sum * size;
}
static inline void fill_bf16(dice *d, uint16_t *out, size_t count, float size)
{
    for (size_t i = 0; i < count; i++)
        out[i] = krn_f32_to_bf16(roll_float(d, size));
}
static inline void fill_f32(dice *d, float *out, size_t count, float size)
{
    for (size_t i = 0; i < count; i++)
        out[i] = roll_float(d, size);
}
/* Any codes but NaN; every other stretch without zeros and subnormals, which kernels may treat
 * apart. */
static inline void fill_codes(dice *d, uint8_t *out, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint8_t code = (uint8_t)roll(d);
        if (i / 512 % 2 == 1 && (code & 0x78) == 0)
            code |= 0x08;
        out[i] = (code & 0x7F) == 0x7F ? (uint8_t)(code ^ 1) : code;
    }
}
/* Powers of two around 1, or any numbers. */
static inline void fill_scales(dice *d, float *out, size_t count, bool pow2)
{
    for (size_t i = 0; i < count; i++)
        out[i] = pow2 ? krn_bits_f32((120 + roll_below(d, 10)) << 23)
                      : 0.01f + (float)roll_below(d, 1000) / 512.0f;
}

/* 64-aligned memory, freed by free(). */
static inline void *aligned(size_t bytes)
{
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes ? (bytes + 63) & ~(size_t)63 : 64) != 0)
        abort();
    memset(memory, 0, bytes);
    return memory;
}

static inline void assert_same_bytes(const void *a, const void *b, size_t bytes, const char *what)
{
    const uint8_t *x = a, *y = b;
    for (size_t i = 0; i < bytes; i++)
        if (x[i] != y[i])
            fail_msg("%s: variant %s differs at byte %zu of %zu: %02x, expected %02x", what,
                     krn_cpu_variant(), i, bytes, x[i], y[i]);
}

#endif
