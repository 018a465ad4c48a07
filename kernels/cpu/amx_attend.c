/* Sparse attention with tiles, in the order of cpu-amx-v1. Any thread. */
#if defined(__x86_64__)

#include "kernels/cpu/amx.h"
#include "kernels/cpu/variant.h"

void krn_amx_attend(const krn_attend_args *args, uint32_t row, uint32_t head, uint32_t head_count,
                    void *scratch)
{
    krn_variant_avx512.attend(args, row, head, head_count, scratch);
}

#endif
