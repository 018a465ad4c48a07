/* bf16 and e4m3 numbers: exact conversions, one value at a time.
 *
 * bf16 is the upper half of an f32. e4m3 is FP8 E4M3FN: largest 448, no infinity, NaN is 0x7F and
 * 0xFF, smallest subnormal 2^-9. Rounding is to nearest, ties to even. Thread: any. */
#ifndef KERNELS_NUMBERS_H
#define KERNELS_NUMBERS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

static inline uint32_t krn_f32_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline float krn_bits_f32(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline float krn_bf16_to_f32(uint16_t value)
{
    return krn_bits_f32((uint32_t)value << 16);
}
/* Overflow rounds to infinity; a NaN stays a (quiet) NaN. */
static inline uint16_t krn_f32_to_bf16(float value)
{
    uint32_t bits = krn_f32_bits(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u)
        return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}
static inline float krn_round_bf16(float value)
{
    return krn_bf16_to_f32(krn_f32_to_bf16(value));
}
static inline float krn_e4m3_to_f32(uint8_t code)
{
    uint32_t sign = (uint32_t)(code & 0x80u) << 24;
    if ((code & 0x7Fu) == 0x7Fu)
        return krn_bits_f32(sign | 0x7FC00000u);
    uint32_t size = code & 0x7Fu;
    /* Subnormals are counted in steps of 2^-9: as f32 they would be subnormal too, and slow. */
    uint32_t bits = size < 8 ? krn_f32_bits((float)size * 0x1p-9f) : (size << 20) + (120u << 23);
    return krn_bits_f32(sign | bits);
}
/* Saturates at +-448 (infinity too); a NaN becomes 0x7F. */
static inline uint8_t krn_f32_to_e4m3(float value)
{
    uint32_t bits = krn_f32_bits(value);
    uint8_t sign = (uint8_t)((bits >> 24) & 0x80u);
    uint32_t size = bits & 0x7FFFFFFFu;
    if (size > 0x7F800000u)
        return 0x7Fu;
    if (size >= 0x43E00000u) /* 448 */
        return (uint8_t)(sign | 0x7Eu);
    if (size < 0x3C800000u) { /* below 2^-6: steps of 2^-9; adding 2^14 rounds to them */
        float rounded = krn_bits_f32(size) + 0x1p14f;
        return (uint8_t)(sign | (krn_f32_bits(rounded) - 0x46800000u));
    }
    size += 0x7FFFFu + ((size >> 20) & 1u);
    uint32_t code = (size >> 20) - (120u << 3);
    return (uint8_t)(sign | (code > 0x7Eu ? 0x7Eu : code));
}

#ifdef __cplusplus
}
#endif
#endif
