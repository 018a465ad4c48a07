/* Drawing's passes with 16 lanes. Any thread. */
#if defined(__x86_64__)

#define V(name)   v16_##name
#define D(name)   d8_##name
#define LANES     16
#define DRAW_NAME krn_draw_avx512

#include "kernels/cpu/draw.h"
#include "kernels/cpu/vec16.h"

#include "kernels/cpu/draw.inc"

#endif
