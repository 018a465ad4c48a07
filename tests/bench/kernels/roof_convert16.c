/* fp8 weights converted and multiplied with AVX-512. */
#define V(name)              v16_##name
#define LANES                16
#define FOUR_CODES           four_e4m3
#define STREAM_ROWS          8
#define STREAM_VECTORS(rows) ((rows) == 1 ? 8 : (rows) <= 4 ? 4 : 2)
#define STREAM_UNROLL        _Pragma("GCC unroll 1")
#define ROOF_NAME            roof_convert16

#include "kernels/cpu/vec16.h"

#include "tests/bench/kernels/roof_convert.inc"
