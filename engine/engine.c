/* Creates and destroys the engine: options, stamp, cache layout, page sums.
 *
 * Thread: the engine thread (create may be anywhere before it starts). */
#include "engine/engine.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"
#include "base/sum.h"
#include "engine/cache.h"
#include "engine/ops.h"
#include "engine/ranks.h"
#include "engine/reload.h"

#define LAYER_GROUP_DEFAULT  8u
#define SEQUENCES_DEFAULT    64u
#define MICRO_BATCH_ROWS     256u
#define SEQUENCES_LIMIT      4096u
#define CACHE_FORMAT_VERSION 1u
#define SUM_KEY_0            0x736c75696365206bull /* arbitrary, fixed: part of the cache format */
#define SUM_KEY_1            0x657920666f722073ull

_Static_assert(ENG_PAGE_TOKENS == KRN_PAGE_TOKENS, "engine and kernels agree on the page");

/* ---- layout ---- */

static uint64_t model_page_bytes(const eng_model *model)
{
    bool plain = model->numerics == ENG_NUMERICS_PLAIN;
    uint64_t layer_bytes = plain ? KRN_PLAIN_LAYER_BYTES : KRN_LAYER_BYTES;
    uint64_t element_bytes = plain ? sizeof(float) : sizeof(uint16_t);
    uint64_t bytes =
        layer_bytes * model->layer_count + (uint64_t)model->shape.hidden_size * element_bytes;
    return (bytes + 63) / 64 * 64;
}

uint64_t eng_model_kv_bytes(const eng_model *model, uint64_t token_count)
{
    return (token_count + ENG_PAGE_TOKENS - 1) / ENG_PAGE_TOKENS * model_page_bytes(model);
}

static void engine_set_layout(eng_engine *engine, uint32_t layer_group)
{
    const eng_model *model = engine->model;
    eng_cache_layout *layout = &engine->layout;
    layout->layer_count = model->layer_count;
    layout->group_layers = layer_group;
    layout->group_count = (layout->layer_count + layer_group - 1) / layer_group;
    layout->layer_bytes = engine->plain ? KRN_PLAIN_LAYER_BYTES : KRN_LAYER_BYTES;
    engine->h_final_offset = layout->layer_bytes * layout->layer_count;
    layout->page_bytes = model_page_bytes(model);
}

void eng_layout_piece(const eng_cache_layout *layout, const mdl_shape *shape, uint32_t group,
                      uint64_t *out_offset, uint64_t *out_bytes)
{
    sl_assert(group < layout->group_count);
    uint32_t first = group * layout->group_layers;
    uint32_t count = layout->layer_count - first;
    count = count < layout->group_layers ? count : layout->group_layers;
    *out_offset = first * layout->layer_bytes;
    *out_bytes = count * layout->layer_bytes;
    if (group == layout->group_count - 1) /* h_final of the page's last token, bf16 */
        *out_bytes += (uint64_t)shape->hidden_size * sizeof(uint16_t);
}

krn_cache eng_engine_layer_cache(const eng_engine *engine, uint32_t layer)
{
    sl_assert(layer < engine->layout.layer_count);
    return (krn_cache){
        .base = engine->cache + layer * engine->layout.layer_bytes,
        .page_bytes = engine->layout.page_bytes,
    };
}

/* ---- stamp and sums ---- */

static void engine_set_stamp(eng_engine *engine)
{
    eng_stamp *stamp = &engine->stamp;
    memset(stamp, 0, sizeof(*stamp)); /* hashed whole: no stray bytes */
    snprintf(stamp->numerics_id, sizeof(stamp->numerics_id), "%s",
             engine->plain ? "plain" : engine->ops->numerics_id());
    snprintf(stamp->model_hash, sizeof(stamp->model_hash), "%s", engine->model->hash);
    snprintf(stamp->weights_version, sizeof(stamp->weights_version), "%u", engine->weights_version);
    snprintf(stamp->cache_format, sizeof(stamp->cache_format), "v%u-%u-%u-g%u",
             CACHE_FORMAT_VERSION, ENG_PAGE_TOKENS,
             (uint32_t)(engine->layout.layer_bytes / ENG_PAGE_TOKENS), engine->layout.group_layers);
    const uint64_t key[2] = {SUM_KEY_0, SUM_KEY_1};
    engine->sum_key = sl_siphash(key, stamp, sizeof(*stamp));
}

const eng_stamp *eng_engine_stamp(const eng_engine *engine)
{
    return &engine->stamp;
}

const char *eng_engine_variant(const eng_engine *engine)
{
    return engine->ops == &eng_ops_cpu ? krn_cpu_variant() : "cuda";
}

uint64_t eng_engine_sum_key(const eng_engine *engine)
{
    return engine->sum_key;
}

uint64_t eng_piece_sum(const eng_engine *engine, const void *piece, uint64_t bytes, uint32_t block,
                       uint32_t group)
{
    return sl_sum64(engine->sum_key, eng_sum_tweak(block, group), piece, (size_t)bytes);
}

/* ---- create and destroy ---- */

static sl_status engine_set_options(eng_engine *engine, const eng_options *options, sl_err *err)
{
    if (options->layer_group < 0 || options->sequences_max < 0 || options->rows_max < 0)
        return sl_fail(err, SL_INVALID, "engine options: a negative size");
    uint32_t context_limit = (uint32_t)engine->model->shape.position_max;
    engine->rows_max = options->rows_max ? (uint32_t)options->rows_max : ENG_ROWS_DEFAULT;
    engine->micro_batch_rows =
        options->micro_batch_rows ? options->micro_batch_rows : MICRO_BATCH_ROWS;
    engine->sequences_max =
        options->sequences_max ? (uint32_t)options->sequences_max : SEQUENCES_DEFAULT;
    engine->context_max = options->context_max ? options->context_max : context_limit;
    if (engine->rows_max > ENG_BATCH_ROWS_MAX)
        return sl_fail(err, SL_TOO_LARGE, "rows of a step: %u, at most %u", engine->rows_max,
                       ENG_BATCH_ROWS_MAX);
    if (engine->sequences_max > SEQUENCES_LIMIT)
        return sl_fail(err, SL_TOO_LARGE, "sequences: %u, at most %u", engine->sequences_max,
                       SEQUENCES_LIMIT);
    if (engine->context_max > context_limit)
        return sl_fail(err, SL_TOO_LARGE, "context of %u tokens: the model has %u positions",
                       engine->context_max, context_limit);
    uint32_t group = options->layer_group ? (uint32_t)options->layer_group : LAYER_GROUP_DEFAULT;
    engine_set_layout(engine, group);
    uint64_t page_count = options->kv_bytes / engine->layout.page_bytes;
    if (page_count == 0)
        return sl_fail(err, SL_INVALID, "cache memory of %llu bytes: one page needs %llu",
                       (unsigned long long)options->kv_bytes,
                       (unsigned long long)engine->layout.page_bytes);
    if (page_count >= ENG_NO_PAGE)
        page_count = ENG_NO_PAGE - 1;
    engine->layout.page_count = (uint32_t)page_count;
    uint64_t percent = options->overcommit_percent ? options->overcommit_percent : 100;
    if (percent < 100 || percent > ENG_OVERCOMMIT_MAX)
        return sl_fail(err, SL_INVALID, "overcommit of %llu %%: 100 to %u are possible",
                       (unsigned long long)percent, ENG_OVERCOMMIT_MAX);
    uint64_t promisable = page_count * percent / 100;
    engine->pages_promisable = promisable < UINT32_MAX ? (uint32_t)promisable : UINT32_MAX;
    engine->blocks_max = eng_pages_of(engine->context_max);
    if (engine->blocks_max > engine->layout.page_count)
        engine->blocks_max = engine->layout.page_count;
    return sl_ok();
}

static void engine_make_sequences(eng_engine *engine)
{
    engine->sequences = sl_alloc(engine->sequences_max, sizeof(eng_sequence), "sequences");
    engine->sequence_pages = sl_alloc((size_t)engine->sequences_max * engine->blocks_max,
                                      sizeof(uint32_t), "sequence pages");
    for (uint32_t i = 0; i < engine->sequences_max; i++) {
        engine->sequences[i].engine = engine;
        engine->sequences[i].pages = engine->sequence_pages + (size_t)i * engine->blocks_max;
    }
}

static uint64_t engine_cache_bytes(const eng_engine *engine)
{
    return engine->layout.page_bytes * engine->layout.page_count;
}

static sl_status engine_open_tier(eng_engine *engine, sl_err *err)
{
    if (!engine->tier_path)
        return sl_ok();
    eng_tier_options tier = {
        .path = engine->tier_path,
        .bytes = engine->tier_bytes,
        .stamp = &engine->stamp,
        .sum_key = engine->sum_key,
        .page_bytes = engine->layout.page_bytes,
    };
    sl_status status = eng_tier_open(&tier, &engine->tier, err);
    if (!sl_is_ok(status))
        return sl_wrap(err, status, "second cache tier");
    eng_tier_set_wake(engine->tier, engine->wake, engine->wake_context);
    return sl_ok();
}

static bool spill_page(void *context, uint32_t page)
{
    eng_engine *engine = context;
    const eng_prefix_entry *entry = &engine->pages.prefix.entries[page];
    if (!eng_tier_can_take(engine->tier))
        return false;
    const void *bytes =
        engine->ops->read(engine, eng_engine_page(engine, page), (size_t)engine->layout.page_bytes);
    if (engine->broken)
        return false;
    eng_tier_put(engine->tier, entry->chain, entry->tokens, bytes);
    return true;
}

/* The names of blocks must outlive the process where their pages do. */
static void engine_make_pages(eng_engine *engine)
{
    uint64_t key[ENG_CHAIN_KEY_WORDS];
    sl_random_bytes(key, sizeof(key));
    eng_pages_init(&engine->pages, engine->layout.page_count,
                   engine->tier ? eng_tier_key(engine->tier) : key);
    if (!engine->tier)
        return;
    engine->pages.spill = spill_page;
    engine->pages.spill_context = engine;
}

static sl_status engine_build(eng_engine *engine, const eng_options *options, sl_err *err)
{
    SL_TRY(engine_set_options(engine, options, err));
    SL_TRY(eng_ranks_create(engine, options->group, err));
    void *cache;
    SL_TRY(engine->ops->memory_create(engine->model, engine->cache_kind, engine_cache_bytes(engine),
                                      &cache, err));
    engine->cache = cache;
    engine_set_stamp(engine);
    if (options->tier_path)
        engine->tier_path = sl_strdup(options->tier_path, "tier path");
    engine->tier_bytes = options->tier_bytes;
    SL_TRY(engine_open_tier(engine, err));
    engine_make_pages(engine);
    engine_make_sequences(engine);
    SL_TRY(eng_transit_create(engine, options->transit_bytes, err));
    SL_TRY(krn_pool_create(options->threads, &engine->pool, err));
    const mdl_shape *shape = &engine->model->shape;
    mdl_routing_layout_init(shape, &engine->routing);
    engine->routing_rows = sl_alloc(engine->rows_max, engine->routing.row_bytes, "routing rows");
    SL_TRY(eng_scratch_carve(engine, err));
    SL_TRY(eng_ranks_prepare(engine, err));
    SL_TRY(engine->ops->create(engine, err));
    eng_sampler_init(&engine->sampler, (uint32_t)shape->vocab_size, (uint32_t)shape->eos_id,
                     engine->model->undefined);
    return sl_ok();
}

sl_status eng_options_check(const eng_model_options *model, const eng_options *options, sl_err *err)
{
    eng_model *looked;
    SL_TRY(eng_model_look(model, &looked, err));
    eng_engine *engine = sl_alloc(1, sizeof(*engine), "engine to check");
    engine->model = looked;
    engine->element_bytes = sizeof(uint16_t);
    sl_status status = engine_set_options(engine, options, err);
    if (sl_is_ok(status) && looked->ops == &eng_ops_cpu)
        status = looked->ops->model_open(looked, NULL, err); /* its variant */
    sl_free(engine);
    eng_model_close(looked);
    return status;
}

sl_status eng_engine_create(const eng_model *model, const eng_options *options,
                            eng_engine **out_engine, sl_err *err)
{
    eng_engine *engine = sl_alloc(1, sizeof(*engine), "engine");
    engine->model = model;
    engine->weights_version = options->weights_version ? options->weights_version : 1;
    engine->ops = model->ops;
    engine->cache_kind = options->cache_on_host ? ENG_MEMORY_HOST : ENG_MEMORY_DEVICE;
    engine->plain = model->numerics == ENG_NUMERICS_PLAIN;
    engine->element_bytes = engine->plain ? sizeof(float) : sizeof(uint16_t);
    sl_status status = engine_build(engine, options, err);
    if (!sl_is_ok(status)) {
        eng_engine_destroy(engine);
        return status;
    }
    *out_engine = engine;
    return status;
}

void eng_engine_destroy(eng_engine *engine)
{
    if (!engine)
        return;
    engine->ops->destroy(engine);
    eng_ranks_destroy(engine);
    eng_transit_destroy(engine);
    eng_sampler_fini(&engine->sampler);
    sl_free(engine->routing_rows);
    eng_scratch_free(engine);
    krn_pool_destroy(engine->pool);
    sl_free(engine->sequences);
    sl_free(engine->sequence_pages);
    eng_tier_close(engine->tier);
    sl_free(engine->tier_path);
    eng_pages_fini(&engine->pages);
    if (engine->cache)
        engine->ops->memory_destroy(engine->model, engine->cache_kind, engine->cache,
                                    engine_cache_bytes(engine));
    sl_free(engine);
}

const eng_cache_layout *eng_engine_layout(const eng_engine *engine)
{
    return &engine->layout;
}

bool eng_engine_host_reaches(const eng_engine *engine)
{
    return !engine->ops->resident || engine->cache_kind == ENG_MEMORY_HOST;
}

void eng_engine_settle(eng_engine *engine)
{
    if (engine->cache_kind == ENG_MEMORY_HOST)
        (void)engine->ops->finish(engine);
}

uint8_t *eng_engine_page(const eng_engine *engine, uint32_t page)
{
    return engine->cache + page * engine->layout.page_bytes;
}

uint8_t *eng_engine_cache_base(const eng_engine *engine)
{
    return engine->cache;
}

void eng_engine_count_pages(const eng_engine *engine, eng_page_counts *out_counts)
{
    uint32_t bound = engine->layout.page_count - eng_pages_available(&engine->pages);
    uint32_t promised = engine->promised + engine->reserve.promised;
    uint64_t taken = (uint64_t)bound + promised;
    uint64_t left = taken < engine->pages_promisable ? engine->pages_promisable - taken : 0;
    *out_counts = (eng_page_counts){
        .free = engine->pages.free_count,
        .kept = engine->pages.kept_count,
        .bound = bound,
        .promised = promised,
        .grantable = left < engine->layout.page_count ? (uint32_t)left : engine->layout.page_count,
        .transit = engine->transit.page_count - engine->transit.free_count,
    };
}

void eng_engine_read_page(eng_engine *engine, uint32_t page, uint64_t offset, uint64_t bytes,
                          void *out)
{
    sl_assert(page < engine->layout.page_count && offset + bytes <= engine->layout.page_bytes);
    engine->ops->fetch(engine, out, eng_engine_page(engine, page) + offset, (size_t)bytes);
}

const char *eng_engine_broken(const eng_engine *engine)
{
    return engine->broken;
}

sl_status eng_engine_check(const eng_engine *engine, sl_err *err)
{
    return engine->broken ? sl_fail(err, SL_INTERNAL, "the device failed: %s", engine->broken)
                          : sl_ok();
}

uint64_t eng_engine_scratch_bytes(const eng_engine *engine)
{
    return engine->s.bytes;
}

uint32_t eng_engine_pages_free(const eng_engine *engine)
{
    eng_page_counts counts;
    eng_engine_count_pages(engine, &counts);
    return counts.grantable;
}

uint32_t eng_engine_pages_kept(const eng_engine *engine)
{
    return engine->pages.kept_count;
}

void eng_engine_set_reserve(eng_engine *engine, eng_reserve reserve)
{
    engine->reserve = reserve;
}

bool eng_engine_tier_stats(const eng_engine *engine, eng_tier_stats *out_stats)
{
    if (!engine->tier)
        return false;
    eng_tier_stats_get(engine->tier, out_stats);
    return true;
}

void eng_engine_set_wake(eng_engine *engine, void (*wake)(void *context), void *context)
{
    engine->wake = wake;
    engine->wake_context = context;
    if (engine->tier)
        eng_tier_set_wake(engine->tier, wake, context);
}

/* ---- reload ---- */

/* Everything that is named after the weights: stamp, sums, known pages, the second tier's file.
 * Without a tier when that cannot be opened. */
static sl_status engine_rekey(eng_engine *engine, uint32_t weights_version, sl_err *err)
{
    eng_tier_close(engine->tier);
    engine->tier = NULL;
    eng_pages_fini(&engine->pages);
    engine->weights_version = weights_version;
    engine_set_stamp(engine);
    sl_status status = engine_open_tier(engine, err);
    engine_make_pages(engine);
    return status;
}

sl_status eng_engine_reload_fits(const eng_engine *engine, sl_err *err)
{
    for (uint32_t i = 0; i < engine->sequences_max; i++)
        if (engine->sequences[i].open)
            return sl_fail(err, SL_CONFLICT, "a sequence is open");
    return sl_ok();
}

sl_status eng_engine_check_reload(const eng_engine *engine, const eng_model *model,
                                  const eng_model *fresh, uint32_t weights_version, sl_err *err)
{
    sl_assert(engine->model == model);
    SL_TRY(eng_engine_reload_fits(engine, err));
    if (weights_version <= engine->weights_version)
        return sl_fail(err, SL_INVALID, "weights version %u: must be higher than %u",
                       weights_version, engine->weights_version);
    return eng_model_check_same(model, fresh, err);
}

sl_status eng_engine_replace(eng_engine *engine, eng_model *model, eng_model *fresh,
                             uint32_t weights_version, sl_err *err)
{
    eng_model_exchange(model, fresh);
    engine->ops->reloaded(engine);
    return engine_rekey(engine, weights_version, err);
}

sl_status eng_engine_reload(eng_engine *engine, eng_model *model, eng_model *fresh,
                            uint32_t weights_version, sl_err *err)
{
    if (engine->ranks)
        return sl_fail(err, SL_UNSUPPORTED,
                       "one rank of several: all would have to change at once");
    SL_TRY(eng_engine_check_reload(engine, model, fresh, weights_version, err));
    uint32_t old_version = engine->weights_version;
    sl_status status = eng_engine_replace(engine, model, fresh, weights_version, err);
    if (sl_is_ok(status))
        return status;
    sl_err again;
    sl_status back = eng_engine_replace(engine, model, fresh, old_version, &again);
    (void)back; /* the old ones serve, without the tier if need be */
    return status;
}

void eng_engine_drop_kept(eng_engine *engine)
{
    eng_pages_drop_kept(&engine->pages);
    if (engine->tier)
        eng_tier_clear(engine->tier);
}

const mdl_routing_layout *eng_engine_routing(const eng_engine *engine)
{
    return &engine->routing;
}

void eng_engine_set_tap(eng_engine *engine, const eng_tap *tap)
{
    engine->tap = tap;
}

void eng_sample(eng_engine *engine, float *logits, const mdl_sampling *params,
                const uint32_t *context, uint32_t context_count, uint32_t prompt_count,
                uint32_t position, const uint32_t *allowed, eng_sampled *out_sampled)
{
    eng_sampler_draw(&engine->sampler, logits, params, context, context_count, prompt_count,
                     position, allowed, out_sampled);
}

void eng_score(eng_engine *engine, float *logits, uint32_t id, uint32_t alternatives, uint8_t *out)
{
    eng_sampler_score(&engine->sampler, logits, id, alternatives, out);
}

uint32_t eng_sample_mask(eng_engine *engine, uint8_t *out)
{
    return eng_sampler_mask(&engine->sampler, out);
}
