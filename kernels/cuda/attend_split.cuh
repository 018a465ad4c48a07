/* Sparse attention for few rows, in three kernels: scores over parts of the list, the softmax of
 * each head, values by slices of the value dimensions. Private to kernels/cuda.
 *
 * Scores do not depend on each other, nor do heads or value dimensions, so that each kernel has as
 * many CTAs as the chip has multiprocessors, whatever the number of rows, and nothing is added in
 * another order than by attend.cu: the bits are its. What goes between the kernels (1.5 MB a row of
 * 128 heads) stays in the L2. */
#ifndef KERNELS_CUDA_ATTEND_SPLIT_CUH
#define KERNELS_CUDA_ATTEND_SPLIT_CUH

#include "kernels/cuda/attend.cuh"

#define BLOCKS_MAX (SPLIT_LIST_MAX / BLOCK)

/* The heads of a row are `sets` of 64, those missing counted; set = row * sets + head / 64. */
struct split_work {
    krn_cuda_attend_params p;
    float *scores;   /* [set][64 heads][SPLIT_LIST_MAX] */
    uint8_t *p_bf16; /* [set][BLOCKS_MAX] of 64 heads x 64 entries, swizzled as an operand */
    float *alphas;   /* [set][BLOCKS_MAX][64]: what o is multiplied with at a block */
    float *inverses; /* [set][64]: 1 / l */
    uint32_t sets;
};

#define SPLIT_SET_BYTES \
    (HEADS_A_CTA * SPLIT_LIST_MAX * 4 + BLOCKS_MAX * (CHUNK + HEADS_A_CTA * 4) + HEADS_A_CTA * 4)

/* Both: 0 or a krn_cuda_code. */
KRN_CUDA_LOCAL int krn_cuda_split_scores(const split_work *work, cudaStream_t stream);
KRN_CUDA_LOCAL int krn_cuda_split_values(const split_work *work, cudaStream_t stream);

/* List entry i of a row, which may not be there: what is behind the end is not asked for. */
static __device__ __forceinline__ uint32_t entry_early(const krn_cuda_attend_params &p,
                                                       uint32_t row, uint32_t i)
{
    return i < p.list_stride ? __ldg(p.lists + (size_t)row * p.list_stride + i) : 0;
}
/* Offset of the cache row of list entry i, which was asked for early: loads that depend on each
 * other are the time of a small batch. */
static __device__ __forceinline__ uint64_t entry_offset(const krn_cuda_attend_params &p,
                                                        uint32_t row, uint32_t i, uint32_t count,
                                                        uint32_t early)
{
    if (i >= count)
        early = entry_early(p, row, count - 1);
    return (uint64_t)(slot_row(p.cache, p.rows_at[row].sequence, early) - p.cache.base);
}

#endif
