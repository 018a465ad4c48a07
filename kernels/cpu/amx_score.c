/* Index scores with tiles, in the order of cpu-amx-v1. Any thread. */
#if defined(__x86_64__)

#include "kernels/cpu/amx.h"
#include "kernels/cpu/variant.h"

void krn_amx_score(const krn_score_tile *tile)
{
    krn_variant_avx512.score(tile);
}

#endif
