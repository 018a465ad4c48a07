/* What both schedules of the indexer logits share. Private to kernels/cuda. */
#ifndef KERNELS_CUDA_SCORES_CUH
#define KERNELS_CUDA_SCORES_CUH

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"

/* Many rows, most of them beside others of their sequence (scores_many.cu). next_n is 1. */
KRN_CUDA_LOCAL int krn_cuda_scores_many(const krn_cuda_scores_params *p, cudaStream_t stream);

#endif
