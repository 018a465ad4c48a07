/* Opens model and engine, runs the prompt, draws tokens until EOS or the limit.
 *
 * Thread: main. The order of work is the cluster's: chunks, then one token at a time (with drafts
 * when asked for), the token at position p drawn with p's own random number. */
#include "engine/run/generate.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "engine/cache.h"
#include "engine/run/dump.h"
#include "model/masks.h"
#include "engine/run/progress.h"

typedef struct session {
    const eng_run_generate_args *args;
    eng_run_result *result;
    eng_model *model;
    eng_engine *engine;
    eng_sequence *sequence;
    eng_run_dump *dump; /* NULL without --dump */
    mdl_detok detok;
    mdl_masks *masks;
    mdl_cursor cursor;
    uint32_t capacity; /* tokens that ids and the sequence hold */
    uint32_t max_tokens;
    uint32_t draft_depth;
    uint32_t last_row, last_wanted; /* of the last step of the prompt: of all, of wanted rows */
    eng_draw how;
} session;

/* ---- set-up ---- */

static sl_status session_open_engine(session *run, sl_err *err)
{
    const eng_run_options *options = run->args->options;
    bool drafts = !options->dump && eng_model_shape(run->model)->mtp_layer_count > 0;
    run->draft_depth = drafts ? (uint32_t)options->mtp_depth : 0;
    int rows_max = (int)options->chunk_tokens;
    if (rows_max < 1 + (int)run->draft_depth)
        rows_max = 1 + (int)run->draft_depth;
    eng_options engine_options = {
        .kv_bytes = options->kv_memory,
        .sequences_max = 1,
        .rows_max = rows_max,
        .context_max = run->capacity,
        .threads = (int)options->threads,
    };
    if (!options->kv_memory) /* as many pages as this one sequence binds */
        engine_options.kv_bytes = eng_model_kv_bytes(run->model, run->capacity);
    SL_TRY(eng_engine_create(run->model, &engine_options, &run->engine, err));
    run->result->cache_bytes = engine_options.kv_bytes;
    run->result->scratch_bytes = eng_engine_scratch_bytes(run->engine);
    return eng_sequence_open(run->engine, run->capacity, &run->sequence, err);
}

/* Default: the last three prompt positions. */
static sl_status session_open_dump(session *run, sl_err *err)
{
    const eng_run_options *options = run->args->options;
    const mdl_shape *shape = eng_model_shape(run->model);
    uint32_t n = run->result->prompt_count, count = 0;
    uint32_t *positions = NULL;
    if (options->dump_positions) {
        SL_TRY(eng_run_parse_list("dump-positions", options->dump_positions, 65536, &positions,
                                  &count, err));
    } else {
        positions = sl_alloc(3, sizeof(uint32_t), "dump positions");
        for (uint32_t back = n < 3 ? n : 3; back > 0; back--)
            positions[count++] = n - back;
    }
    run->dump = eng_run_dump_create(&(eng_run_dump_options){
        .shape = shape,
        .plain = options->numerics == ENG_NUMERICS_PLAIN,
        .layer_end = (uint32_t)shape->layer_count,
        .prompt_count = n,
        .rows_max = run->capacity,
        .positions = positions,
        .position_count = count,
    });
    sl_free(positions);
    eng_engine_set_tap(run->engine, eng_run_dump_tap(run->dump));
    return sl_ok();
}

static sl_status session_set_ids(session *run, const uint32_t *forced, uint32_t forced_count,
                                 sl_err *err)
{
    const mdl_ids *prompt = run->args->prompt;
    eng_run_result *result = run->result;
    uint64_t given = (uint64_t)prompt->count + forced_count;
    uint64_t limit = (uint64_t)eng_model_shape(run->model)->position_max;
    if (given >= limit)
        return sl_fail(err, SL_TOO_LARGE, "a prompt of %llu tokens: the model has %llu positions",
                       (unsigned long long)given, (unsigned long long)limit);
    uint64_t left = limit - given;
    run->max_tokens = (uint32_t)run->args->sampling->max_tokens;
    if (run->max_tokens == 0 || run->max_tokens > left)
        run->max_tokens = (uint32_t)left;
    run->capacity = (uint32_t)given + run->max_tokens;
    result->ids = sl_alloc(run->capacity, sizeof(uint32_t), "run ids");
    for (size_t i = 0; i < prompt->count; i++)
        result->ids[i] = (uint32_t)prompt->data[i];
    for (uint32_t i = 0; i < forced_count; i++)
        result->ids[prompt->count + i] = forced[i];
    result->prompt_count = (uint32_t)prompt->count;
    result->forced_count = forced_count;
    result->count = (uint32_t)given;
    if (run->args->sampling->logprob_count >= 0)
        result->sampled = sl_alloc(run->max_tokens, sizeof(eng_sampled), "run logprobs");
    return sl_ok();
}

static void session_constrain(session *run)
{
    if (!run->args->grammar)
        return;
    run->masks = mdl_masks_create(run->args->tokenizer,
                                  (uint32_t)eng_model_shape(run->model)->vocab_size, 0);
    run->cursor.matcher = mdl_matcher_create(run->args->grammar, 0);
}

static sl_status session_open(session *run, sl_err *err)
{
    const eng_run_options *options = run->args->options;
    eng_model_options model_options = {
        .dir = options->model,
        .numerics = (eng_numerics)options->numerics,
        .backend = (eng_backend)options->backend,
        .cuda_object = options->cuda_library,
        .threads = (int)options->threads,
        .progress = eng_run_show_progress,
    };
    SL_TRY(eng_model_open(&model_options, &run->model, err));
    run->result->shape = *eng_model_shape(run->model);
    uint32_t *forced = NULL, forced_count = 0;
    if (options->force_ids)
        SL_TRY(eng_run_parse_list("force-ids", options->force_ids, 1u << 20, &forced, &forced_count,
                                  err));
    sl_status status = session_set_ids(run, forced, forced_count, err);
    sl_free(forced);
    SL_TRY(status);
    session_constrain(run);
    SL_TRY(session_open_engine(run, err));
    mdl_detok_init(&run->detok, run->args->tokenizer);
    if (options->prompt_logprobs >= 0 || options->prompt_routing)
        run->result->prompt_rows = eng_prompt_rows_create(
            &(eng_prompt_want){0, run->result->prompt_count, options->prompt_routing,
                               (int32_t)options->prompt_logprobs},
            eng_engine_routing(run->engine));
    return options->dump ? session_open_dump(run, err) : sl_ok();
}

static void session_close(session *run)
{
    eng_run_dump_destroy(run->dump);
    if (run->sequence)
        eng_sequence_close(run->sequence);
    eng_engine_destroy(run->engine);
    eng_model_close(run->model);
    mdl_matcher_destroy(run->cursor.matcher);
    mdl_masks_destroy(run->masks);
}

/* ---- running ---- */

/* What may follow the ids and `row` drafts behind them. */
static const uint32_t *session_may_follow(void *context, uint32_t row)
{
    session *run = context;
    const eng_run_result *result = run->result;
    const mdl_cursor_ahead ahead = {
        .generated = result->ids + result->prompt_count,
        .count = result->count - result->prompt_count,
        .drafts = result->ids + result->count,
        .draft_count = row,
    };
    return mdl_cursor_mask_ahead(&run->cursor, run->masks, &ahead);
}

/* NULL: the host draws, since it shows more than tokens. */
static const eng_draw *session_draw_of(session *run)
{
    run->how = (eng_draw){
        .params = run->args->sampling,
        .ids = run->result->ids,
        .prompt_count = run->result->prompt_count,
        .allowed = run->cursor.matcher ? session_may_follow : NULL,
        .context = run,
    };
    return run->dump || run->args->options->handout || run->result->prompt_rows ? NULL : &run->how;
}

/* Forwards ids [from, from + count); what follows the last is drawn from row run->last_wanted. */
static sl_status session_step(session *run, uint32_t from, uint32_t count, sl_err *err)
{
    eng_span span = {
        .sequence = run->sequence,
        .tokens = run->result->ids + from,
        .token_count = count,
        .logits = run->dump ? ENG_LOGITS_ALL : ENG_LOGITS_LAST,
        .routing = run->args->options->handout,
        .draw = from + count == run->result->count ? session_draw_of(run) : NULL,
    };
    eng_prompt_ask(run->result->prompt_rows, from, &span);
    SL_TRY(eng_step(run->engine, &span, 1, NULL, NULL, err));
    for (uint32_t i = 0; run->dump && i < count; i++)
        eng_run_dump_logits(run->dump, eng_step_logits(run->engine, i));
    eng_prompt_note(run->result->prompt_rows, run->engine, &span, from, 0, 0, run->result->ids);
    run->last_wanted = span.logits == ENG_LOGITS_ALL ? count - 1 : 0;
    run->last_row = count - 1;
    return sl_ok();
}

static sl_status session_prefill(session *run, sl_err *err)
{
    const eng_run_result *result = run->result;
    uint32_t chunk = (uint32_t)run->args->options->chunk_tokens, at = 0;
    while (at < result->prompt_count) {
        uint32_t count = result->prompt_count - at;
        count = count < chunk ? count : chunk;
        SL_TRY(session_step(run, at, count, err));
        at += count;
    }
    for (; at < result->count; at++) /* forced tokens, as decode feeds them */
        SL_TRY(session_step(run, at, 1, err));
    return sl_ok();
}

static bool is_stop(const session *run, uint32_t id)
{
    const mdl_sampling *sampling = run->args->sampling;
    if (id == (uint32_t)eng_model_shape(run->model)->eos_id)
        return !sampling->ignore_eos;
    for (int32_t i = 0; i < sampling->stop_id_count; i++) {
        if (sampling->stop_ids[i] >= 0 && (uint32_t)sampling->stop_ids[i] == id)
            return true;
    }
    return false;
}

static void session_show(session *run, size_t from)
{
    const sl_buf *text = &run->result->text;
    if (run->args->on_text && text->size > from)
        run->args->on_text(run->args->context, text->data + from, text->size - from);
}

/* What the token just drawn from row `row` of the step hands out. */
static void session_hand_out(session *run, uint32_t row)
{
    eng_run_result *result = run->result;
    uint32_t vocab = (uint32_t)eng_model_shape(run->model)->vocab_size;
    uint8_t *mask = sl_alloc(1, mdl_mask_bytes_max(vocab), "run mask");
    sl_buf_append(&result->masks, mask, eng_sample_mask(run->engine, mask));
    sl_free(mask);
    sl_buf_append(&result->routing, eng_step_routing(run->engine, row),
                  eng_engine_routing(run->engine)->row_bytes);
}

/* The token behind wanted row `wanted` of the step. */
static sl_status session_sample(session *run, uint32_t wanted, eng_sampled *out_sampled,
                                sl_err *err)
{
    const eng_run_result *result = run->result;
    const uint32_t *allowed = NULL;
    const eng_sampled *drawn = eng_step_drawn(run->engine, wanted);
    if (drawn) {
        *out_sampled = *drawn;
        return sl_ok();
    }
    float *logits = eng_step_logits(run->engine, wanted);
    SL_TRY(eng_engine_check(run->engine, err));
    if (run->cursor.matcher)
        SL_TRY(mdl_cursor_mask(&run->cursor, run->masks, result->ids + result->prompt_count,
                               result->count - result->prompt_count, &allowed, err));
    eng_sample(run->engine, logits, run->args->sampling, result->ids, result->count,
               result->prompt_count, result->count, allowed, out_sampled);
    return sl_ok();
}

/* Draws the next token behind wanted row `wanted`, which is row `row` of the step. */
static sl_status session_draw(session *run, uint32_t wanted, uint32_t row, bool *out_goes_on,
                              sl_err *err)
{
    eng_run_result *result = run->result;
    uint32_t made = result->count - result->prompt_count - result->forced_count;
    eng_sampled sampled;
    SL_TRY(session_sample(run, wanted, &sampled, err));
    if (run->args->options->handout)
        session_hand_out(run, row);
    if (result->sampled)
        result->sampled[made] = sampled;
    result->ids[result->count++] = sampled.id;
    if (is_stop(run, sampled.id)) {
        result->finish_reason = "stop";
        *out_goes_on = false;
        return sl_ok();
    }
    size_t from = result->text.size;
    mdl_detok_push(&run->detok, (int32_t)sampled.id, &result->text);
    session_show(run, from);
    *out_goes_on = made + 1 < run->max_tokens;
    if (!*out_goes_on)
        result->finish_reason = "length";
    return sl_ok();
}

static const uint32_t *session_allowed(void *context, const eng_drafts *drafts, uint32_t at)
{
    session *run = context;
    const eng_run_result *result = run->result;
    const mdl_cursor_ahead ahead = {
        .generated = result->ids + result->prompt_count,
        .count = result->count - result->prompt_count,
        .drafts = drafts->tokens,
        .draft_count = at,
    };
    return mdl_cursor_mask_ahead(&run->cursor, run->masks, &ahead);
}

/* Puts drafts of the tokens to come behind the ids. */
static sl_status session_draft(session *run, uint32_t *out_count, sl_err *err)
{
    eng_run_result *result = run->result;
    uint32_t left = run->capacity - result->count;
    eng_drafts drafts = {
        .sequence = run->sequence,
        .next_token = result->ids[result->count - 1],
        .count = run->draft_depth < left - 1 ? run->draft_depth : left - 1,
        .allowed = run->cursor.matcher ? session_allowed : NULL,
        .context = run,
        .sampling = run->args->sampling,
        .ids = result->ids,
        .id_count = result->count,
        .prompt_count = result->prompt_count,
    };
    if (drafts.count > 0)
        SL_TRY(eng_draft_many(run->engine, &drafts, 1, err));
    memcpy(result->ids + result->count, drafts.tokens, drafts.count * sizeof(uint32_t));
    *out_count = drafts.count;
    return sl_ok();
}

/* One step, and draws for as long as the drafts were right. */
static sl_status session_advance(session *run, bool *out_goes_on, sl_err *err)
{
    eng_run_result *result = run->result;
    uint32_t drafted;
    SL_TRY(session_draft(run, &drafted, err));
    eng_span span = {
        .sequence = run->sequence,
        .tokens = result->ids + result->count - 1,
        .token_count = 1 + drafted,
        .logits = ENG_LOGITS_ALL,
        .routing = run->args->options->handout,
        .draw = session_draw_of(run),
    };
    SL_TRY(eng_step(run->engine, &span, 1, NULL, NULL, err));
    result->steps++;
    result->drafted += drafted;
    if (run->dump)
        eng_run_dump_logits(run->dump, eng_step_logits(run->engine, 0));
    bool goes_on, right;
    uint32_t row = 0;
    do {
        uint32_t draft = row < drafted ? result->ids[result->count] : 0;
        SL_TRY(session_draw(run, row, row, &goes_on, err));
        right = row < drafted && result->ids[result->count - 1] == draft;
        result->accepted += right;
        row++;
    } while (goes_on && right);
    eng_sequence_truncate(run->sequence, result->count - 1);
    *out_goes_on = goes_on;
    return sl_ok();
}

static sl_status session_decode(session *run, sl_err *err)
{
    bool goes_on;
    SL_TRY(session_draw(run, run->last_wanted, run->last_row, &goes_on, err));
    while (goes_on)
        SL_TRY(session_advance(run, &goes_on, err));
    size_t from = run->result->text.size;
    mdl_detok_finish(&run->detok, &run->result->text);
    session_show(run, from);
    return sl_ok();
}

static sl_status session_write_dump(session *run, sl_err *err)
{
    const eng_run_result *result = run->result;
    uint32_t draft;
    if (eng_model_shape(run->model)->mtp_layer_count > 0)
        SL_TRY(eng_draft(run->engine, &run->sequence, &result->ids[result->count - 1], 1, &draft,
                         err));
    if (run->args->options->numerics != ENG_NUMERICS_PLAIN)
        eng_run_dump_cache(run->dump, run->engine, run->sequence);
    return eng_run_dump_write(run->dump, run->args->options->dump, err);
}

static sl_status session_run(session *run, sl_err *err)
{
    sl_time_ns begin = sl_now_ns();
    SL_TRY(session_prefill(run, err));
    sl_time_ns prefilled = sl_now_ns();
    SL_TRY(session_decode(run, err));
    run->result->prefill_ms = (double)(prefilled - begin) / SL_MS_NS;
    run->result->decode_ms = (double)(sl_now_ns() - prefilled) / SL_MS_NS;
    return run->dump ? session_write_dump(run, err) : sl_ok();
}

sl_status eng_run_generate(const eng_run_generate_args *args, eng_run_result *result, sl_err *err)
{
    session run = {.args = args, .result = result};
    sl_buf_init(&result->text, 0);
    sl_buf_init(&result->routing, 0);
    sl_buf_init(&result->masks, 0);
    sl_status status = session_open(&run, err);
    if (sl_is_ok(status))
        status = session_run(&run, err);
    session_close(&run);
    return status;
}

void eng_run_result_fini(eng_run_result *result)
{
    sl_free(result->ids);
    sl_free(result->sampled);
    sl_buf_fini(&result->text);
    sl_buf_fini(&result->routing);
    sl_buf_fini(&result->masks);
    eng_prompt_rows_destroy(result->prompt_rows);
}
