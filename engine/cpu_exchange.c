/* A layer's experts over the ranks: own rows and those of others as one batch.
 *
 * Rows are quantised once, at home; each expert's products run over all rows that chose it, whoever
 * they belong to; bf16 outputs go back one by one. The sum, in the order of experts and in f32, is
 * made at home, by the operation that one process uses. CPU. Thread: the engine thread. */
#include <string.h>

#include "base/assert.h"
#include "engine/cpu.h"
#include "engine/ranks.h"

/* The own rows in the form that travels. */
static bool rows_prepare(eng_engine *engine, uint32_t rows)
{
    const eng_ranks *ranks = engine->ranks;
    if (rows == 0)
        return true;
    if (ranks->scale_bytes == 0) {
        memcpy(ranks->rows, engine->s.n, (size_t)rows * ranks->row_bytes);
        return true;
    }
    if (krn_q128(engine->pool, engine->s.n, rows, ranks->row_bytes, engine->model->pow2,
                 ranks->rows, (float *)ranks->scales))
        return true;
    engine->fault = "a linear layer's input";
    return false;
}

/* The others' rows behind the own ones. */
static void rows_take(eng_engine *engine, uint32_t rows, const com_part *parts)
{
    const eng_ranks *ranks = engine->ranks;
    size_t at = rows;
    for (uint32_t r = 0; r < ranks->size; r++) {
        size_t count = parts[r].row_count;
        if (count == 0)
            continue;
        memcpy(ranks->rows + at * ranks->row_bytes, parts[r].rows, count * ranks->row_bytes);
        if (ranks->scale_bytes > 0)
            memcpy(ranks->scales + at * ranks->scale_bytes, parts[r].scales,
                   count * ranks->scale_bytes);
        at += count;
    }
}

static void places_count(const eng_engine *engine, uint32_t rows, const com_part *parts,
                         uint32_t *next)
{
    const eng_scratch *s = &engine->s;
    size_t chosen = (size_t)engine->model->shape.experts_per_token;
    for (size_t i = 0; i < rows * chosen; i++)
        if (s->expert_places[i] == COM_LOCAL)
            next[s->experts[i]]++;
    for (uint32_t r = 0; r < engine->ranks->size; r++)
        for (uint32_t i = 0; i < parts[r].entry_count; i++)
            next[parts[r].experts[i]]++;
}

/* Own entries, and where the outputs of others' experts are: behind all places. */
static void places_own(eng_engine *engine, uint32_t rows, uint32_t *next)
{
    eng_scratch *s = &engine->s;
    uint32_t chosen = (uint32_t)engine->model->shape.experts_per_token;
    uint32_t behind = (uint32_t)eng_places_max(engine);
    for (size_t i = 0; i < (size_t)rows * chosen; i++) {
        if (s->expert_places[i] != COM_LOCAL) {
            s->expert_places[i] += behind;
            continue;
        }
        uint32_t place = next[s->experts[i]]++;
        s->expert_rows[place] = (uint32_t)(i / chosen);
        s->expert_places[i] = place;
    }
}

static void places_others(eng_engine *engine, uint32_t rows, const com_part *parts, uint32_t *next)
{
    uint32_t row = rows, at = 0;
    for (uint32_t r = 0; r < engine->ranks->size; r++) {
        const uint16_t *expert = parts[r].experts;
        for (uint32_t i = 0; i < parts[r].row_count; i++, row++) {
            for (uint32_t j = 0; j < parts[r].counts[i]; j++, expert++, at++) {
                uint32_t place = next[*expert]++;
                engine->s.expert_rows[place] = row;
                engine->ranks->places[at] = place;
            }
        }
    }
}

/* All entries, stacked by expert; returns how many there are. */
static uint32_t places_group(eng_engine *engine, uint32_t rows, const com_part *parts)
{
    uint32_t next[KRN_EXPERTS_MAX] = {0}, at = 0;
    uint32_t experts = (uint32_t)engine->model->shape.expert_count;
    places_count(engine, rows, parts, next);
    for (uint32_t e = 0; e < experts; e++) {
        uint32_t count = next[e];
        engine->s.expert_offsets[e] = at;
        next[e] = at;
        at += count;
    }
    engine->s.expert_offsets[experts] = at;
    sl_assert(at <= eng_places_max(engine));
    places_own(engine, rows, next);
    places_others(engine, rows, parts, next);
    return at;
}

/* Own rows through the shared expert. */
static bool shared_run(eng_engine *engine, const eng_layer *layer, uint32_t rows)
{
    eng_scratch *s = &engine->s;
    const eng_cpu_product inputs[] = {
        {.matrix = &layer->mlp.gate, .rows = rows, .output = s->gate},
        {.matrix = &layer->mlp.up, .rows = rows, .output = s->up},
    };
    const eng_cpu_product down = {
        .matrix = &layer->mlp.down, .rows = rows, .output = s->shared_out};
    if (rows == 0)
        return true;
    if (!eng_cpu_linear(engine, s->n, rows, inputs, 2))
        return false;
    eng_cpu_silu_mul(engine, s->gate, s->up, (size_t)rows * layer->mlp.gate.n);
    return eng_cpu_linear(engine, s->gate, rows, &down, 1);
}

static bool experts_run(eng_engine *engine, const eng_layer *layer, uint32_t stacked)
{
    eng_scratch *s = &engine->s;
    const eng_ranks *ranks = engine->ranks;
    eng_cpu_product inputs[2 * KRN_EXPERTS_MAX], downs[KRN_EXPERTS_MAX];
    size_t width = (size_t)engine->model->shape.moe_intermediate_size;
    uint32_t input_count = eng_cpu_expert_inputs(engine, layer, inputs);
    uint32_t down_count = eng_cpu_expert_downs(engine, layer, downs);
    if (down_count == 0)
        return true;
    eng_cpu_products(engine, ranks->rows, (const float *)ranks->scales, inputs, input_count);
    eng_cpu_silu_mul(engine, s->gate, s->up, stacked * width);
    return eng_cpu_linear(engine, s->gate, stacked, downs, down_count);
}

static bool lost(eng_engine *engine)
{
    engine->ranks->lost = true;
    return false;
}

/* What this rank's experts have worked on, for whoever plans where they should be. */
static void loads_count(eng_engine *engine, uint32_t layer)
{
    uint32_t experts = (uint32_t)engine->model->shape.expert_count;
    uint64_t *loads = engine->ranks->loads + (size_t)layer * experts;
    for (uint32_t e = 0; e < experts; e++) {
        uint64_t rows = engine->s.expert_offsets[e + 1] - engine->s.expert_offsets[e];
        if (rows > 0)
            (void)__atomic_fetch_add(&loads[e], rows, __ATOMIC_RELAXED);
    }
}

static bool send(eng_engine *engine, const eng_layer *layer, uint32_t rows)
{
    const eng_ranks *ranks = engine->ranks;
    const com_rows sent = {
        .layer = eng_moe_index(engine, layer),
        .row_count = rows,
        .rows = ranks->rows,
        .scales = ranks->scales,
        .experts = engine->s.experts,
    };
    return sl_is_ok(com_dispatch_post(ranks->group, &sent, engine->s.expert_places, NULL)) ||
           lost(engine);
}

static bool experts_of_all(eng_engine *engine, const eng_layer *layer, uint32_t rows)
{
    const eng_ranks *ranks = engine->ranks;
    com_part parts[COM_RANKS_MAX];
    if (!sl_is_ok(com_dispatch_wait(ranks->group, parts, NULL)))
        return lost(engine);
    rows_take(engine, rows, parts);
    uint32_t stacked = places_group(engine, rows, parts);
    loads_count(engine, eng_moe_index(engine, layer));
    bool computed = experts_run(engine, layer, stacked);
    if (!sl_is_ok(com_combine_post(ranks->group, engine->s.down, ranks->places, !computed, NULL)))
        return lost(engine);
    return computed;
}

static bool receive(eng_engine *engine)
{
    const eng_ranks *ranks = engine->ranks;
    uint32_t faulty;
    if (!sl_is_ok(com_combine_wait(ranks->group, &faulty, NULL)))
        return lost(engine);
    if (faulty < ranks->size)
        engine->fault = "an expert of another rank";
    return faulty == ranks->size;
}

const eng_exchange_ops eng_cpu_exchange = {
    .prepare = rows_prepare,
    .send = send,
    .shared = shared_run,
    .experts = experts_of_all,
    .receive = receive,
};
