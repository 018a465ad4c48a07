/* The table of single-threaded inner kernels that a CPU variant provides.
 *
 * The public functions split work into tasks over independent outputs and call these on slices.
 * A variant computes the canonical order of its numerics id (kernels/kernels.h), so results of one
 * id are bit-equal; the plain C ones (ref.c, amx_ref.c) are the truth. Private to kernels/. */
#ifndef KERNELS_CPU_VARIANT_H
#define KERNELS_CPU_VARIANT_H

#include "kernels/cpu/draw.h"
#include "kernels/kernels.h"

#define KRN_TILE_ROWS     96u /* rows of one task of a product, of most variants */
#define KRN_GROUP_PANELS  4u  /* panels of one weight scale block of 128 columns */
#define KRN_TILE_GROUPS   4u  /* of one task: they share the conversion of its inputs */
#define KRN_TILE_PANELS   (KRN_TILE_GROUPS * KRN_GROUP_PANELS)
#define KRN_AMX_TILE_ROWS 256u
#define KRN_AMX_FEW_ROWS  16u /* so many rows fill one tile */
#define KRN_SCORE_ROWS    16u /* rows scored together against the same keys */

/* A slice of one product. panel_count <= KRN_TILE_PANELS, row_count <= the variant's tile_rows;
 * `panel` begins a block of 128 columns. */
typedef struct krn_tile {
    uint32_t row, row_count;
    uint32_t panel, panel_count;
} krn_tile;

/* Group `g` of a tile, the panels of one scale block; false: there is none. */
static inline bool krn_tile_group(const krn_tile *tile, uint32_t g, krn_tile *out_group)
{
    uint32_t first = g * KRN_GROUP_PANELS;
    if (first >= tile->panel_count)
        return false;
    uint32_t left = tile->panel_count - first;
    *out_group = (krn_tile){.row = tile->row,
                            .row_count = tile->row_count,
                            .panel = tile->panel + first,
                            .panel_count = left < KRN_GROUP_PANELS ? left : KRN_GROUP_PANELS};
    return true;
}

typedef void (*krn_gemm_fn)(const krn_gemm *gemm, const krn_tile *tile);

/* Scores of up to KRN_SCORE_ROWS rows of one block table for its slots [from, to):
 * out[row * out_stride + slot - from]. */
typedef struct krn_score_tile {
    const krn_cache *cache;
    const uint32_t *blocks;
    uint32_t from, to;
    const void *queries; /* [row_count][heads * 128], or what score_queries made of them */
    const float *factors;
    uint32_t row_count;
    uint32_t heads;
    float *out;
    size_t out_stride;
} krn_score_tile;

/* The part of a tile that lies in one page. */
typedef struct krn_score_page {
    const uint8_t *page; /* the layer's slice of the page */
    const uint8_t *next; /* of the tile's next page, to be fetched; of the last one: itself */
    uint32_t from, to;   /* row in the page, 0..64 */
    float *out;
} krn_score_page;

typedef void (*krn_score_fn)(const krn_score_tile *tile);
/* Brings the queries of a tile and their factors into the form that `score` reads, in
 * krn_score_form_bytes. */
typedef void (*krn_score_queries_fn)(const uint8_t *queries, const float *factors,
                                     uint32_t row_count, uint32_t heads, void *out_form);
/* Heads [head, head + head_count) of one row; scratch: one thread's share. */
typedef void (*krn_attend_fn)(const krn_attend_args *args, uint32_t row, uint32_t head,
                              uint32_t head_count, void *scratch);

/* What has the same order in every numerics id. */
typedef struct krn_common {
    const krn_draw *draw;
    krn_gemm_fn gemm_plain;
    bool (*rmsnorm)(const uint16_t *x, const uint16_t *res, const uint16_t *weight, float epsilon,
                    uint32_t rows, uint32_t n, uint16_t *out, uint16_t *out_res);
    bool (*q128)(const uint16_t *x, uint32_t rows, uint32_t k, bool pow2, uint8_t *out_codes,
                 float *out_scales);
    void (*silu_mul)(const uint16_t *g, const uint16_t *u, size_t count, uint16_t *out_a);
    void (*hadamard)(uint16_t *x);
    bool (*topk)(const float *scores, uint32_t count, uint32_t topk, uint32_t base,
                 uint32_t *out_positions);
    void (*combine)(const uint16_t *outputs, const uint32_t *places, const float *weights,
                    uint32_t chosen, const uint16_t *shared, uint32_t rows, uint32_t hidden,
                    uint16_t *out_y);
} krn_common;

typedef struct krn_variant {
    const char *name;
    const char *numerics_id;
    uint32_t tile_rows; /* of one task of a product other than gemm_plain */
    const krn_common *common;
    krn_gemm_fn gemm_fp8;
    krn_gemm_fn gemm_bf16;              /* bf16 output */
    krn_gemm_fn gemm_f32;               /* bf16 operands, f32 output */
    krn_score_queries_fn score_queries; /* NULL: `score` reads them as they are */
    krn_score_fn score;
    krn_attend_fn attend;
} krn_variant;

extern const krn_common krn_common_ref;
/* The loops of the plain C products, shared by the orders; what sums is the order's own: one block
 * of 128 k from `first` on of an output column, or a whole column of bf16 operands. */
typedef float (*krn_ref_fp8_fn)(const uint8_t *codes, const krn_matrix *m, uint32_t column,
                                uint32_t first);
typedef float (*krn_ref_bf16_fn)(const uint16_t *x, const krn_matrix *m, uint32_t column);
void krn_ref_gemm_fp8(const krn_gemm *gemm, const krn_tile *tile, krn_ref_fp8_fn block);
void krn_ref_gemm_bf16(const krn_gemm *gemm, const krn_tile *tile, krn_ref_bf16_fn dot, bool round);

extern const krn_variant krn_variant_ref, krn_variant_amx_ref;
#if defined(__x86_64__)
extern const krn_common krn_common_avx512;
extern const krn_variant krn_variant_avx2, krn_variant_zen, krn_variant_avx512, krn_variant_zen4,
    krn_variant_amx;
/* True: AVX512_BF16's product of pairs is the two multiply-adds of KRN_NUMERICS_F32. Only where the
 * CPU has it. */
bool krn_pairs_in_order(void);
/* attend of AVX-512 with 8 or 16 heads in the lanes of the score part. */
void krn_avx512_attend8(const krn_attend_args *args, uint32_t row, uint32_t head,
                        uint32_t head_count, void *scratch);
void krn_avx512_attend16(const krn_attend_args *args, uint32_t row, uint32_t head,
                         uint32_t head_count, void *scratch);
/* Scores by products of pairs: where krn_pairs_in_order. */
void krn_zen4_score_queries(const uint8_t *queries, const float *factors, uint32_t row_count,
                            uint32_t heads, void *out_form);
void krn_zen4_score(const krn_score_tile *tile);
/* The tiles' order (amx_order.h). */
void krn_amx_score_queries(const uint8_t *queries, const float *factors, uint32_t row_count,
                           uint32_t heads, void *out_form);
/* Products of at most KRN_AMX_FEW_ROWS rows. */
void krn_amx_few_fp8(const krn_gemm *gemm, const krn_tile *tile);
void krn_amx_few_bf16(const krn_gemm *gemm, const krn_tile *tile);
void krn_amx_few_f32(const krn_gemm *gemm, const krn_tile *tile);
void krn_amx_score(const krn_score_tile *tile);
void krn_amx_attend(const krn_attend_args *args, uint32_t row, uint32_t head, uint32_t head_count,
                    void *scratch);
#endif
void krn_amx_ref_score(const krn_score_tile *tile);
void krn_amx_ref_attend(const krn_attend_args *args, uint32_t row, uint32_t head,
                        uint32_t head_count, void *scratch);

const krn_variant *krn_variant_current(void);

/* Runs run(context, first, count) over [0, total) in slices of about `grain`, or all of it here
 * when that is one slice. */
typedef void (*krn_slice_fn)(void *context, uint32_t first, uint32_t count);
void krn_pool_slices(krn_pool *pool, uint32_t total, uint32_t grain, krn_slice_fn run,
                     void *context);

/* k of a panel in memory: bf16 panels end in zeros up to a whole step of the tiles. */
static inline uint32_t krn_panel_k(krn_matrix_kind kind, uint32_t k)
{
    return kind == KRN_MATRIX_BF16 ? (k + 31) & ~31u : k;
}
/* Elements of a panel. */
static inline size_t krn_panel_size(const krn_matrix *m)
{
    return (size_t)krn_panel_k(m->kind, m->k) * KRN_PANEL_COLUMNS;
}
/* Where weight (column, k) lies in packed panels (matrix.c), in elements. */
static inline size_t krn_panel_at_fp8(const krn_matrix *m, uint32_t column, uint32_t k)
{
    uint32_t c = column % KRN_PANEL_COLUMNS;
    return column / KRN_PANEL_COLUMNS * krn_panel_size(m) + (k & ~1u) * KRN_PANEL_COLUMNS +
           c % 16 * 4 + k % 2 * 2 + c / 16;
}
static inline size_t krn_panel_at_bf16(const krn_matrix *m, uint32_t column, uint32_t k)
{
    uint32_t c = column % KRN_PANEL_COLUMNS;
    return column / KRN_PANEL_COLUMNS * krn_panel_size(m) + (k & ~1u) * KRN_PANEL_COLUMNS + c * 2 +
           k % 2;
}

/* Where slot `slot` of a block table lies: the layer's slice of its page. */
static inline uint8_t *krn_cache_page(const krn_cache *cache, const uint32_t *blocks, uint32_t slot)
{
    return cache->base + (uint64_t)blocks[slot / KRN_PAGE_TOKENS] * cache->page_bytes;
}
static inline uint8_t *krn_cache_latent(const krn_cache *cache, const uint32_t *blocks,
                                        uint32_t slot)
{
    return krn_cache_page(cache, blocks, slot) + slot % KRN_PAGE_TOKENS * KRN_LATENT_ROW_BYTES;
}
/* Scale of a Q128 group whose largest magnitude is `largest`. */
static inline float krn_q128_scale(float largest, bool pow2)
{
    float scale = (largest > 1e-4f ? largest : 1e-4f) * (1.0f / 448.0f);
    if (!pow2)
        return scale;
    uint32_t bits = krn_f32_bits(scale);
    return krn_bits_f32((bits & 0x7F800000u) + ((bits & 0x7FFFFFu) != 0 ? 0x800000u : 0u));
}
/* Bits that order like the float; -0.0 counts as +0.0. */
static inline uint32_t krn_ordered(float value)
{
    uint32_t bits = krn_f32_bits(value + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
/* Lanes that the heads of a row take in a form of queries: half a vector of 16, or whole ones. */
static inline uint32_t krn_score_lanes(uint32_t heads)
{
    return heads <= 8 ? 8 : (heads + 15) & ~15u;
}
/* Vectors of 16 lanes that a form has. */
static inline uint32_t krn_score_vectors(uint32_t rows, uint32_t heads)
{
    return (rows * krn_score_lanes(heads) + 15) / 16;
}
/* Of a lane: 128 dimensions as bf16 and a factor. */
static inline size_t krn_score_form_bytes(uint32_t rows, uint32_t heads)
{
    return (size_t)krn_score_vectors(rows, heads) * 16 *
           (KRN_INDEX_DIM * sizeof(uint16_t) + sizeof(float));
}
/* The part of a tile that lies in the page of `slot`, from it on. */
static inline krn_score_page krn_score_page_at(const krn_score_tile *tile, uint32_t slot)
{
    uint32_t from = slot % KRN_PAGE_TOKENS, left = tile->to - slot;
    uint32_t room = KRN_PAGE_TOKENS - from;
    uint32_t next = slot - from + KRN_PAGE_TOKENS;
    return (krn_score_page){
        .page = krn_cache_page(tile->cache, tile->blocks, slot),
        .next = krn_cache_page(tile->cache, tile->blocks, next < tile->to ? next : slot),
        .from = from,
        .to = from + (left < room ? left : room),
        .out = tile->out + (slot - tile->from)};
}
/* Fetches the scales of the next page; its codes are to be fetched one by one, between products. */
static inline void krn_score_fetch_scales(const krn_score_page *at)
{
    for (uint32_t i = 0; i < KRN_PAGE_TOKENS * sizeof(float); i += 64)
        __builtin_prefetch(at->next + KRN_INDEX_SCALES_AT + i);
}
/* Calls run(tile, part) for the part of each page, in order. */
static inline void krn_score_pages(const krn_score_tile *tile,
                                   void (*run)(const krn_score_tile *tile,
                                               const krn_score_page *part))
{
    for (uint32_t slot = tile->from; slot < tile->to;) {
        krn_score_page part = krn_score_page_at(tile, slot);
        slot += part.to - part.from;
        run(tile, &part);
    }
}
static inline size_t krn_align64(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}
/* Indexer scores in plain numerics: f32 queries, f32 keys. */
void krn_plain_score(const krn_score_tile *tile);
/* Bytes of one thread's attention scratch. */
size_t krn_attend_thread_bytes(uint32_t heads, uint32_t list_stride);
/* Floats between slabs of 32 dimensions: padded, so that slabs do not share cache sets. */
static inline size_t krn_attend_slab_size(uint32_t list_stride)
{
    return (((size_t)list_stride + 15) & ~(size_t)15) * 32 + 48;
}

#endif
