/* The same where subnormals cost nothing. */
#define FOUR_CODES four_bare
#define FOUR_ROWS  four_rows_bare
#define ROOF_NAME  roof_convert_zen

#include "kernels/cpu/vec8_bare.h"

#include "tests/bench/kernels/roof_convert8.inc"
