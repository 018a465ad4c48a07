/* The CUDA backend as one table of functions: libsluice_cuda.so, opened at run time.
 *
 * kernels/cuda/load.h opens the object; krn_cuda_api_get hands out the table. Compute capability
 * 9.0 only (wgmma). Every operation takes one plain params struct and a stream, launches and
 * returns: it allocates nothing, waits for nothing and may be captured in a graph. Pointers are
 * device memory unless said otherwise; shapes stand behind them. The memory and stream functions
 * are for start-up and hand-over only. Return: 0, or a krn_cuda_code with a text in last_error()
 * (per thread). NaN and infinity are reported as on the CPU, by a 1 in *fault (device memory, the
 * caller clears it; NULL: not wanted). Sums: canonical order cuda-sm90-v1, docs/CUDA-ORDER.md.
 * Params and formats: kernels/cuda/params.h. */
#ifndef KERNELS_CUDA_SLUICE_CUDA_H
#define KERNELS_CUDA_SLUICE_CUDA_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/cuda/params.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KRN_CUDA_API_VERSION 5u
#define KRN_CUDA_NUMERICS_ID "cuda-sm90-v1"
#define KRN_CUDA_SYMBOL      "krn_cuda_api_get"

typedef void *krn_cuda_stream; /* a cudaStream_t; NULL: the default stream */

typedef void *krn_cuda_graph; /* a cudaGraphExec_t */

typedef void *krn_cuda_event; /* a cudaEvent_t */

typedef enum krn_cuda_code {
    KRN_CUDA_OK = 0,
    KRN_CUDA_INVALID = 1,     /* a parameter is out of range; nothing was launched */
    KRN_CUDA_UNSUPPORTED = 2, /* no device, wrong compute capability, driver too old */
    KRN_CUDA_DEVICE = 3,      /* the CUDA runtime reported an error */
    KRN_CUDA_NO_MEMORY = 4,
} krn_cuda_code;

typedef struct krn_cuda_device {
    int32_t multiprocessors;
    int32_t driver_version, runtime_version; /* 13000 = 13.0 */
    uint64_t memory_bytes, l2_bytes;
    char name[64];
} krn_cuda_device;

typedef struct krn_cuda_api {
    uint32_t version, bytes; /* KRN_CUDA_API_VERSION, sizeof(krn_cuda_api) */
    const char *numerics_id;
    const char *(*last_error)(void);

    /* Start-up. device_open checks the device and makes it this thread's. */
    int (*device_open)(int32_t device, krn_cuda_device *out_device);
    int (*memory_create)(uint64_t bytes, void **out_memory);
    void (*memory_destroy)(void *memory);
    int (*host_create)(uint64_t bytes, void **out_memory); /* pinned */
    void (*host_destroy)(void *memory);
    int (*stream_create)(krn_cuda_stream *out_stream);
    void (*stream_destroy)(krn_cuda_stream stream);
    int (*stream_wait)(krn_cuda_stream stream); /* waits, as event_wait does and no other call */
    int (*event_create)(krn_cuda_event *out_event);
    void (*event_destroy)(krn_cuda_event event);
    int (*event_record)(krn_cuda_event event, krn_cuda_stream stream);
    int (*event_done)(krn_cuda_event event, int32_t *out_done); /* what came before the record */
    int (*event_wait)(krn_cuda_event event);
    int (*copy)(void *to, const void *from, uint64_t bytes, krn_cuda_stream stream);
    int (*fill)(void *to, int value, uint64_t bytes, krn_cuda_stream stream);
    /* `count` pieces of `bytes`, strides apart. */
    int (*copy_pieces)(void *to, uint64_t to_stride, const void *from, uint64_t from_stride,
                       uint64_t bytes, uint64_t count, krn_cuda_stream stream);
    int (*clear_pieces)(void *to, uint64_t stride, uint64_t bytes, uint64_t count,
                        krn_cuda_stream stream);

    /* Weights, on the host: bytes of the tiled form and the packing. codes [n][k] row-major,
     * scales [ceil(n/128)][k/128]; out (host memory) is written for rows at .. of a stack of
     * stack_n rows (at and stack_n: multiples of 64). */
    uint64_t (*weights_bytes)(uint32_t n, uint32_t k);
    void (*weights_pack)(const uint8_t *codes, const float *scales, uint32_t n, uint32_t k,
                         uint32_t at, uint32_t stack_n, uint8_t *out);
    uint32_t (*segments)(uint32_t n, uint32_t k);
    /* bf16: element (i, j) is weights[i * n_stride + j * k_stride]. */
    uint64_t (*weights_bytes_bf16)(uint32_t n, uint32_t k);
    void (*weights_pack_bf16)(const uint16_t *weights, size_t n_stride, size_t k_stride, uint32_t n,
                              uint32_t k, uint8_t *out);
    uint32_t (*segments_bf16)(uint32_t n, uint32_t k);

    /* What is put on the stream between begin and end is recorded, not run; then run as one. The
     * same thread throughout. */
    int (*graph_begin)(krn_cuda_stream stream);
    int (*graph_end)(krn_cuda_stream stream, krn_cuda_graph *out_graph);
    int (*graph_run)(krn_cuda_graph graph, krn_cuda_stream stream);
    void (*graph_destroy)(krn_cuda_graph graph);

    int (*gather)(const krn_cuda_gather_params *params, krn_cuda_stream stream);
    int (*move)(const krn_cuda_move_params *params, krn_cuda_stream stream);
    int (*arg_max)(const krn_cuda_arg_max_params *params, krn_cuda_stream stream);
    int (*draw)(const krn_cuda_draw_params *params, krn_cuda_stream stream);
    int (*norm)(const krn_cuda_norm_params *params, krn_cuda_stream stream);
    int (*silu)(const krn_cuda_silu_params *params, krn_cuda_stream stream);
    int (*quant)(const krn_cuda_quant_params *params, krn_cuda_stream stream);
    int (*rope_queries)(const krn_cuda_rope_params *params, krn_cuda_stream stream);
    int (*latent_put)(const krn_cuda_latent_params *params, krn_cuda_stream stream);
    int (*index_put)(const krn_cuda_index_put_params *params, krn_cuda_stream stream);
    int (*index_query)(const krn_cuda_index_query_params *params, krn_cuda_stream stream);
    int (*sums)(const krn_cuda_sum_params *params, krn_cuda_stream stream);
    int (*route)(const krn_cuda_route_params *params, krn_cuda_stream stream);
    int (*route_group)(const krn_cuda_group_params *params, krn_cuda_stream stream);
    int (*combine)(const krn_cuda_combine_params *params, krn_cuda_stream stream);
    int (*topk)(const krn_cuda_topk_params *params, krn_cuda_stream stream);
    int (*linear_fp8)(const krn_cuda_linear_params *params, krn_cuda_stream stream);
    int (*linear_bf16)(const krn_cuda_linear_bf16_params *params, krn_cuda_stream stream);
    int (*scores)(const krn_cuda_scores_params *params, krn_cuda_stream stream);
    uint64_t (*attend_workspace_bytes)(uint32_t rows, uint32_t heads, uint32_t list_stride);
    int (*attend)(const krn_cuda_attend_params *params, krn_cuda_stream stream);
} krn_cuda_api;

/* NULL: this object has another version. */
const krn_cuda_api *krn_cuda_api_get(uint32_t version);
typedef const krn_cuda_api *(*krn_cuda_api_get_fn)(uint32_t version);

#ifdef __cplusplus
}
#endif
#endif
