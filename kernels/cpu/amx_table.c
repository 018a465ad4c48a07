/* The bf16 numbers of the e4m3 codes, as bytes for a lookup. */
#include "kernels/cpu/amx_convert.h"

#if defined(__x86_64__)

/* Codes 8..126: exponent and mantissa move up, the bias changes from 7 to 127. */
#define NORMAL(code)      (((code) << 4) + ((127 - 7) << 7))
#define LOW(code)         (NORMAL(code) & 0xFF)
#define HIGH(code)        (NORMAL(code) >> 8)
#define FOUR(byte, code)  byte(code), byte(code + 1), byte(code + 2), byte(code + 3)
#define EIGHT(byte, code) FOUR(byte, code), FOUR(byte, code + 4)
#define THIRTY(byte, code) \
    EIGHT(byte, code), EIGHT(byte, code + 8), EIGHT(byte, code + 16), EIGHT(byte, code + 24)
#define UP_TO_126(byte)                                                                   \
    EIGHT(byte, 8), EIGHT(byte, 16), EIGHT(byte, 24), THIRTY(byte, 32), THIRTY(byte, 64), \
        EIGHT(byte, 96), EIGHT(byte, 104), EIGHT(byte, 112), FOUR(byte, 120), byte(124),  \
        byte(125), byte(126)

/* Before them 0 to 7 times 2^-9, after them NaN. */
const krn_e4m3_table krn_e4m3_bf16 = {
    .low = {0x00, 0x00, 0x80, 0xC0, 0x00, 0x20, 0x40, 0x60, UP_TO_126(LOW), 0xC0},
    .high = {0x00, 0x3B, 0x3B, 0x3B, 0x3C, 0x3C, 0x3C, 0x3C, UP_TO_126(HIGH), 0x7F},
};

#endif
