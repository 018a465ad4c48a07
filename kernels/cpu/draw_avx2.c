/* Drawing's passes with 8 lanes. Any thread. */
#if defined(__x86_64__)

#define V(name)   v8_##name
#define D(name)   d4_##name
#define LANES     8
#define DRAW_NAME krn_draw_avx2

#include "kernels/cpu/draw.h"
#include "kernels/cpu/vec8.h"

#include "kernels/cpu/draw.inc"

#endif
