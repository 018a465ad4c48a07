/* fp8 weights converted and multiplied with AVX-512. */
#define V(name)     v16_##name
#define LANES       16
#define TILE_ROWS   12
#define STREAM_ROWS 8
#define ROOF_NAME   roof_convert16

#include "kernels/cpu/vec16.h"

#include "tests/bench/kernels/roof_convert.inc"
