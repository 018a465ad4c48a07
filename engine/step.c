/* The forward step: many sequences' spans as one batch of rows, appended to their caches.
 *
 * Thread: the engine thread. Allocates nothing; on failure no sequence has moved and the rows that
 * were written are zero again. */
#include "base/assert.h"
#include "base/fault.h"
#include "engine/mtp.h"
#include "engine/ranks.h"

/* ---- checks ---- */

static uint32_t span_wanted(const eng_span *span)
{
    if (span->logits == ENG_LOGITS_NONE)
        return 0;
    return span->logits == ENG_LOGITS_ALL ? span->token_count : 1;
}

static sl_status span_check(const eng_engine *engine, const eng_span *span, uint32_t index,
                            sl_err *err)
{
    const eng_sequence *sequence = span->sequence;
    sl_assert(sequence->open && !sequence->loading && sequence->engine == engine);
    if (span->token_count == 0)
        return sl_fail(err, SL_INVALID, "span %u has no tokens", index);
    if (sequence->in_step)
        return sl_fail(err, SL_INVALID, "span %u: its sequence is in the step twice", index);
    uint32_t room = eng_sequence_room(sequence);
    if (span->token_count > room - sequence->length)
        return sl_fail(err, SL_TOO_LARGE,
                       "span %u: %u tokens after %u, the sequence has room for %u", index,
                       span->token_count, sequence->length, room);
    for (uint32_t i = 0; i < span->token_count; i++) {
        if (span->tokens[i] >= (uint32_t)engine->model->shape.vocab_size)
            return sl_fail(err, SL_INVALID, "token id %u at position %u: the vocabulary has %d",
                           span->tokens[i], sequence->length + i, engine->model->shape.vocab_size);
    }
    return sl_ok();
}

static sl_status spans_check(const eng_engine *engine, const eng_span *spans, uint32_t span_count,
                             sl_err *err)
{
    if (!engine->model->whole)
        return sl_fail(err, SL_UNSUPPORTED, "the model was opened with some layers only");
    if (span_count == 0 || span_count > ENG_SPANS_MAX)
        return sl_fail(err, SL_INVALID, "%u spans in a step, 1 to %u are possible", span_count,
                       ENG_SPANS_MAX);
    uint64_t rows = 0;
    sl_status status = sl_ok();
    uint32_t checked = 0;
    for (; checked < span_count && sl_is_ok(status); checked++) {
        status = span_check(engine, &spans[checked], checked, err);
        if (!sl_is_ok(status))
            break;
        spans[checked].sequence->in_step = true;
        rows += spans[checked].token_count;
    }
    for (uint32_t i = 0; i < checked; i++)
        spans[i].sequence->in_step = false;
    if (sl_is_ok(status) && rows > engine->rows_max)
        status = sl_fail(err, SL_TOO_LARGE, "%llu rows in a step, at most %u",
                         (unsigned long long)rows, engine->rows_max);
    return status;
}

/* ---- batch ---- */

/* Fills tokens, positions, rows and the list of rows whose logits are wanted. */
static uint32_t batch_fill(eng_engine *engine, const eng_span *spans, uint32_t span_count)
{
    eng_scratch *s = &engine->s;
    uint32_t row = 0, wanted = 0;
    engine->step_routing = false;
    for (uint32_t i = 0; i < span_count; i++) {
        const eng_span *span = &spans[i];
        eng_sequence *sequence = span->sequence;
        sequence->step_id = engine->step_id;
        sequence->step_row = row;
        sequence->step_first = sequence->length;
        for (uint32_t t = 0; t < span->token_count; t++, row++) {
            s->tokens[row] = span->tokens[t];
            s->positions[row] = sequence->length + t;
            s->rows[row] = (krn_row){.blocks = sequence->pages, .slot = sequence->length + t};
            if (span->token_count - t <= span_wanted(span))
                s->wanted[wanted++] = row;
        }
        engine->step_routing = engine->step_routing || span->routing;
    }
    engine->step_logits = wanted;
    engine->step_rows = row;
    return row;
}

/* MTP rows of the step: (h of the token before, the token) at the token's slot; none for a
 * sequence's first token. */
static uint32_t batch_fill_mtp(eng_engine *engine, const eng_span *spans, uint32_t span_count)
{
    eng_scratch *s = &engine->s;
    size_t bytes = eng_hidden_bytes(engine);
    uint32_t count = 0;
    for (uint32_t i = 0; i < span_count; i++) {
        const eng_sequence *sequence = spans[i].sequence;
        for (uint32_t t = 0; t < spans[i].token_count; t++) {
            uint32_t slot = sequence->length + t;
            if (slot == 0)
                continue;
            const void *before = t > 0 ? (uint8_t *)s->h + (sequence->step_row + t - 1) * bytes
                                       : eng_sequence_h_at(sequence, slot);
            s->moves[count] = (eng_move){(uint8_t *)s->mtp_h + count * bytes, before};
            s->mtp_tokens[count] = spans[i].tokens[t];
            s->mtp_positions[count] = slot - 1;
            s->mtp_rows[count] = (krn_row){.blocks = sequence->pages, .slot = slot, .first = 1};
            count++;
        }
    }
    if (count > 0)
        engine->ops->move(engine, count, bytes, false);
    return count;
}

/* h_final of the last token of each page that the step wrote to. */
static void batch_store_h(eng_engine *engine, const eng_span *spans, uint32_t span_count)
{
    size_t bytes = eng_hidden_bytes(engine);
    uint32_t count = 0;
    for (uint32_t i = 0; i < span_count; i++) {
        eng_sequence *sequence = spans[i].sequence;
        uint32_t end = sequence->length + spans[i].token_count;
        for (uint32_t length = sequence->length + 1; length <= end; length++) {
            if (length % ENG_PAGE_TOKENS != 0 && length != end)
                continue;
            uint32_t row = sequence->step_row + (length - 1 - sequence->length);
            engine->s.moves[count++] = (eng_move){eng_sequence_h_at(sequence, length),
                                                  (uint8_t *)engine->s.h + row * bytes};
        }
    }
    engine->ops->move(engine, count, bytes, true); /* over older ones */
}

/* A power of two over all slots that rows see. */
static uint32_t slots_bound(const krn_row *rows, uint32_t count)
{
    uint32_t bound = ENG_PAGE_TOKENS;
    for (uint32_t i = 0; i < count; i++)
        while (bound <= rows[i].slot)
            bound *= 2;
    return bound;
}

/* ---- draws ---- */

/* Wanted row `index` of the span, row `row` of all; whether the backend will draw it. */
static bool draw_prepare(eng_engine *engine, const eng_span *span, uint32_t index, uint32_t row)
{
    const eng_draw *draw = span->draw;
    const uint32_t *allowed = NULL;
    if (draw && draw->allowed)
        allowed = draw->allowed(draw->context, index);
    if (!draw || (draw->allowed && !allowed))
        return engine->ops->draw_row(engine, row, NULL, NULL, 0, 0, NULL, false);
    uint32_t known = span->sequence->length + span->token_count - span_wanted(span) + index + 1;
    return engine->ops->draw_row(engine, row, draw->params, draw->ids, known, draw->prompt_count,
                                 allowed, false);
}

static void draws_prepare(eng_engine *engine, const eng_span *spans, uint32_t span_count)
{
    uint32_t row = 0;
    engine->step_drawn = 0;
    for (uint32_t i = 0; i < span_count && engine->ops->draw_row; i++)
        for (uint32_t at = 0; at < span_wanted(&spans[i]); at++)
            engine->step_drawn += draw_prepare(engine, &spans[i], at, row++);
}

const eng_sampled *eng_step_drawn(eng_engine *engine, uint32_t row)
{
    sl_assert(row < engine->step_logits);
    bool drawn = engine->step_drawn > 0 && engine->ops->drawn(engine, row, &engine->sampled);
    return drawn ? &engine->sampled : NULL;
}

static eng_run_shape batch_shape(const eng_engine *engine, const eng_batch *batch,
                                 const eng_span *spans, uint32_t span_count, bool plain)
{
    eng_run_shape shape = {
        .plain = plain || engine->tap || engine->step_routing,
        .rows = batch->row_count,
        .logits = engine->step_drawn < engine->step_logits ? engine->step_logits : 0,
        .drawn = engine->step_drawn > 0 ? engine->step_logits : 0,
        .mtp_rows = engine->model->mtp ? batch->row_count : 0,
        .scored = eng_batch_scored(engine, batch),
        .slots = slots_bound(batch->rows, batch->row_count),
    };
    for (uint32_t i = 0; i < span_count; i++) {
        uint32_t length = spans[i].sequence->length, end = length + spans[i].token_count;
        shape.mtp_rows -= engine->model->mtp && length == 0;
        shape.stored += end / ENG_PAGE_TOKENS - length / ENG_PAGE_TOKENS;
        shape.stored += end % ENG_PAGE_TOKENS != 0;
    }
    return shape;
}

/* ---- step ---- */

static bool layer_ends_group(const eng_engine *engine, uint32_t layer)
{
    return (layer + 1) % engine->layout.group_layers == 0 && layer + 1 < engine->layout.layer_count;
}

/* Whom to tell of groups of layers that are done. */
typedef struct group_watcher {
    eng_engine *engine;
    eng_group_fn fn; /* may be NULL */
    void *context;
} group_watcher;

static bool layer_done(void *context, uint32_t layer)
{
    const group_watcher *watcher = context;
    eng_engine *engine = watcher->engine;
    if (!watcher->fn || !layer_ends_group(engine, layer))
        return true;
    if (!engine->ops->finish(engine))
        return false;
    watcher->fn(watcher->context, layer / engine->layout.group_layers);
    return true;
}

static bool step_layers(eng_engine *engine, const eng_batch *batch, group_watcher *watcher)
{
    uint32_t count = engine->model->layer_end - engine->model->layer_first;
    for (uint32_t layer = 0; layer < count; layer++) {
        if (eng_ranks_split(engine))
            return eng_ranks_layers(engine, batch, layer, layer_done, watcher);
        if (!eng_layer_run(engine, layer, batch, layer == 0) || !layer_done(watcher, layer))
            return false;
    }
    return true;
}

static bool step_main(eng_engine *engine, const eng_batch *batch, eng_group_fn on_group,
                      void *context)
{
    eng_scratch *s = &engine->s;
    const eng_model *model = engine->model;
    uint32_t rows = batch->row_count;
    group_watcher watcher = {.engine = engine, .fn = on_group, .context = context};
    engine->ops->begin(engine, batch);
    engine->ops->embed(engine, batch, s->x);
    if (!step_layers(engine, batch, &watcher))
        return false;
    if (!engine->ops->norm(engine, s->x, s->res, model->final_norm, rows,
                           (uint32_t)model->shape.hidden_size, s->h, NULL))
        return false;
    if (engine->tap && engine->tap->normed)
        engine->tap->normed(engine->tap->context, s->positions, rows,
                            engine->ops->read(engine, s->h, rows * eng_hidden_bytes(engine)));
    return true;
}

static void bring_logits(eng_engine *engine, uint32_t rows)
{
    uint32_t most = engine->host_logit_rows;
    engine->logits_brought = rows < most ? rows : most;
    if (engine->logits_brought > 0)
        engine->ops->logits_out(engine, engine->logits_brought);
}

static bool step_logits(eng_engine *engine)
{
    eng_scratch *s = &engine->s;
    if (engine->step_logits == 0)
        return true;
    engine->ops->linear_f32(engine, &engine->model->head, s->h, s->wanted, engine->step_logits,
                            s->logits);
    if (engine->step_drawn > 0)
        engine->ops->draw(engine, s->logits, engine->step_logits);
    bring_logits(engine, engine->step_drawn < engine->step_logits ? engine->step_logits : 0);
    return engine->ops->finite(
        engine, s->logits, (size_t)engine->step_logits * (size_t)engine->model->shape.vocab_size);
}

static bool step_run(eng_engine *engine, const eng_span *spans, uint32_t span_count,
                     eng_group_fn on_group, void *context)
{
    const eng_scratch *s = &engine->s;
    const eng_batch batch = {
        .row_count = batch_fill(engine, spans, span_count),
        .tokens = s->tokens,
        .rows = s->rows,
        .table = s->table,
        .positions = s->positions,
    };
    draws_prepare(engine, spans, span_count);
    const eng_run_shape shape = batch_shape(engine, &batch, spans, span_count, on_group != NULL);
    engine->ops->start(engine, &shape);
    if (!step_main(engine, &batch, on_group, context))
        return false;
    uint32_t mtp_rows = engine->model->mtp ? batch_fill_mtp(engine, spans, span_count) : 0;
    if (mtp_rows > 0 && !eng_mtp_run(engine, mtp_rows, engine->tap && engine->tap->draft))
        return false;
    if (!step_logits(engine))
        return false;
    batch_store_h(engine, spans, span_count);
    return engine->ops->finish(engine);
}

static uint32_t span_rows(const eng_span *spans, uint32_t span_count)
{
    uint32_t rows = 0;
    for (uint32_t i = 0; i < span_count; i++)
        rows += spans[i].token_count;
    return rows;
}

static sl_status step_fault(const eng_engine *engine, sl_err *err)
{
    SL_TRY(eng_engine_check(engine, err));
    return sl_fail(err, SL_INTERNAL, "layer %u: NaN or infinity in %s", engine->step_layer,
                   engine->fault);
}

/* A step that is run again tells of each group once. */
typedef struct told_groups {
    eng_group_fn on_group;
    void *context;
    uint32_t count;
} told_groups;

static void tell_group(void *context, uint32_t group)
{
    told_groups *told = context;
    if (group < told->count)
        return;
    told->count = group + 1;
    told->on_group(told->context, group);
}

sl_status eng_step(eng_engine *engine, const eng_span *spans, uint32_t span_count,
                   eng_group_fn on_group, void *context, sl_err *err)
{
    SL_TRY(spans_check(engine, spans, span_count, err));
    if (sl_fault("engine.device"))
        engine->broken = "fault site engine.device";
    SL_TRY(eng_engine_check(engine, err));
    engine->step_id++;
    told_groups told = {.on_group = on_group, .context = context};
    bool ok;
    do {
        ok = eng_ranks_begin(engine, ENG_WISH_STEP, span_rows(spans, span_count)) &&
             step_run(engine, spans, span_count, on_group ? tell_group : NULL, &told);
        eng_ranks_end(engine);
    } while (!ok && eng_ranks_recover(engine)); /* the same rows again give the same bytes */
    for (uint32_t i = 0; i < span_count; i++) {
        eng_sequence *sequence = spans[i].sequence;
        uint32_t end = sequence->length + spans[i].token_count;
        if (ok)
            eng_sequence_set_length(sequence, end);
        else
            eng_sequence_clear_rows(sequence, sequence->length, end);
    }
    eng_engine_settle(engine);
    if (!ok) {
        engine->step_logits = 0;
        return step_fault(engine, err);
    }
    if (on_group)
        on_group(context, engine->layout.group_count - 1);
    return sl_ok();
}

/* Row `row` of s.logits, of which `logits_out` may have brought the first ones to the host. */
static float *logits_row(eng_engine *engine, uint32_t row)
{
    size_t vocab = (size_t)engine->model->shape.vocab_size;
    if (row < engine->logits_brought)
        return engine->host_logits + row * vocab;
    return engine->ops->read(engine, engine->s.logits + row * vocab, vocab * sizeof(float));
}

float *eng_step_logits(eng_engine *engine, uint32_t row)
{
    sl_assert(row < engine->step_logits);
    return logits_row(engine, row);
}

const uint8_t *eng_step_routing(const eng_engine *engine, uint32_t row)
{
    sl_assert(engine->step_routing && row < engine->step_rows);
    return engine->routing_rows + (size_t)row * engine->routing.row_bytes;
}

float *eng_head_logits(eng_engine *engine, const eng_sequence *sequence)
{
    sl_assert(engine->model->whole && sequence->length > 0);
    size_t bytes = (size_t)engine->model->shape.vocab_size * sizeof(float);
    engine->ops->linear_f32(engine, &engine->model->head,
                            eng_sequence_h_at(sequence, sequence->length), NULL, 1,
                            engine->s.head_logits);
    return engine->ops->read(engine, engine->s.head_logits, bytes);
}

const eng_sampled *eng_head_drawn(eng_engine *engine, const eng_sequence *sequence,
                                  const eng_draw *draw)
{
    sl_assert(engine->model->whole && sequence->length > 0);
    const uint32_t *allowed = draw->allowed ? draw->allowed(draw->context, 0) : NULL;
    if (!engine->ops->draw_row || (draw->allowed && !allowed) ||
        !engine->ops->draw_row(engine, 0, draw->params, draw->ids, sequence->length,
                               draw->prompt_count, allowed, false))
        return NULL;
    engine->step_logits = 0; /* what they drew is written over */
    engine->ops->linear_f32(engine, &engine->model->head,
                            eng_sequence_h_at(sequence, sequence->length), NULL, 1,
                            engine->s.head_logits);
    engine->ops->draw(engine, engine->s.head_logits, 1);
    bool drawn = engine->ops->finish(engine) && engine->ops->drawn(engine, 0, &engine->sampled);
    return drawn ? &engine->sampled : NULL;
}

/* ---- drafts ---- */

static sl_status draft_check(const eng_engine *engine, const eng_sequence *sequence, uint32_t token,
                             uint32_t wanted, uint32_t index, sl_err *err)
{
    sl_assert(sequence->open && sequence->engine == engine && sequence->length > 0);
    if (wanted == 0 || wanted > ENG_DRAFTS_MAX)
        return sl_fail(err, SL_INVALID, "draft %u: %u drafts, 1 to %u are possible", index, wanted,
                       ENG_DRAFTS_MAX);
    if (wanted > eng_sequence_room(sequence) - sequence->length)
        return sl_fail(err, SL_TOO_LARGE, "draft %u: the sequence is full", index);
    if (token >= (uint32_t)engine->model->shape.vocab_size)
        return sl_fail(err, SL_INVALID, "draft %u: token id %u", index, token);
    return sl_ok();
}

static sl_status drafts_check(const eng_engine *engine, uint32_t count, sl_err *err)
{
    if (!engine->model->mtp)
        return sl_fail(err, SL_UNSUPPORTED, "the model has no MTP layer");
    if (count == 0 || count > engine->rows_max)
        return sl_fail(err, SL_INVALID, "drafts for %u sequences, 1 to %u are possible", count,
                       engine->rows_max);
    return sl_ok();
}

/* Row `row` of the MTP layer: (h, token) at slot `slot`. */
static void draft_row(eng_engine *engine, uint32_t row, const eng_sequence *sequence, const void *h,
                      uint32_t token, uint32_t slot)
{
    eng_scratch *s = &engine->s;
    s->moves[row] = (eng_move){(uint8_t *)s->mtp_h + row * eng_hidden_bytes(engine), h};
    s->mtp_tokens[row] = token;
    s->mtp_positions[row] = slot - 1;
    s->mtp_rows[row] = (krn_row){.blocks = sequence->pages, .slot = slot, .first = 1};
}

/* What a run of the layer gives beside the likeliest ids. */
typedef struct draft_wants {
    bool logits; /* on the host, for logits_row */
    bool drawn;  /* rows were prepared to be drawn */
} draft_wants;

static bool draft_layer(eng_engine *engine, uint32_t rows, draft_wants wants, uint32_t *out_drafts)
{
    const eng_batch batch = {.row_count = rows, .rows = engine->s.mtp_rows};
    const eng_run_shape shape = {
        .plain = engine->tap != NULL,
        .drafts = true,
        .rows = rows,
        .logits = wants.logits ? rows : 0,
        .drawn = wants.drawn ? rows : 0,
        .scored = eng_batch_scored(engine, &batch),
        .slots = slots_bound(batch.rows, rows),
    };
    engine->ops->start(engine, &shape);
    engine->ops->move(engine, rows, eng_hidden_bytes(engine), false);
    if (!eng_mtp_run(engine, rows, true))
        return false;
    if (wants.drawn)
        engine->ops->draw(engine, engine->s.logits, rows);
    bring_logits(engine, wants.logits ? rows : 0);
    engine->ops->arg_max(engine, rows, out_drafts);
    return engine->ops->finish(engine);
}

/* out_drafts[i]: what the layer likes best for row i. */
static bool draft_run(eng_engine *engine, uint32_t rows, draft_wants wants, uint32_t *out_drafts)
{
    bool ok;
    do {
        ok = eng_ranks_begin(engine, ENG_WISH_DRAFT, rows) &&
             draft_layer(engine, rows, wants, out_drafts);
        eng_ranks_end(engine);
    } while (!ok && eng_ranks_recover(engine));
    return ok;
}

sl_status eng_draft(eng_engine *engine, eng_sequence *const *sequences, const uint32_t *next_tokens,
                    uint32_t count, uint32_t *out_drafts, sl_err *err)
{
    SL_TRY(drafts_check(engine, count, err));
    for (uint32_t i = 0; i < count; i++) {
        const eng_sequence *sequence = sequences[i];
        SL_TRY(draft_check(engine, sequence, next_tokens[i], 1, i, err));
        draft_row(engine, i, sequence, eng_sequence_h_at(sequence, sequence->length),
                  next_tokens[i], sequence->length);
    }
    engine->step_logits = 0; /* the buffer is used for the drafts' */
    return draft_run(engine, count, (draft_wants){0}, out_drafts) ? sl_ok()
                                                                  : step_fault(engine, err);
}

/* The first draft is drawn by the key of its position, as its token will be: it is right more often
 * so. Behind it the layer sees its own output, and drawing from that misses more than the likeliest
 * does. */
static bool draft_is_drawn(uint32_t at)
{
    return at == 0;
}

/* Does it take more than the arg-max and a mask? */
static bool draft_is_guessed(const eng_drafts *drafts, uint32_t at)
{
    return drafts->sampling &&
           eng_sampler_guesses(drafts->sampling, drafts->id_count + at - drafts->prompt_count,
                               draft_is_drawn(at));
}

/* Row `row` of the next run is for draft number `at`: has it drawn in that run, where it can be.
 * Without sampling, by the mask alone. */
static bool draft_prepare(eng_engine *engine, eng_drafts *drafts, uint32_t at, uint32_t row)
{
    const mdl_sampling *sampling = drafts->sampling;
    if (!sampling || (!drafts->allowed && !draft_is_guessed(drafts, at)))
        return engine->ops->draw_row(engine, row, NULL, NULL, 0, 0, NULL, false);
    const uint32_t *allowed = drafts->allowed ? drafts->allowed(drafts->context, drafts, at) : NULL;
    return engine->ops->draw_row(engine, row, sampling, drafts->ids, drafts->id_count + at,
                                 drafts->prompt_count, allowed, !draft_is_drawn(at));
}

/* Draft number `at` from row `row` of the last run. */
static void draft_take(eng_engine *engine, eng_drafts *drafts, uint32_t at, uint32_t row)
{
    uint32_t *token = &drafts->tokens[at], count = drafts->id_count + at;
    if (engine->step_drawn > 0 && engine->ops->drawn(engine, row, &engine->sampled)) {
        drafts->ids[count] = *token = engine->sampled.id;
        return;
    }
    const uint32_t *allowed = drafts->allowed ? drafts->allowed(drafts->context, drafts, at) : NULL;
    if (draft_is_guessed(drafts, at))
        *token = eng_sampler_guess(&engine->sampler, logits_row(engine, row), drafts->sampling,
                                   drafts->ids, count, drafts->prompt_count, allowed,
                                   draft_is_drawn(at));
    else if (allowed)
        *token = eng_sampler_best(&engine->sampler, logits_row(engine, row), allowed);
    else
        *token = engine->s.draft_ids[row];
    if (drafts->sampling)
        drafts->ids[count] = *token;
}

/* Draft number `at` of all that want so many; before the first, h_final of the sequences, then what
 * the layer gave for the draft before. Rows keep the order of drafts, so row i of the last run is
 * at or behind row i of this one. */
static bool draft_round(eng_engine *engine, eng_drafts *drafts, uint32_t count, uint32_t at)
{
    eng_scratch *s = &engine->s;
    size_t bytes = eng_hidden_bytes(engine);
    uint32_t rows = 0, before = 0, row = 0;
    draft_wants wants = {0};
    engine->step_drawn = 0;
    for (uint32_t i = 0; i < count; i++) {
        const eng_sequence *sequence = drafts[i].sequence;
        uint32_t length = sequence->length;
        if (drafts[i].count > at) {
            bool drawn = engine->ops->draw_row && draft_prepare(engine, &drafts[i], at, row++);
            engine->step_drawn += drawn;
            wants.logits =
                wants.logits || (!drawn && (drafts[i].allowed || draft_is_guessed(&drafts[i], at)));
        }
        if (at > 0 && drafts[i].count >= at) { /* it had a row in the last run */
            const void *h = (uint8_t *)s->head_in + before++ * bytes;
            if (drafts[i].count > at)
                draft_row(engine, rows++, sequence, h, drafts[i].tokens[at - 1], length + at);
        } else if (at == 0) {
            draft_row(engine, rows++, sequence, eng_sequence_h_at(sequence, length),
                      drafts[i].next_token, length);
        }
    }
    if (rows == 0)
        return true;
    wants.drawn = engine->step_drawn > 0;
    if (!draft_run(engine, rows, wants, s->draft_ids))
        return false;
    rows = 0;
    for (uint32_t i = 0; i < count; i++)
        if (drafts[i].count > at)
            draft_take(engine, &drafts[i], at, rows++);
    return true;
}

sl_status eng_draft_many(eng_engine *engine, eng_drafts *drafts, uint32_t count, sl_err *err)
{
    SL_TRY(drafts_check(engine, count, err));
    for (uint32_t i = 0; i < count; i++)
        SL_TRY(
            draft_check(engine, drafts[i].sequence, drafts[i].next_token, drafts[i].count, i, err));
    engine->step_logits = 0; /* the buffer is used for the drafts' */
    bool ok = true;
    for (uint32_t at = 0; ok && at < ENG_DRAFTS_MAX; at++)
        ok = draft_round(engine, drafts, count, at);
    for (uint32_t i = 0; !ok && i < count; i++) {
        eng_sequence *sequence = drafts[i].sequence;
        eng_sequence_clear_rows(sequence, sequence->length, sequence->length + drafts[i].count);
    }
    return ok ? sl_ok() : step_fault(engine, err);
}

/* ---- layers alone ---- */

/* x and res as the engine's rows. */
static void load_rows(eng_engine *engine, const uint16_t *values, size_t count, void *out)
{
    if (engine->plain)
        krn_bf16_to_f32_many(values, count, out);
    else
        engine->ops->write(engine, out, values, count * sizeof(uint16_t));
}

sl_status eng_step_layers(eng_engine *engine, eng_sequence *sequence, const uint16_t *x,
                          const uint16_t *res, uint32_t row_count, sl_err *err)
{
    sl_assert(sequence->open && sequence->length == 0 && !engine->model->mtp);
    if (row_count == 0 || row_count > engine->rows_max || row_count > sequence->capacity)
        return sl_fail(err, SL_TOO_LARGE, "%u rows through layers alone: 1 to %u are possible",
                       row_count, engine->rows_max);
    eng_scratch *s = &engine->s;
    size_t count = (size_t)row_count * (size_t)engine->model->shape.hidden_size;
    load_rows(engine, x, count, s->x);
    load_rows(engine, res, count, engine->model->mtp_alone ? s->mtp_h : s->res);
    for (uint32_t i = 0; i < row_count; i++) {
        s->positions[i] = i;
        s->rows[i] = (krn_row){.blocks = sequence->pages, .slot = i};
    }
    const eng_batch batch = {
        .row_count = row_count,
        .tokens = s->tokens,
        .rows = s->rows,
        .table = s->table,
        .positions = s->positions,
    };
    engine->ops->begin(engine, &batch);
    bool alone = engine->model->mtp_alone;
    bool ok = !alone || eng_mtp_run_alone(engine, &batch);
    for (uint32_t layer = 0; !alone && ok && layer < engine->model->layer_count; layer++)
        ok = eng_layer_run(engine, layer, &batch, false);
    return ok && engine->ops->finish(engine) ? sl_ok() : step_fault(engine, err);
}
