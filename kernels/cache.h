/* One layer of the paged cache, as the kernels see it.
 *
 * Slot s of a sequence lies in page blocks[s / 64] at row s % 64. Layer slice of a page, fp8 (spec
 * 4.7): 64 latent rows of 656 B (512 e4m3 codes, 4 f32 scales, 64 bf16 rope), then 64 x 128 e4m3
 * index codes, then 64 f32 index scales. Plain numerics: 64 rows of 576 f32 (latent, rope), then 64
 * rows of 128 f32 (index key). */
#ifndef KERNELS_CACHE_H
#define KERNELS_CACHE_H

#include "kernels/pool.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KRN_PAGE_TOKENS       64u
#define KRN_LATENT_DIM        512u
#define KRN_ROPE_DIM          64u
#define KRN_NOPE_DIM          128u
#define KRN_HEAD_DIM          192u /* nope, then rope */
#define KRN_VALUE_DIM         128u
#define KRN_INDEX_DIM         128u
#define KRN_LATENT_ROW_BYTES  656u
#define KRN_LATENT_SCALES_AT  512u
#define KRN_LATENT_ROPE_AT    528u
#define KRN_INDEX_CODES_AT    (KRN_PAGE_TOKENS * KRN_LATENT_ROW_BYTES)               /* 41,984 */
#define KRN_INDEX_SCALES_AT   (KRN_INDEX_CODES_AT + KRN_PAGE_TOKENS * KRN_INDEX_DIM) /* 50,176 */
#define KRN_LAYER_BYTES       (KRN_INDEX_SCALES_AT + KRN_PAGE_TOKENS * 4u)           /* 50,432 */
#define KRN_PLAIN_ROW_DIM     (KRN_LATENT_DIM + KRN_ROPE_DIM)                        /* 576 */
#define KRN_PLAIN_INDEX_AT    (KRN_PAGE_TOKENS * KRN_PLAIN_ROW_DIM * 4u)             /* 147,456 */
#define KRN_PLAIN_LAYER_BYTES (KRN_PLAIN_INDEX_AT + KRN_PAGE_TOKENS * KRN_INDEX_DIM * 4u)

typedef struct krn_cache {
    uint8_t *base;       /* this layer's slice of page 0, aligned to 64 */
    uint64_t page_bytes; /* from a page to the next */
} krn_cache;

/* Where a row of the step stands. It sees slots first..slot, its own included. */
typedef struct krn_row {
    const uint32_t *blocks; /* page of each block of 64 slots, borrowed */
    uint32_t slot;
    uint32_t first; /* 0; 1 in the MTP layer, whose slot 0 is void */
} krn_row;

#ifdef __cplusplus
}
#endif
#endif
