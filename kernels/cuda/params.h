/* Parameters of the CUDA operations and the formats they use. Plain structs; pointers are device
 * memory, shapes stand behind them.
 *
 * TILED CODES, input of every fp8 product. e4m3 codes [rows][k] lie as atoms of 8 rows x 128 k =
 * 1,024 B: atom (r / 8, k / 128) at ((k / 128) * (rows_tiled / 8) + r / 8) * 1024; inside it the 16
 * bytes c = k % 128 / 16 of row r % 8 lie at (r % 8) * 128 + (c ^ (r % 8)) * 16, which is how wgmma
 * wants them in shared memory, so that a tile arrives by one bulk copy. rows_tiled is a multiple of
 * 8. Their scales are f32 [k / 128][rows_tiled].
 * TILED WEIGHTS: codes [n][k] as tiles of 64 n x 128 k = 8 such atoms = 8,192 B, tile (n / 64, k /
 * 128) at ((n / 64) * (k / 128 count) + k / 128) * 8192, missing rows zero; then one f32 scale a
 * tile, [n / 64][k / 128]. Matrices over one input may be stacked to one (each padded to 64 n).
 * TILED BF16 WEIGHTS: [n][k] as tiles of 64 n x 64 k = 8 atoms of 8 rows x 128 B, tile (n / 64, k /
 * 64) at ((n / 64) * (k / 64 count) + k / 64) * 8192, what is missing zero. */
#ifndef KERNELS_CUDA_PARAMS_H
#define KERNELS_CUDA_PARAMS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The paged cache of one layer (kernels/cache.h). blocks: page of each block of 64 slots, one row
 * of block_stride entries a sequence; rows name their sequence. */
typedef struct krn_cuda_cache {
    uint8_t *base;       /* this layer's slice of page 0, aligned to 64 */
    uint64_t page_bytes; /* multiple of 64 */
    const uint32_t *blocks;
    uint32_t block_stride;
} krn_cuda_cache;

typedef struct krn_cuda_row { /* device memory, [rows] */
    uint32_t sequence;        /* row of `blocks` */
    uint32_t slot;
    uint32_t first; /* sees slots first..slot */
} krn_cuda_row;

typedef struct krn_cuda_norm_params { /* rmsnorm(x + res), optionally Q128 of the result */
    const uint16_t *x;                /* [rows][x_stride] bf16, n are read */
    const uint16_t *res;              /* [rows][n] bf16, or NULL */
    const uint16_t *weight;           /* [n] bf16 */
    uint16_t *out;                    /* [rows][n] bf16, or NULL */
    uint16_t *out_res;                /* [rows][n] bf16 (may be res), or NULL */
    uint8_t *out_codes;               /* tiled codes, or NULL */
    float *out_scales;                /* [n/128][rows_tiled] */
    uint32_t *fault;
    uint32_t rows, n, x_stride; /* n: multiple of 128, <= 8192 */
    uint32_t rows_tiled;
    float epsilon;
    uint32_t pow2; /* scales are powers of two */
} krn_cuda_norm_params;

typedef struct krn_cuda_silu_params { /* a = bf(silu(g) * u), optionally Q128 */
    const uint16_t *g, *u;            /* [rows][stride] bf16 */
    const uint32_t *row_index;        /* [rows]: a row whose entry is UINT32_MAX is left out; or
                                         NULL */
    uint16_t *out;                    /* [rows][n] bf16, or NULL */
    uint8_t *out_codes;               /* tiled codes, or NULL */
    float *out_scales;
    uint32_t *fault;
    uint32_t rows, n, stride; /* n: multiple of 128; stride: multiple of 8 */
    uint32_t rows_tiled;
    uint32_t pow2;
} krn_cuda_silu_params;

typedef struct krn_cuda_quant_params { /* Q128 of rows chosen by an index: the experts' inputs */
    const uint16_t *x;                 /* [..][stride] bf16 */
    const uint32_t *row_index;         /* [rows]: input row, UINT32_MAX = none; NULL = same */
    uint8_t *out_codes;                /* tiled codes */
    float *out_scales;
    uint32_t *fault;
    uint32_t rows, n, stride, rows_tiled;
    uint32_t pow2;
} krn_cuda_quant_params;

typedef struct krn_cuda_rope_params { /* rope of the queries, interleaved, in place */
    uint16_t *q;                      /* [rows][heads][192] bf16: 128..191 */
    const float *table;               /* [rows][64], krn_rope_table */
    uint32_t rows, heads;
} krn_cuda_rope_params;

typedef struct krn_cuda_latent_params { /* kv_a output -> cache row */
    krn_cuda_cache cache;
    const krn_cuda_row *rows_at; /* [rows] */
    const uint16_t *kv;          /* [rows][stride] bf16: 576 are read */
    const uint16_t *weight;      /* [512] bf16 */
    const float *table;          /* [rows][64] */
    uint32_t *fault;
    uint32_t rows, stride;
    float epsilon;
    uint32_t pow2;
} krn_cuda_latent_params;

typedef struct krn_cuda_index_put_params { /* wk output -> index key */
    krn_cuda_cache cache;
    const krn_cuda_row *rows_at;
    const uint16_t *z;          /* [rows][stride] bf16: 128 are read */
    const float *weight, *bias; /* [128] */
    const float *table;         /* [rows][64] */
    uint32_t *fault;
    uint32_t rows, stride;
    float epsilon;
    uint32_t pow2;
} krn_cuda_index_put_params;

typedef struct krn_cuda_index_query_params {
    const uint16_t *q;  /* [rows][heads * 128] bf16, wq_b output */
    const float *wt;    /* [rows][heads], weights_proj output */
    const float *table; /* [rows][64] */
    uint8_t *out_codes; /* [rows][heads / 8] atoms of 8 heads x 128, swizzled as tiled codes */
    float *out_factors; /* [rows][heads] */
    uint32_t *fault;
    uint32_t rows, heads; /* heads: multiple of 8 */
    uint32_t pow2;
} krn_cuda_index_query_params;

typedef struct krn_cuda_sum_params { /* base/sum.h over pieces of device memory */
    const uint8_t *const *pieces;    /* [count], aligned to 16 */
    const uint64_t *tweaks;          /* [count] */
    uint64_t *out_sums;              /* [count] */
    uint64_t key;
    uint64_t bytes; /* of every piece, multiple of 16 */
    uint32_t count;
} krn_cuda_sum_params;

typedef struct krn_cuda_route_params {
    const float *logits;   /* [rows][experts] */
    const float *bias;     /* [experts] */
    uint32_t *out_experts; /* [rows][chosen], ascending */
    float *out_weights;    /* [rows][chosen] */
    uint32_t *fault;
    uint32_t rows, experts, groups, groups_kept, chosen; /* limits of kernels/moe.h */
    float scaling;
    uint32_t normalise;
} krn_cuda_route_params;

typedef struct krn_cuda_group_params { /* assignments sorted by expert, rows ascending in one */
    const uint32_t *experts_chosen;    /* [rows][chosen] */
    uint32_t *out_offsets;             /* [experts + 1]: starts, each a multiple of align */
    uint32_t *out_rows;   /* [places]: input row; gaps and all behind UINT32_MAX. places: rows *
                             chosen +   experts * (align - 1), rounded up to align */
    uint32_t *out_places; /* [rows][chosen] */
    uint32_t *out_counts; /* [experts] rows of each expert */
    uint32_t rows, chosen, experts;
    uint32_t align; /* 1 or 8 */
} krn_cuda_group_params;

typedef struct krn_cuda_combine_params {
    const uint16_t *outputs;       /* [places][hidden] bf16 */
    const uint32_t *places;        /* [rows][chosen] */
    const float *weights;          /* [rows][chosen] */
    const uint16_t *shared;        /* [rows][hidden] bf16, or NULL */
    uint16_t *out;                 /* [rows][hidden] bf16 */
    uint32_t rows, chosen, hidden; /* hidden: multiple of 8 */
} krn_cuda_combine_params;

typedef struct krn_cuda_topk_params {
    const float *scores; /* [rows][stride]: [i] is slot first + i */
    const krn_cuda_row *rows_at;
    uint32_t *lists;       /* out: [rows][list_stride] slots ascending */
    uint32_t *list_counts; /* out: [rows] = min(topk, slots seen) */
    uint32_t *fault;
    uint32_t rows, stride, topk, list_stride; /* stride: multiple of 4 */
} krn_cuda_topk_params;

typedef struct krn_cuda_linear_params { /* y = x W^T, fp8, bf16 output; many groups = experts */
    const uint8_t *codes;               /* tiled codes of all groups' rows */
    const float *scales;                /* [k/128][rows_tiled] */
    const uint8_t *weights;             /* tiled weights; group g at + g * weights_bytes */
    uint16_t *out;                      /* [rows][out_stride] bf16 */
    const uint32_t *offsets;            /* [groups + 1] first row of each group (multiples of 8), or
                                           NULL: one group of `rows` rows */
    const uint32_t *counts;             /* [groups] rows of each group; with offsets */
    uint64_t weights_bytes;
    uint32_t rows; /* of one group at most: bounds the grid */
    uint32_t groups;
    uint32_t n, k, rows_tiled, out_stride;
    uint32_t segments; /* K-segments of the canonical order: krn_cuda_api.segments(n, k) */
} krn_cuda_linear_params;

typedef struct krn_cuda_linear_bf16_params { /* y = x W^T, bf16; groups = heads */
    const uint16_t *x;         /* row r, group g: k values at r * x_stride + g * x_group */
    const uint32_t *row_index; /* [rows]: input row; NULL = same */
    const uint8_t *weights;    /* tiled bf16 weights; group g at + g * weights_bytes */
    void *out;                 /* row r, group g: n values at r * out_stride + g * out_group */
    uint32_t *fault;
    uint64_t weights_bytes;
    uint32_t rows, groups, n, k; /* k: multiple of 64 */
    uint32_t x_stride, x_group;  /* multiples of 8 */
    uint32_t out_stride, out_group;
    uint32_t out_f32;  /* out holds f32, else bf16 */
    uint32_t segments; /* krn_cuda_api.segments_bf16(n, k) */
} krn_cuda_linear_bf16_params;

typedef struct krn_cuda_gather_params { /* rows of a table by index */
    const uint8_t *table;
    const uint32_t *index; /* [rows] */
    uint8_t *out;          /* [rows][bytes] */
    uint32_t rows, bytes;  /* bytes: of a row, multiple of 16 */
} krn_cuda_gather_params;

typedef struct krn_cuda_move_params {
    void *const *moves;     /* [count][2]: to, from; aligned to 16, apart from each other */
    const uint32_t *faults; /* [fault_count]: nothing moves when one is set */
    uint32_t count, bytes, fault_count;
} krn_cuda_move_params;

typedef struct krn_cuda_arg_max_params {
    const float *logits; /* [rows][n] */
    uint32_t *out_ids;   /* [rows]: the highest, ties to the lowest index */
    uint32_t rows, n;
} krn_cuda_arg_max_params;

/* A change to one logit, in the order of docs/SAMPLING.md; one an id. */
typedef enum krn_cuda_edit_kind {
    KRN_CUDA_EDIT_REPEATED = 1, /* the repetition penalty */
    KRN_CUDA_EDIT_BIAS = 2,
    KRN_CUDA_EDIT_BARRED = 4, /* may not be drawn */
} krn_cuda_edit_kind;

typedef struct krn_cuda_edit {
    uint32_t id, kinds;
    uint32_t count; /* of the presence and frequency penalties; 0: none */
    float bias;
} krn_cuda_edit;

typedef struct krn_cuda_draw_row {
    double u; /* [0, 1), of the key */
    float temperature, top_p, min_p;
    float repetition, presence, frequency;
    uint32_t top_k;    /* 0: all */
    int32_t logprobs;  /* -1: none; else how many alternatives, at most KRN_CUDA_TOP_MAX */
    uint32_t drawn;    /* 0: this row is left out */
    uint32_t edits_at; /* its first edit */
    uint32_t edit_count;
    uint32_t allowed; /* 1 + the row of `allowed` that masks it; 0: none does */
} krn_cuda_draw_row;

#define KRN_CUDA_TOP_MAX 20u

typedef enum krn_cuda_draw_code {
    KRN_CUDA_DRAWN = 1,
    KRN_CUDA_DRAW_LONG = 2,   /* top_p ends among probabilities below 2^-29, whose order shows */
    KRN_CUDA_DRAW_NOTHING = 3 /* no finite logit is left */
} krn_cuda_draw_code;

typedef struct krn_cuda_drawn {
    uint32_t code, id;
    /* with logprobs: a log-probability is logit - (max + log(sum)) */
    double sum; /* of exp(logit - max) */
    float max, logit;
    uint32_t top_count, unused;
    uint32_t top_ids[KRN_CUDA_TOP_MAX];
    float top_logits[KRN_CUDA_TOP_MAX];
} krn_cuda_drawn;

typedef struct krn_cuda_draw_params { /* docs/SAMPLING.md; rows_at to allowed and out may be pinned
                                         host memory */
    const float *logits;              /* [rows][n] */
    const krn_cuda_draw_row *rows_at; /* [rows] */
    const krn_cuda_edit *edits;
    const uint32_t *allowed;   /* [..][(n + 31) / 32]: bit id set = may be drawn */
    const uint32_t *undefined; /* [(n + 31) / 32]: bit id set = no such id; NULL: none */
    krn_cuda_drawn *out;       /* [rows] */
    uint32_t rows, n;          /* n: at most KRN_CUDA_DRAW_MAX */
} krn_cuda_draw_params;

#define KRN_CUDA_DRAW_MAX 131072u

typedef struct krn_cuda_scores_params { /* indexer logits over the paged cache */
    krn_cuda_cache cache;
    const krn_cuda_row *rows_at;  /* [rows]; rows g * next_n .. + next_n - 1 share a sequence;
                                     with next_n 1 rows side by side may share one: faster */
    const uint8_t *queries;       /* as krn_cuda_index_query_params.out_codes */
    const float *factors;         /* [rows][heads] */
    float *scores;                /* out: [rows][stride]: [i] is slot first + i */
    uint32_t rows, next_n, heads; /* rows: multiple of next_n (1..4); heads: 8, 16, 32, 64 */
    uint32_t slots_max;           /* no row sees a slot from here on: bounds the grid */
    uint32_t stride;
} krn_cuda_scores_params;

typedef struct krn_cuda_attend_params {
    krn_cuda_cache cache;
    const krn_cuda_row *rows_at;
    const uint16_t *q_latent;    /* [rows][heads][512] bf16 */
    const uint16_t *q;           /* [rows][heads][192] bf16, after rope: 128..191 */
    const uint32_t *lists;       /* [rows][list_stride] ascending */
    const uint32_t *list_counts; /* [rows], >= 1 */
    uint16_t *out;               /* [rows][heads][512] bf16 */
    void *workspace; /* attend_workspace_bytes, aligned to 16; NULL: no split schedule */
    uint32_t rows, heads, list_stride;
    uint32_t schedule; /* 0: by size; for tests 1: a CTA walks a list, 2: a cluster shares it */
    float scale;
} krn_cuda_attend_params;

#ifdef __cplusplus
}
#endif
#endif
