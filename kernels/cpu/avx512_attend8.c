/* AVX-512 attention with 8 heads in the lanes of the score part (small models: 16 would idle). Any
 * thread. */
#if defined(__x86_64__)

#define V(name)     v16_##name
#define LANES       16
#define S(name)     v8_##name
#define SCORE_LANES 8
#define SCORE_TILE  16
#define VALUE_HEADS 8
#define ATTEND_NAME krn_avx512_attend8

#include "kernels/cpu/variant.h"
#include "kernels/cpu/vec16.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/attend.inc"

#endif
