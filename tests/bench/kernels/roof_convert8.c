/* fp8 weights converted and multiplied with AVX2. */
#define V(name)     v8_##name
#define LANES       8
#define TILE_ROWS   6
#define STREAM_ROWS 2
#define ROOF_NAME   roof_convert8

#include "kernels/cpu/vec8.h"

#include "tests/bench/kernels/roof_convert.inc"
