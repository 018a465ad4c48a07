/* Indexer: key insertion, query preparation, and the split of scoring and selection into tasks.
 *
 * Prefill: tiles of up to KRN_SCORE_ROWS rows of one sequence share the work on a page's keys.
 * Decode: with fewer tiles than threads, the pages of one tile are scored in parallel instead.
 * Thread: the pool's caller. */
#include "kernels/cpu/variant.h"

#include "base/assert.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#define INDEX_ROOT   0.08838834764831845f /* 128^-0.5 */
#define TILES_MAX    512u                 /* of one parallel call */
#define PAGES_A_TASK 8u
#define SCRATCH_UNIT (size_t)1024  /* threads' shares are whole units */
#define FORM_OF_ONE  (128u * 260u) /* krn_score_form_bytes of a row of 128 heads */

static float heads_root(uint32_t heads)
{
    return (float)(1.0 / sqrt((double)heads));
}

typedef struct put_work {
    const krn_cache *cache;
    const krn_row *rows;
    const uint16_t *z;
    const float *weight, *bias;
    float epsilon;
    const float *table;
    bool pow2;
    atomic_bool fault;
} put_work;

static void put_slice(void *context, uint32_t first, uint32_t count)
{
    put_work *w = context;
    const krn_common *common = krn_variant_current()->common;
    for (uint32_t t = first; t < first + count; t++) {
        uint16_t key[KRN_INDEX_DIM];
        uint32_t in_page = w->rows[t].slot % KRN_PAGE_TOKENS;
        uint8_t *page = krn_cache_page(w->cache, w->rows[t].blocks, w->rows[t].slot);
        float scale;
        krn_layernorm(w->z + (size_t)t * KRN_INDEX_DIM, w->weight, w->bias, w->epsilon,
                      KRN_INDEX_DIM, key);
        krn_rope_half_split(key, w->table + (size_t)t * KRN_ROPE_DIM);
        common->hadamard(key);
        if (!common->q128(key, 1, KRN_INDEX_DIM, w->pow2,
                          page + KRN_INDEX_CODES_AT + in_page * KRN_INDEX_DIM, &scale))
            atomic_store_explicit(&w->fault, true, memory_order_relaxed);
        memcpy(page + KRN_INDEX_SCALES_AT + in_page * sizeof scale, &scale, sizeof scale);
    }
}

bool krn_index_put(krn_pool *pool, const krn_cache *cache, const krn_row *rows, uint32_t count,
                   const uint16_t *z, const float *weight, const float *bias, float epsilon,
                   const float *table, bool pow2)
{
    put_work w = {.cache = cache,
                  .rows = rows,
                  .z = z,
                  .weight = weight,
                  .bias = bias,
                  .epsilon = epsilon,
                  .table = table,
                  .pow2 = pow2};
    krn_pool_slices(pool, count, 8, put_slice, &w);
    return !atomic_load_explicit(&w.fault, memory_order_relaxed);
}

typedef struct query_work {
    uint16_t *q;
    const float *wt;
    uint32_t heads;
    const float *table;
    bool pow2;
    uint8_t *codes;
    float *factors;
    atomic_bool fault;
} query_work;

static void query_slice(void *context, uint32_t first, uint32_t count)
{
    query_work *w = context;
    const krn_common *common = krn_variant_current()->common;
    float root = heads_root(w->heads);
    for (uint32_t t = first; t < first + count; t++) {
        uint16_t *row = w->q + (size_t)t * w->heads * KRN_INDEX_DIM;
        float *factors = w->factors + (size_t)t * w->heads;
        for (uint32_t h = 0; h < w->heads; h++) {
            krn_rope_half_split(row + h * KRN_INDEX_DIM, w->table + (size_t)t * KRN_ROPE_DIM);
            common->hadamard(row + h * KRN_INDEX_DIM);
        }
        /* One group a head: the scales land where the factors go. */
        if (!common->q128(row, 1, w->heads * KRN_INDEX_DIM, w->pow2,
                          w->codes + (size_t)t * w->heads * KRN_INDEX_DIM, factors))
            atomic_store_explicit(&w->fault, true, memory_order_relaxed);
        for (uint32_t h = 0; h < w->heads; h++) {
            float weight = w->wt[(size_t)t * w->heads + h] * root;
            factors[h] = weight * factors[h] * INDEX_ROOT;
        }
    }
}

bool krn_index_query(krn_pool *pool, uint16_t *q, const float *wt, uint32_t rows, uint32_t heads,
                     const float *table, bool pow2, uint8_t *out_codes, float *out_factors)
{
    query_work w = {.q = q,
                    .wt = wt,
                    .heads = heads,
                    .table = table,
                    .pow2 = pow2,
                    .codes = out_codes,
                    .factors = out_factors};
    krn_pool_slices(pool, rows, 2, query_slice, &w);
    return !atomic_load_explicit(&w.fault, memory_order_relaxed);
}

/* ---- scores and selection ---- */

static size_t scratch_round(size_t bytes)
{
    return (bytes + SCRATCH_UNIT - 1) & ~(SCRATCH_UNIT - 1);
}

/* Rows [first, first + count) of one block table whose keys are scored together. */
typedef struct row_tile {
    uint32_t first, count;
} row_tile;

typedef struct select_work {
    const krn_select_args *args;
    krn_score_fn score;
    krn_score_queries_fn score_queries;
    size_t query_bytes;  /* of one row */
    size_t form_bytes;   /* of a tile, at the end of a thread's scratch */
    uint32_t slots_max;  /* score row stride */
    size_t thread_bytes; /* scratch of one thread */
    const row_tile *tiles;
    atomic_bool fault;
} select_work;

static uint32_t tile_last_slot(const krn_select_args *args, const row_tile *tile)
{
    uint32_t last = 0;
    for (uint32_t i = tile->first; i < tile->first + tile->count; i++)
        last = args->rows[i].slot > last ? args->rows[i].slot : last;
    return last;
}

/* A tile's queries as `score` reads them: in `form` (krn_score_form_bytes) if they need one. */
static const void *tile_queries(const select_work *w, const row_tile *tile, void *form)
{
    const krn_select_args *args = w->args;
    const uint8_t *queries = (const uint8_t *)args->queries + tile->first * w->query_bytes;
    if (w->score_queries == NULL)
        return queries;
    w->score_queries(queries, args->factors + (size_t)tile->first * args->heads, tile->count,
                     args->heads, form);
    return form;
}

/* Scores of a tile's rows for slots [from, to); slot s goes to scores + s - first. */
static void score_slots(const select_work *w, const row_tile *tile, const void *queries,
                        uint32_t from, uint32_t to, float *scores)
{
    const krn_select_args *args = w->args;
    const krn_row *row = &args->rows[tile->first];
    krn_score_tile score = {.cache = args->cache,
                            .blocks = row->blocks,
                            .from = from,
                            .to = to,
                            .queries = queries,
                            .factors = args->factors + (size_t)tile->first * args->heads,
                            .row_count = tile->count,
                            .heads = args->heads,
                            .out = scores + from - row->first,
                            .out_stride = w->slots_max};
    w->score(&score);
}

static void keep_best(select_work *w, const row_tile *tile, const float *scores)
{
    const krn_select_args *args = w->args;
    for (uint32_t i = 0; i < tile->count; i++) {
        uint32_t t = tile->first + i;
        const krn_row *row = &args->rows[t];
        uint32_t seen = row->slot + 1 - row->first;
        if (!krn_variant_current()->common->topk(scores + (size_t)i * w->slots_max, seen,
                                                 args->topk, row->first,
                                                 args->lists + (size_t)t * args->list_stride))
            atomic_store_explicit(&w->fault, true, memory_order_relaxed);
        args->list_counts[t] = seen < args->topk ? seen : args->topk;
    }
}

/* Where a thread's form of queries lies. */
static void *thread_form(const select_work *w, uint32_t thread)
{
    return (uint8_t *)w->args->scratch + (thread + 1) * w->thread_bytes - w->form_bytes;
}

static void tile_task(void *context, uint32_t task, uint32_t thread)
{
    select_work *w = context;
    const row_tile *tile = &w->tiles[task];
    float *scores = (float *)((uint8_t *)w->args->scratch + thread * w->thread_bytes);
    const void *queries = tile_queries(w, tile, thread_form(w, thread));
    score_slots(w, tile, queries, w->args->rows[tile->first].first,
                tile_last_slot(w->args, tile) + 1, scores);
    keep_best(w, tile, scores);
}

typedef struct pages_work {
    const select_work *select;
    const row_tile *tile;
    const void *queries;
    uint32_t first, end; /* slots */
} pages_work;

static void pages_task(void *context, uint32_t task, uint32_t thread)
{
    const pages_work *w = context;
    uint32_t block = w->first / KRN_PAGE_TOKENS + task * PAGES_A_TASK;
    uint32_t from = block * KRN_PAGE_TOKENS, to = from + PAGES_A_TASK * KRN_PAGE_TOKENS;
    (void)thread;
    score_slots(w->select, w->tile, w->queries, from > w->first ? from : w->first,
                to < w->end ? to : w->end, w->select->args->scratch);
}

static void run_tiles(krn_pool *pool, select_work *w, const row_tile *tiles, uint32_t count)
{
    w->tiles = tiles;
    if (count >= krn_pool_threads(pool)) {
        krn_pool_run(pool, count, tile_task, w);
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        pages_work pages = {.select = w,
                            .tile = &tiles[i],
                            .queries = tile_queries(w, &tiles[i], thread_form(w, 0)),
                            .first = w->args->rows[tiles[i].first].first,
                            .end = tile_last_slot(w->args, &tiles[i]) + 1};
        uint32_t blocks = (pages.end - 1) / KRN_PAGE_TOKENS - pages.first / KRN_PAGE_TOKENS + 1;
        krn_pool_run(pool, (blocks + PAGES_A_TASK - 1) / PAGES_A_TASK, pages_task, &pages);
        keep_best(w, &tiles[i], w->args->scratch);
    }
}

static void keep_all(const krn_select_args *args, uint32_t t)
{
    const krn_row *row = &args->rows[t];
    uint32_t *list = args->lists + (size_t)t * args->list_stride;
    for (uint32_t slot = row->first; slot <= row->slot; slot++)
        list[slot - row->first] = slot;
    args->list_counts[t] = row->slot + 1 - row->first;
}

/* Rows that need a choice go into tiles; the others are answered at once. */
static bool select_rows(krn_pool *pool, select_work *w)
{
    const krn_select_args *args = w->args;
    row_tile tiles[TILES_MAX];
    uint32_t tile_count = 0;
    for (uint32_t t = 0; t < args->count; t++) {
        const krn_row *row = &args->rows[t];
        sl_assert(row->first <= row->slot && row->slot - row->first < w->slots_max);
        if (row->slot + 1 - row->first <= args->topk) {
            keep_all(args, t);
            continue;
        }
        row_tile *last = tile_count > 0 ? &tiles[tile_count - 1] : NULL;
        if (last && last->first + last->count == t && last->count < KRN_SCORE_ROWS &&
            args->rows[last->first].blocks == row->blocks &&
            args->rows[last->first].first == row->first) {
            last->count++;
            continue;
        }
        if (tile_count == TILES_MAX) {
            run_tiles(pool, w, tiles, tile_count);
            tile_count = 0;
        }
        tiles[tile_count++] = (row_tile){.first = t, .count = 1};
    }
    run_tiles(pool, w, tiles, tile_count);
    return !atomic_load_explicit(&w->fault, memory_order_relaxed);
}

size_t krn_select_scratch_bytes(uint32_t threads, uint32_t heads, uint32_t slots_max)
{
    size_t stride = ((size_t)slots_max + 15) & ~(size_t)15;
    return threads * (stride * KRN_SCORE_ROWS * sizeof(float) +
                      scratch_round(krn_score_form_bytes(KRN_SCORE_ROWS, heads)));
}

static bool run_select(krn_pool *pool, const krn_select_args *args, select_work *w)
{
    w->args = args;
    w->thread_bytes = args->scratch_bytes / krn_pool_threads(pool) & ~(SCRATCH_UNIT - 1);
    w->form_bytes = scratch_round(krn_score_form_bytes(KRN_SCORE_ROWS, args->heads));
    sl_assert(w->thread_bytes > w->form_bytes);
    w->slots_max = (uint32_t)((w->thread_bytes - w->form_bytes) / (KRN_SCORE_ROWS * sizeof(float)));
    sl_assert(args->list_stride >= args->topk);
    return select_rows(pool, w);
}

bool krn_index_select(krn_pool *pool, const krn_select_args *args)
{
    const krn_variant *variant = krn_variant_current();
    select_work w = {.score = variant->score,
                     .score_queries = variant->score_queries,
                     .query_bytes = (size_t)args->heads * KRN_INDEX_DIM};
    return run_select(pool, args, &w);
}

static void scores_of_row(select_work *w, const krn_row *row, float *out_scores)
{
    _Alignas(64) uint8_t form[FORM_OF_ONE];
    row_tile tile = {.first = 0, .count = 1};
    sl_assert(krn_score_form_bytes(1, w->args->heads) <= sizeof form);
    score_slots(w, &tile, tile_queries(w, &tile, form), row->first, row->slot + 1, out_scores);
}

void krn_index_scores(const krn_cache *cache, const krn_row *row, const uint8_t *codes,
                      const float *factors, uint32_t heads, float *out_scores)
{
    const krn_variant *variant = krn_variant_current();
    krn_select_args args = {.cache = cache,
                            .rows = row,
                            .count = 1,
                            .heads = heads,
                            .queries = codes,
                            .factors = factors};
    select_work w = {
        .args = &args, .score = variant->score, .score_queries = variant->score_queries};
    scores_of_row(&w, row, out_scores);
}

bool krn_plain_index_select(krn_pool *pool, const krn_select_args *args)
{
    select_work w = {.score = krn_plain_score,
                     .query_bytes = (size_t)args->heads * KRN_INDEX_DIM * sizeof(float)};
    return run_select(pool, args, &w);
}

void krn_plain_index_scores(const krn_cache *cache, const krn_row *row, const float *query,
                            const float *factors, uint32_t heads, float *out_scores)
{
    krn_select_args args = {.cache = cache,
                            .rows = row,
                            .count = 1,
                            .heads = heads,
                            .queries = query,
                            .factors = factors};
    select_work w = {.args = &args, .score = krn_plain_score};
    scores_of_row(&w, row, out_scores);
}

bool krn_topk(const float *scores, uint32_t count, uint32_t topk, uint32_t *out_positions)
{
    return krn_variant_current()->common->topk(scores, count, topk, 0, out_positions);
}

void krn_hadamard(uint16_t *x)
{
    krn_variant_current()->common->hadamard(x);
}
