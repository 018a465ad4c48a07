/* Layers with experts over the ranks of an instance, as one or two micro-batches.
 *
 * With two, what one has on its way is hidden behind what the other computes:
 *
 *     computes | shared 0 | experts 0 | attend 1   | shared 1 | experts 1 | attend 0'   |
 *     travels  | rows 0 ->            | outputs 0->| rows 1 ->            | outputs 1 ->|
 *
 * (0' is in the layer after.) Outputs are many times as many bytes as rows, so they have the longer
 * part. The group carries one phase at a time: dispatch and combine of 0, then of 1, on all ranks
 * alike. Rows keep their places in the scratch; a micro-batch looks at it from its first row on.
 * After a fault a rank goes on without rows, because the others need its experts. Thread: the
 * engine thread. */
#include "engine/micro_batch.h"

#include "base/assert.h"
#include "engine/layer.h"
#include "engine/ranks.h"

typedef struct micro_batch {
    eng_batch batch;
    uint32_t first; /* row of the step */
    uint32_t sent;  /* rows of it that went to other ranks */
} micro_batch;

typedef struct pipeline {
    eng_engine *engine;
    micro_batch of[ENG_MICRO_BATCHES_MAX];
    bool carries; /* computes for long enough while something travels */
    bool failed;  /* for good, with: */
    const char *fault;
    uint32_t fault_layer;
} pipeline;

/* The first micro-batches are a row longer where it does not come out even. */
static pipeline split(eng_engine *engine, const eng_batch *batch, uint32_t count)
{
    pipeline p = {.engine = engine};
    uint32_t first = 0;
    sl_assert(count >= 1 && count <= ENG_MICRO_BATCHES_MAX);
    for (uint32_t i = 0; i < count; i++) {
        micro_batch *m = &p.of[i];
        m->first = first;
        m->batch = *batch;
        m->batch.row_count = (batch->row_count - first + count - i - 1) / (count - i);
        if (batch->rows) {
            m->batch.rows += first;
            m->batch.positions += first;
            m->batch.table += (size_t)first * 2 * KRN_ROPE_PAIRS;
        }
        first += m->batch.row_count;
    }
    return p;
}

static void *moved(const eng_engine *engine, void *rows, int64_t by, uint32_t width)
{
    return (uint8_t *)rows + by * (int64_t)((size_t)width * engine->element_bytes);
}

/* What outlives one operation, as it is from another row on. */
static void scratch_move(eng_engine *engine, int64_t by)
{
    eng_scratch *s = &engine->s;
    uint32_t hidden = (uint32_t)engine->model->shape.hidden_size;
    int64_t chosen = engine->model->shape.experts_per_token;
    s->x = moved(engine, s->x, by, hidden);
    s->res = moved(engine, s->res, by, hidden);
    s->n = moved(engine, s->n, by, hidden);
    s->shared_out = moved(engine, s->shared_out, by, hidden);
    s->experts += by * chosen;
    s->expert_weights += by * chosen;
    s->expert_places += by * chosen;
}

static const eng_layer *enter(pipeline *p, uint32_t i, uint32_t index)
{
    scratch_move(p->engine, p->of[i].first);
    p->engine->step_layer = p->engine->model->layer_first + index;
    return &p->engine->model->layers[index];
}

static void leave(pipeline *p, uint32_t i)
{
    scratch_move(p->engine, -(int64_t)p->of[i].first);
}

/* The first fault is the one to be told. */
static void note(pipeline *p, bool ok)
{
    if (ok || p->failed)
        return;
    p->failed = true;
    p->fault = p->engine->fault;
    p->fault_layer = p->engine->step_layer;
}

static uint32_t rows_of(const pipeline *p, uint32_t i)
{
    return p->failed ? 0 : p->of[i].batch.row_count;
}

static bool is_lost(const pipeline *p)
{
    return p->engine->ranks->lost;
}

/* What was posted moves while this thread computes. */
static bool carried(const pipeline *p)
{
    if (p->carries && !is_lost(p))
        com_group_carry(p->engine->ranks->group);
    return !is_lost(p);
}

/* ---- the parts of a layer; false: the group is lost ---- */

static void attend(pipeline *p, uint32_t i, uint32_t index)
{
    uint32_t rows = rows_of(p, i);
    if (rows == 0)
        return;
    const eng_layer *layer = enter(p, i, index);
    note(p, eng_layer_attend(p->engine, index, &p->of[i].batch, false) &&
                eng_layer_route(p->engine, layer, rows));
    leave(p, i);
}

static void prepare(pipeline *p, uint32_t i, uint32_t index)
{
    (void)enter(p, i, index);
    note(p, p->engine->ops->exchange->prepare(p->engine, rows_of(p, i)));
    leave(p, i);
}

static void shared(pipeline *p, uint32_t i, uint32_t index)
{
    const eng_layer *layer = enter(p, i, index);
    note(p, p->engine->ops->exchange->shared(p->engine, layer, rows_of(p, i)));
    leave(p, i);
}

static bool send(pipeline *p, uint32_t i, uint32_t index)
{
    const eng_layer *layer = enter(p, i, index);
    p->of[i].sent = rows_of(p, i);
    note(p, p->engine->ops->exchange->send(p->engine, layer, p->of[i].sent));
    leave(p, i);
    return carried(p);
}

static bool experts(pipeline *p, uint32_t i, uint32_t index)
{
    const eng_layer *layer = enter(p, i, index);
    note(p, p->engine->ops->exchange->experts(p->engine, layer, p->of[i].sent));
    leave(p, i);
    return carried(p);
}

static bool receive(pipeline *p, uint32_t i, uint32_t index)
{
    (void)enter(p, i, index);
    note(p, p->engine->ops->exchange->receive(p->engine));
    uint32_t rows = rows_of(p, i);
    if (rows > 0)
        eng_layer_combine(p->engine, p->of[i].first, rows);
    leave(p, i);
    return !is_lost(p);
}

/* ---- layers ---- */

static bool end(const pipeline *p)
{
    if (p->failed && !is_lost(p)) {
        p->engine->fault = p->fault;
        p->engine->step_layer = p->fault_layer;
    }
    return !p->failed && !is_lost(p);
}

bool eng_micro_moe(eng_engine *engine, uint32_t index, uint32_t rows, uint32_t count)
{
    pipeline p = split(engine, &(eng_batch){.row_count = rows}, count);
    if (rows > 0)
        note(&p, eng_layer_route(engine, &engine->model->layers[index], rows));
    for (uint32_t i = 0; i < count; i++) {
        prepare(&p, i, index);
        if (!send(&p, i, index))
            return false;
        shared(&p, i, index); /* while the rows are on their way */
        if (!experts(&p, i, index) || !receive(&p, i, index))
            return false;
    }
    return end(&p);
}

/* One that is ready to be sent, up to its outputs being on their way. */
static bool out_and_through(pipeline *p, uint32_t i, uint32_t index)
{
    if (!send(p, i, index))
        return false;
    shared(p, i, index);
    return experts(p, i, index);
}

static void get_ready(pipeline *p, uint32_t i, uint32_t index)
{
    attend(p, i, index);
    prepare(p, i, index);
}

static bool layer_run(pipeline *p, uint32_t index, bool last)
{
    if (!out_and_through(p, 0, index))
        return false;
    get_ready(p, 1, index);
    if (!receive(p, 0, index) || !out_and_through(p, 1, index))
        return false;
    if (!last)
        get_ready(p, 0, index + 1);
    return receive(p, 1, index);
}

bool eng_micro_layers(eng_engine *engine, const eng_batch *batch, uint32_t first,
                      uint32_t end_layer, bool (*fn)(void *context, uint32_t index), void *context)
{
    pipeline p = split(engine, batch, ENG_MICRO_BATCHES_MAX);
    p.carries = true;
    sl_assert(first < end_layer);
    get_ready(&p, 0, first);
    for (uint32_t index = first; index < end_layer; index++) {
        if (!layer_run(&p, index, index + 1 == end_layer))
            return false;
        if (!p.failed)
            note(&p, fn(context, index));
    }
    return end(&p);
}
