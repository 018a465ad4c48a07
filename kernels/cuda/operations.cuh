/* The operations behind the table of sluice_cuda.h, for api.cu. Private to kernels/cuda. */
#ifndef KERNELS_CUDA_OPERATIONS_CUH
#define KERNELS_CUDA_OPERATIONS_CUH

#include "kernels/cuda/device.cuh"

KRN_CUDA_LOCAL int krn_cuda_norm(const krn_cuda_norm_params *p, krn_cuda_stream stream);
KRN_CUDA_LOCAL int krn_cuda_silu(const krn_cuda_silu_params *p, krn_cuda_stream stream);
KRN_CUDA_LOCAL int krn_cuda_quant(const krn_cuda_quant_params *p, krn_cuda_stream stream);
KRN_CUDA_LOCAL int krn_cuda_rope_queries(const krn_cuda_rope_params *p, krn_cuda_stream stream);
KRN_CUDA_LOCAL int krn_cuda_latent_put(const krn_cuda_latent_params *p, krn_cuda_stream stream);
KRN_CUDA_LOCAL int krn_cuda_index_put(const krn_cuda_index_put_params *p, krn_cuda_stream stream);
KRN_CUDA_LOCAL int krn_cuda_index_query(const krn_cuda_index_query_params *p,
                                        krn_cuda_stream stream);
KRN_CUDA_LOCAL int krn_cuda_sums(const krn_cuda_sum_params *p, krn_cuda_stream stream);
KRN_CUDA_LOCAL int krn_cuda_route(const krn_cuda_route_params *p, krn_cuda_stream stream);
KRN_CUDA_LOCAL int krn_cuda_route_group(const krn_cuda_group_params *p, krn_cuda_stream stream);
KRN_CUDA_LOCAL int krn_cuda_combine(const krn_cuda_combine_params *p, krn_cuda_stream stream);
KRN_CUDA_LOCAL int krn_cuda_topk(const krn_cuda_topk_params *p, krn_cuda_stream stream);
KRN_CUDA_LOCAL int krn_cuda_linear_fp8(const krn_cuda_linear_params *p, krn_cuda_stream stream);
KRN_CUDA_LOCAL int krn_cuda_linear_bf16(const krn_cuda_linear_bf16_params *p,
                                        krn_cuda_stream stream);
KRN_CUDA_LOCAL int krn_cuda_gather(const krn_cuda_gather_params *p, krn_cuda_stream stream);
KRN_CUDA_LOCAL int krn_cuda_move(const krn_cuda_move_params *p, krn_cuda_stream stream);
KRN_CUDA_LOCAL int krn_cuda_arg_max(const krn_cuda_arg_max_params *p, krn_cuda_stream stream);
KRN_CUDA_LOCAL int krn_cuda_draw(const krn_cuda_draw_params *p, krn_cuda_stream stream);
KRN_CUDA_LOCAL int krn_cuda_scores(const krn_cuda_scores_params *p, krn_cuda_stream stream);
KRN_CUDA_LOCAL int krn_cuda_attend(const krn_cuda_attend_params *p, krn_cuda_stream stream);
KRN_CUDA_LOCAL uint64_t krn_cuda_attend_workspace_bytes(uint32_t rows, uint32_t heads,
                                                        uint32_t list_stride);
KRN_CUDA_LOCAL uint32_t krn_cuda_segments(uint32_t n, uint32_t k);
KRN_CUDA_LOCAL uint64_t krn_cuda_weights_bytes(uint32_t n, uint32_t k);
KRN_CUDA_LOCAL void krn_cuda_weights_pack(const uint8_t *codes, const float *scales, uint32_t n,
                                          uint32_t k, uint32_t at, uint32_t stack_n, uint8_t *out);
KRN_CUDA_LOCAL uint32_t krn_cuda_segments_bf16(uint32_t n, uint32_t k);
KRN_CUDA_LOCAL uint64_t krn_cuda_weights_bytes_bf16(uint32_t n, uint32_t k);
KRN_CUDA_LOCAL void krn_cuda_weights_pack_bf16(const uint16_t *weights, size_t n_stride,
                                               size_t k_stride, uint32_t n, uint32_t k,
                                               uint8_t *out);

#endif
