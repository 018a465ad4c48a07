/* In the place of engine/step.c and engine/weights.c: a step that computes a hash (rows.h) instead
 * of a transformer. Pages, sequences, prefix index, second tier, sampler, ledger, engine thread are
 * the shipped ones.
 *
 * What a step stands on is checked, as attention would look at it: a row that is not the sequence's
 * ends the process (SIGABRT), which no fault of the driver's does. Thread: the engine thread. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/fault.h"
#include "base/log.h"
#include "engine/ops.h"
#include "tests/cluster/chaos/control.h"
#include "tests/cluster/chaos/rows.h"

#define DEEP_LOOK_ONE 16u /* of so many steps looks at its whole context */
#define LOOKS         4u

/* ---- weights: none */

sl_status eng_weights_load(eng_model *model, const eng_model_options *options, sl_err *err)
{
    model->layers = sl_alloc(model->layer_count, sizeof(*model->layers), "stub layers");
    memcpy(model->hash, model->identity, MDL_IDENTITY_CHARS);
    memset(model->hash + MDL_IDENTITY_CHARS, '5', MDL_HASH_CHARS - MDL_IDENTITY_CHARS);
    model->hash[MDL_HASH_CHARS] = '\0';
    return sl_ok();
}

void eng_weights_free(eng_model *model)
{
    sl_free(model->layers);
    model->layers = NULL;
}

/* No ranks, hence no experts that move between them; linked because formations are. */
sl_status eng_expert_load(const eng_model *model, eng_expert *out_expert, sl_err *err)
{
    return sl_fail(err, SL_UNSUPPORTED, "the stub engine has no experts");
}

/* ---- rows */

static uint8_t *slice_at(const eng_sequence *sequence, uint32_t layer, uint32_t position)
{
    const eng_engine *engine = sequence->engine;
    return eng_engine_page(engine, sequence->pages[position / KRN_PAGE_TOKENS]) +
           layer * engine->layout.layer_bytes;
}

static bool planted(chaos_plant plant)
{
    chaos_control *control = chaos_control_get();
    return control && atomic_load(&control->plant) == (uint32_t)plant;
}

static void put_row(const eng_sequence *sequence, uint32_t position, uint64_t chain, uint32_t token)
{
    uint32_t slot = position % KRN_PAGE_TOKENS;
    for (uint32_t layer = 0; layer < sequence->engine->layout.layer_count; layer++)
        chaos_row_put(slice_at(sequence, layer, position), slot, layer, chain, token);
    if (slot == 17 && planted(CHAOS_PLANT_ROW))
        slice_at(sequence, 3, position)[slot * KRN_LATENT_ROW_BYTES + 99] ^= 1;
}

static bool row_is_right(const eng_sequence *sequence, uint32_t position)
{
    uint64_t chain = CHAOS_CHAIN_START;
    uint32_t slot = position % KRN_PAGE_TOKENS;
    if (position > 0)
        chain =
            chaos_row_chain(slice_at(sequence, 0, position - 1), (position - 1) % KRN_PAGE_TOKENS);
    uint32_t token = chaos_row_token(slice_at(sequence, 0, position), slot);
    chain = chaos_chain_next(chain, token);
    for (uint32_t layer = 0; layer < sequence->engine->layout.layer_count; layer++)
        if (!chaos_row_is(slice_at(sequence, layer, position), slot, layer, chain, token))
            return false;
    return true;
}

static _Noreturn void violation(const eng_sequence *sequence, const char *what, uint32_t position)
{
    sl_error("chaos: VIOLATION: %s at row %u of %u, page %u", what, position, sequence->length,
             sequence->pages[position / KRN_PAGE_TOKENS]);
    abort();
}

/* What attention would do: look at the rows before. */
static void look_back(const eng_engine *engine, const eng_sequence *sequence)
{
    uint32_t length = sequence->length;
    bool all = engine->step_id % DEEP_LOOK_ONE == 0 || length <= LOOKS;
    for (uint32_t i = 0; i < (all ? length : LOOKS); i++) {
        uint32_t position = all ? i : length - 1 - (i * 61u) % length;
        if (!row_is_right(sequence, position))
            violation(sequence, "a row is none of its sequence's", position);
    }
}

/* Every byte of pages that were fetched: what is no row's must be zero. */
static void look_at_all(const eng_sequence *sequence)
{
    for (uint32_t at = 0; at < sequence->page_count * KRN_PAGE_TOKENS; at++) {
        bool right = at >= sequence->length || row_is_right(sequence, at);
        for (uint32_t layer = 0;
             at >= sequence->length && right && layer < sequence->engine->layout.layer_count;
             layer++)
            right = chaos_row_is_zero(slice_at(sequence, layer, at), at % KRN_PAGE_TOKENS);
        if (!right)
            violation(sequence, "what was fetched is wrong", at);
    }
}

/* h_final of a token: the chain, then nothing. */
static void put_h(const eng_engine *engine, void *to, uint64_t chain)
{
    memset(to, 0, eng_hidden_bytes(engine));
    memcpy(to, &chain, sizeof(chain));
}

static uint64_t get_h(const void *from)
{
    uint64_t chain;
    memcpy(&chain, from, sizeof(chain));
    return chain;
}

static void fill_logits(const eng_engine *engine, uint64_t chain, float *out)
{
    const mdl_shape *shape = &engine->model->shape;
    chain ^= planted(CHAOS_PLANT_TOKEN);
    chaos_logits(chain, (uint32_t)shape->vocab_size, (uint32_t)shape->eos_id, out);
}

/* ---- step */

static void take_time(uint64_t ns)
{
    struct timespec left = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    while (ns > 0 && nanosleep(&left, &left) != 0)
        continue;
}

static uint64_t step_ns(uint32_t rows)
{
    chaos_control *control = chaos_control_get();
    if (!control)
        return 0;
    return atomic_load(&control->step_us) * 1000ull +
           rows * (uint64_t)atomic_load(&control->row_ns);
}

static void check_spans(const eng_engine *engine, const eng_span *spans, uint32_t span_count)
{
    uint32_t rows = 0;
    for (uint32_t i = 0; i < span_count; i++) {
        const eng_sequence *sequence = spans[i].sequence;
        sl_assert(sequence->open && !sequence->loading && spans[i].token_count > 0);
        sl_assert(spans[i].token_count <= eng_sequence_room(sequence) - sequence->length);
        rows += spans[i].token_count;
    }
    sl_assert(rows <= engine->rows_max);
}

static void run_span(eng_engine *engine, const eng_span *span, uint32_t *row)
{
    eng_sequence *sequence = span->sequence;
    uint64_t chain = CHAOS_CHAIN_START;
    size_t vocab = (size_t)engine->model->shape.vocab_size;
    sequence->step_id = engine->step_id;
    sequence->step_row = *row;
    sequence->step_first = sequence->length;
    look_back(engine, sequence);
    if (sequence->length > 0)
        chain = get_h(eng_sequence_h_at(sequence, sequence->length));
    for (uint32_t t = 0; t < span->token_count; t++, ++*row) {
        uint32_t length = sequence->length + t + 1;
        chain = chaos_chain_next(chain, span->tokens[t]);
        put_row(sequence, length - 1, chain, span->tokens[t]);
        put_h(engine,
              eng_row_at(engine, engine->s.h, *row, (size_t)engine->model->shape.hidden_size),
              chain);
        bool last = t + 1 == span->token_count;
        if (span->logits == ENG_LOGITS_ALL || (span->logits == ENG_LOGITS_LAST && last))
            fill_logits(engine, chain, engine->s.logits + vocab * engine->step_logits++);
        if (length % KRN_PAGE_TOKENS == 0 || last)
            put_h(engine, eng_sequence_h_at(sequence, length), chain);
    }
}

sl_status eng_step(eng_engine *engine, const eng_span *spans, uint32_t span_count,
                   eng_group_fn on_group, void *context, sl_err *err)
{
    uint32_t row = 0, groups = engine->layout.group_count;
    check_spans(engine, spans, span_count);
    chaos_site("step");
    if (sl_fault("engine.device"))
        engine->broken = "fault site engine.device";
    SL_TRY(eng_engine_check(engine, err));
    engine->step_id++;
    engine->step_logits = 0;
    for (uint32_t i = 0; i < span_count; i++)
        run_span(engine, &spans[i], &row);
    engine->step_rows = row;
    uint64_t cost_ns = step_ns(row);
    for (uint32_t group = 0; group + 1 < groups; group++) {
        take_time(on_group ? cost_ns / groups : 0);
        if (on_group)
            on_group(context, group);
    }
    take_time(on_group ? cost_ns / groups : cost_ns);
    for (uint32_t i = 0; i < span_count; i++)
        eng_sequence_set_length(spans[i].sequence,
                                spans[i].sequence->length + spans[i].token_count);
    if (on_group)
        on_group(context, groups - 1);
    return sl_ok();
}

float *eng_step_logits(eng_engine *engine, uint32_t row)
{
    sl_assert(row < engine->step_logits);
    return engine->s.logits + (size_t)engine->model->shape.vocab_size * row;
}

/* Tokens are drawn from logits, as on a CPU. */
const eng_sampled *eng_step_drawn(eng_engine *engine, uint32_t row)
{
    sl_assert(row < engine->step_logits);
    return NULL;
}

const eng_sampled *eng_head_drawn(eng_engine *engine, const eng_sequence *sequence,
                                  const eng_draw *draw)
{
    (void)engine, (void)sequence, (void)draw;
    return NULL;
}

const uint8_t *eng_step_routing(const eng_engine *engine, uint32_t row)
{
    return engine->routing_rows + (size_t)row * engine->routing.row_bytes;
}

float *eng_head_logits(eng_engine *engine, const eng_sequence *sequence)
{
    chaos_site("first");
    look_at_all(sequence);
    fill_logits(engine, get_h(eng_sequence_h_at(sequence, sequence->length)),
                engine->s.head_logits);
    return engine->s.head_logits;
}

/* Right in two of three. Leaves rows that the next step must write again, as the MTP layer does. */
sl_status eng_draft_many(eng_engine *engine, eng_drafts *drafts, uint32_t count, sl_err *err)
{
    uint32_t layer = engine->layout.layer_count - 1;
    for (uint32_t i = 0; i < count; i++) {
        eng_sequence *sequence = drafts[i].sequence;
        uint64_t chain = get_h(eng_sequence_h_at(sequence, sequence->length));
        uint32_t token = drafts[i].next_token;
        for (uint32_t at = 0; at < drafts[i].count; at++) {
            uint32_t position = sequence->length + at;
            chain = chaos_chain_next(chain, token);
            token = chaos_guess(chain) + (chain % 3 == 0);
            drafts[i].tokens[at] = token;
            chaos_row_put(slice_at(sequence, layer, position), position % KRN_PAGE_TOKENS, layer,
                          ~chain, token);
        }
    }
    return sl_ok();
}
