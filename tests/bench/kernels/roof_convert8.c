/* fp8 weights converted and multiplied with AVX2. */
#define FOUR_CODES four_e4m3
#define ROOF_NAME  roof_convert8

#include "tests/bench/kernels/roof_convert8.inc"
