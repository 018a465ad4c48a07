/* Does the product of bf16 pairs add up as KRN_NUMERICS_F32 does? What it rounds is its maker's
 * choice, so it is tried. */
#if defined(__x86_64__)

#include "kernels/cpu/variant.h"

#include "kernels/cpu/vec16_pairs.h"

#include <math.h>
#include <string.h>

/* Of 16 lanes. With one of these products added after the other or without its rounding, one lane
 * in twenty would differ. */
#define STEPS 256u

static uint32_t roll(uint64_t *dice)
{
    *dice = *dice * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*dice >> 32);
}

/* As codes give them, one in eight zero. */
static float operand(uint64_t *dice)
{
    uint32_t random = roll(dice), sign = random & 0x80000000u;
    if (random % 8 == 0)
        return krn_bits_f32(sign);
    return krn_bits_f32(sign | (120 + (random >> 8) % 16) << 23 | (random & 0x700000));
}

static float pair(float upper, float lower)
{
    return krn_bits_f32(krn_f32_bits(upper) | krn_f32_bits(lower) >> 16);
}

KRN_VEC_TARGET static bool step_in_order(uint64_t *dice)
{
    float a[16], w[16], acc[16], expected[16];
    for (uint32_t i = 0; i < 16; i++) {
        float a0 = operand(dice), a1 = operand(dice), w0 = operand(dice), w1 = operand(dice);
        uint32_t size = (112 + roll(dice) % 32) << 23;
        acc[i] = krn_bits_f32((roll(dice) & 0x807FFFFFu) | size);
        if (roll(dice) % 8 == 0)
            acc[i] = 0.0f;
        a[i] = pair(a0, a1);
        w[i] = pair(w0, w1);
        expected[i] = fmaf(a1, w1, fmaf(a0, w0, acc[i]));
    }
    v16_store(acc, v16_add_pairs(v16_load(acc), v16_load(a), v16_load(w)));
    return memcmp(acc, expected, sizeof acc) == 0;
}

bool krn_pairs_in_order(void)
{
    uint64_t dice = 1;
    for (uint32_t step = 0; step < STEPS; step++)
        if (!step_in_order(&dice))
            return false;
    return true;
}

#endif
