/* Plain C: index scores and attention of cpu-amx-v1. */
#include "kernels/cpu/amx_order.h"
#include "kernels/cpu/variant.h"

void krn_amx_ref_score(const krn_score_tile *tile)
{
    krn_variant_ref.score(tile);
}

void krn_amx_ref_attend(const krn_attend_args *args, uint32_t row, uint32_t head,
                        uint32_t head_count, void *scratch)
{
    krn_variant_ref.attend(args, row, head, head_count, scratch);
}
