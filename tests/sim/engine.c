/* In the place of engine/step.c, model.c and scratch.c: see engine.h. Owns nothing but one scratch
 * a engine; touches pages only where the real step does. */
#include "tests/sim/engine.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "engine/ops.h"
#include "engine/reload.h"

#define ROW_NS        30000u
#define STEP_NS       400000u
#define CANDIDATES    4u
#define EOS_ONE_IN    48u
#define LAYERS        1 /* and the MTP layer */
#define HIDDEN        128
#define CHAIN_START   0x5eed5eed5eed5eedull
#define DEEP_LOOK_ONE 6u /* of so many steps looks at its whole context */

uint32_t sim_step_fail_ppm;
static eng_worker *workers[SIM_PROCESSES_MAX];
static eng_sampler reference_sampler;

void sim_engine_note_worker(sim_process *process, eng_worker *worker)
{
    workers[process->index] = worker;
}

eng_worker *sim_engine_worker(sim_process *process)
{
    return workers[process->index];
}

/* ---- model */

sl_status eng_model_open(const eng_model_options *options, eng_model **out_model, sl_err *err)
{
    eng_model *model = sl_alloc(1, sizeof(*model), "sim model");
    model->shape = (mdl_shape){
        .vocab_size = SIM_VOCAB,
        .hidden_size = HIDDEN,
        .layer_count = LAYERS,
        .mtp_layer_count = 1,
        .dense_layer_count = LAYERS,
        .expert_count = 2,
        .experts_per_token = 1,
        .position_max = 1 << 16,
        .eos_id = SIM_EOS,
    };
    model->ops = &eng_ops_cpu;
    model->layer_end = LAYERS;
    model->layer_count = LAYERS + 1;
    model->whole = model->mtp = true;
    memcpy(model->hash, "5eed", 5);
    *out_model = model;
    return sl_ok();
}

sl_status eng_model_look(const eng_model_options *options, eng_model **out_model, sl_err *err)
{
    return eng_model_open(options, out_model, err);
}

void eng_model_close(eng_model *model)
{
    sl_free(model);
}

sl_status eng_model_check_same(const eng_model *model, const eng_model *fresh, sl_err *err)
{
    return sl_ok();
}

void eng_model_exchange(eng_model *model, eng_model *fresh)
{
    eng_model old = *model;
    *model = *fresh;
    *fresh = old;
}

const mdl_shape *eng_model_shape(const eng_model *model)
{
    return &model->shape;
}

const mdl_tokenizer *eng_model_tokenizer(const eng_model *model)
{
    return NULL;
}

/* ---- memory: a backend that computes nothing */

static sl_status memory_create(const eng_model *model, eng_memory kind, size_t bytes,
                               void **out_memory, sl_err *err)
{
    *out_memory = sl_alloc(1, bytes, "sim cache");
    return sl_ok();
}

static void memory_destroy(const eng_model *model, eng_memory kind, void *memory, size_t bytes)
{
    sl_free(memory);
}

static sl_status backend_create(eng_engine *engine, sl_err *err)
{
    return sl_ok();
}

static void backend_destroy(eng_engine *engine)
{
}

static void clear(eng_engine *engine, const eng_pieces *pieces)
{
    for (uint32_t i = 0; i < pieces->count; i++)
        memset((uint8_t *)pieces->to + i * pieces->to_stride, 0, pieces->bytes);
}

static void copy(eng_engine *engine, const eng_pieces *pieces)
{
    for (uint32_t i = 0; i < pieces->count; i++)
        memmove((uint8_t *)pieces->to + i * pieces->to_stride,
                (const uint8_t *)pieces->from + i * pieces->from_stride, pieces->bytes);
}

static void write_bytes(eng_engine *engine, void *to, const void *host, size_t bytes)
{
    memcpy(to, host, bytes);
}

static void fetch(eng_engine *engine, void *host, const void *at, size_t bytes)
{
    memcpy(host, at, bytes);
}

static void *read_bytes(eng_engine *engine, void *at, size_t bytes)
{
    return at;
}

static void backend_bind(eng_engine *engine, const eng_sequence *sequence)
{
}

static bool finish(eng_engine *engine)
{
    return true;
}

static const char *numerics_id(void)
{
    return "sim-v1";
}

const eng_ops eng_ops_cpu = {
    .numerics_id = numerics_id,
    .expert_align = 1,
    .memory_create = memory_create,
    .memory_destroy = memory_destroy,
    .create = backend_create,
    .destroy = backend_destroy,
    .clear = clear,
    .copy = copy,
    .write = write_bytes,
    .fetch = fetch,
    .read = read_bytes,
    .bind = backend_bind,
    .finish = finish,
};

sl_status eng_scratch_carve(eng_engine *engine, sl_err *err)
{
    eng_scratch *s = &engine->s;
    s->h = sl_alloc(engine->rows_max, HIDDEN * sizeof(uint16_t), "sim scratch");
    s->wanted = sl_alloc(engine->rows_max, sizeof(uint32_t), "sim scratch");
    s->logits = sl_alloc(engine->rows_max + 1u, SIM_VOCAB * sizeof(float), "sim scratch");
    return sl_ok();
}

void eng_scratch_free(eng_engine *engine)
{
    sl_free(engine->s.h);
    sl_free(engine->s.wanted);
    sl_free(engine->s.logits);
    memset(&engine->s, 0, sizeof(engine->s));
}

/* ---- rows */

typedef struct row_link { /* of the chain, in a row of a page */
    uint64_t chain;
    uint32_t token;
    uint32_t layer;
} row_link;

static uint64_t chain_next(uint64_t chain, uint32_t token)
{
    return sim_mix(chain, token + 1u);
}

static uint8_t *row_at(const eng_sequence *sequence, uint32_t layer, uint32_t position)
{
    const eng_engine *engine = sequence->engine;
    uint32_t page = sequence->pages[position / KRN_PAGE_TOKENS];
    return eng_engine_page(engine, page) + layer * engine->layout.layer_bytes +
           (size_t)(position % KRN_PAGE_TOKENS) * KRN_LATENT_ROW_BYTES;
}

static void put_row(const eng_sequence *sequence, uint32_t position, uint64_t chain, uint32_t token)
{
    /* A row is written whole; here its page, at once: flipped bytes of a transfer that failed may
     * be left in it. */
    if (position % KRN_PAGE_TOKENS == 0)
        memset(row_at(sequence, 0, position), 0,
               (LAYERS + 1) * sequence->engine->layout.layer_bytes);
    for (uint32_t layer = 0; layer <= LAYERS; layer++) {
        const row_link row = {chain, token, layer};
        memcpy(row_at(sequence, layer, position), &row, sizeof(row));
    }
}

static bool row_is_right(const eng_sequence *sequence, uint32_t position)
{
    uint64_t before = CHAIN_START;
    row_link row;
    if (position > 0) {
        memcpy(&row, row_at(sequence, 0, position - 1), sizeof(row));
        before = row.chain;
    }
    for (uint32_t layer = 0; layer <= LAYERS; layer++) {
        memcpy(&row, row_at(sequence, layer, position), sizeof(row));
        if (row.chain != chain_next(before, row.token) || row.layer != layer)
            return false;
    }
    return true;
}

/* What attention would do: look at the rows before. */
static void look_back(const eng_sequence *sequence)
{
    uint32_t length = sequence->length;
    uint32_t looks = sim.steps % DEEP_LOOK_ONE == 0 || length < 8 ? length : 4;
    for (uint32_t i = 0; i < looks; i++) {
        uint32_t position = looks == length ? i : length - 1 - (i * 61u) % length;
        if (!row_is_right(sequence, position))
            sim_violation("a page has one owner",
                          "%s: row %u of %u is none of the sequence's (page %u)", sim.current->name,
                          position, length, sequence->pages[position / KRN_PAGE_TOKENS]);
    }
}

static bool is_zero(const uint8_t *at, size_t bytes)
{
    static const uint8_t ZEROS[KRN_LAYER_BYTES];
    return bytes == 0 || memcmp(at, ZEROS, bytes) == 0;
}

/* Every byte of pages that were fetched: what is no row's must be zero. */
static void look_at_all(const eng_sequence *sequence)
{
    const eng_engine *engine = sequence->engine;
    for (uint32_t position = 0; position < sequence->page_count * KRN_PAGE_TOKENS; position++) {
        bool used = position < sequence->length;
        size_t skip = used ? sizeof(row_link) : 0;
        bool right = !used || row_is_right(sequence, position);
        for (uint32_t layer = 0; layer <= LAYERS; layer++) {
            const uint8_t *row = row_at(sequence, layer, position);
            size_t row_bytes = KRN_LATENT_ROW_BYTES;
            if (position % KRN_PAGE_TOKENS == KRN_PAGE_TOKENS - 1)
                row_bytes += engine->layout.layer_bytes - KRN_INDEX_CODES_AT;
            right = right && is_zero(row + skip, row_bytes - skip);
        }
        if (!right)
            sim_violation("tokens are right", "%s: row %u of %u was fetched and is wrong",
                          sim.current->name, position, sequence->length);
    }
}

static void put_h(eng_engine *engine, void *to, uint64_t chain)
{
    memset(to, 0, HIDDEN * sizeof(uint16_t));
    memcpy(to, &chain, sizeof(chain));
}

static uint64_t get_h(const void *from)
{
    uint64_t chain;
    memcpy(&chain, from, sizeof(chain));
    return chain;
}

static void fill_logits(uint64_t chain, float *out)
{
    for (uint32_t i = 0; i < SIM_VOCAB; i++)
        out[i] = -30.0f;
    for (uint32_t i = 0; i < CANDIDATES; i++)
        out[2 + sim_mix(chain, i + 100) % (SIM_VOCAB - 2)] = 5.0f - 0.25f * (float)i;
    if (sim_mix(chain, 99) % EOS_ONE_IN == 0)
        out[SIM_EOS] = 6.0f;
}

/* ---- step */

static sl_status check_spans(const eng_span *spans, uint32_t span_count, sl_err *err)
{
    for (uint32_t i = 0; i < span_count; i++) {
        const eng_sequence *sequence = spans[i].sequence;
        sl_assert(sequence->open && !sequence->loading && spans[i].token_count > 0);
        sl_assert(spans[i].token_count <= eng_sequence_room(sequence) - sequence->length);
    }
    if (sim_chance(sim_step_fail_ppm))
        return sl_fail(err, SL_INTERNAL, "layer 0: NaN or infinity in the simulator");
    return sl_ok();
}

static void run_span(eng_engine *engine, const eng_span *span, uint32_t *row)
{
    eng_sequence *sequence = span->sequence;
    uint64_t chain = CHAIN_START;
    sequence->step_id = engine->step_id;
    sequence->step_row = *row;
    sequence->step_first = sequence->length;
    look_back(sequence);
    if (sequence->length > 0)
        chain = get_h(eng_sequence_h_at(sequence, sequence->length));
    for (uint32_t t = 0; t < span->token_count; t++, ++*row) {
        uint32_t length = sequence->length + t + 1;
        chain = chain_next(chain, span->tokens[t]);
        put_row(sequence, length - 1, chain, span->tokens[t]);
        put_h(engine, (uint8_t *)engine->s.h + (size_t)*row * HIDDEN * sizeof(uint16_t), chain);
        bool wanted = span->logits == ENG_LOGITS_ALL ||
                      (span->logits == ENG_LOGITS_LAST && t + 1 == span->token_count);
        if (wanted)
            fill_logits(chain, engine->s.logits + (size_t)SIM_VOCAB * engine->step_logits++);
        if (length % KRN_PAGE_TOKENS == 0 || t + 1 == span->token_count)
            put_h(engine, eng_sequence_h_at(sequence, length), chain);
    }
}

sl_status eng_step(eng_engine *engine, const eng_span *spans, uint32_t span_count,
                   eng_group_fn on_group, void *context, sl_err *err)
{
    uint32_t row = 0;
    uint64_t cost_ns;
    SL_TRY(check_spans(spans, span_count, err));
    engine->step_id++;
    engine->step_logits = 0;
    for (uint32_t i = 0; i < span_count; i++)
        run_span(engine, &spans[i], &row);
    engine->step_rows = row;
    cost_ns = (STEP_NS + row * (uint64_t)ROW_NS) * sim.current->engine_percent / 100;
    for (uint32_t group = 0; group + 1 < engine->layout.group_count; group++) {
        sim.skew += cost_ns / engine->layout.group_count;
        if (on_group)
            on_group(context, group);
    }
    sim.skew += cost_ns / engine->layout.group_count;
    for (uint32_t i = 0; i < span_count; i++)
        eng_sequence_set_length(spans[i].sequence,
                                spans[i].sequence->length + spans[i].token_count);
    if (on_group)
        on_group(context, engine->layout.group_count - 1);
    return sl_ok();
}

float *eng_step_logits(eng_engine *engine, uint32_t row)
{
    sl_assert(row < engine->step_logits);
    return engine->s.logits + (size_t)SIM_VOCAB * row;
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
    return engine->routing_rows;
}

float *eng_head_logits(eng_engine *engine, const eng_sequence *sequence)
{
    float *logits = engine->s.logits + (size_t)SIM_VOCAB * engine->rows_max;
    look_at_all(sequence);
    fill_logits(get_h(eng_sequence_h_at(sequence, sequence->length)), logits);
    return logits;
}

/* Right in two of three: the first candidate, or another one. Leaves rows that the next step must
 * write again, as the MTP layer does. */
sl_status eng_draft_many(eng_engine *engine, eng_drafts *drafts, uint32_t count, sl_err *err)
{
    for (uint32_t i = 0; i < count; i++) {
        eng_sequence *sequence = drafts[i].sequence;
        uint64_t chain = get_h(eng_sequence_h_at(sequence, sequence->length));
        uint32_t token = drafts[i].next_token;
        for (uint32_t at = 0; at < drafts[i].count; at++) {
            chain = chain_next(chain, token);
            uint32_t right = 2 + (uint32_t)(sim_mix(chain, 100) % (SIM_VOCAB - 2));
            token = sim_mix(chain, 98) % 3 ? right : 2 + right % (SIM_VOCAB - 2);
            drafts[i].tokens[at] = token;
            memset(row_at(sequence, LAYERS, sequence->length + at), 0xdd, sizeof(row_link));
        }
    }
    return sl_ok();
}

/* ---- reference */

uint32_t sim_engine_reference(const uint32_t *prompt, uint32_t prompt_count,
                              const mdl_sampling *sampling, uint32_t *out, bool *out_stopped)
{
    uint64_t chain = CHAIN_START;
    float logits[SIM_VOCAB];
    uint32_t count = 0, max = (uint32_t)sampling->max_tokens;
    uint32_t *all = sl_alloc(prompt_count + max, sizeof(*all), "sim reference");
    if (!reference_sampler.vocab_size)
        eng_sampler_init(&reference_sampler, SIM_VOCAB, SIM_EOS, NULL);
    memcpy(all, prompt, prompt_count * sizeof(*all));
    for (uint32_t i = 0; i < prompt_count; i++)
        chain = chain_next(chain, prompt[i]);
    *out_stopped = false;
    while (count < max && !*out_stopped) {
        eng_sampled sampled;
        fill_logits(chain, logits);
        eng_sampler_draw(&reference_sampler, logits, sampling, all, prompt_count + count,
                         prompt_count, prompt_count + count, NULL, &sampled);
        out[count] = all[prompt_count + count] = sampled.id;
        count++;
        chain = chain_next(chain, sampled.id);
        *out_stopped = sampled.id == SIM_EOS && !sampling->ignore_eos;
    }
    sl_free(all);
    return count;
}

void sim_engine_fini(void)
{
    if (reference_sampler.vocab_size)
        eng_sampler_fini(&reference_sampler);
    reference_sampler.vocab_size = 0;
}
