/* Multi-token prediction (spec 5): u = eh_proj([enorm(embed(t)); hnorm(h)]), one MoE layer, head.
 *
 * A step keeps the layer's cache rows for every token; the whole layer runs for drafts only.
 * Thread: the engine thread. */
#include "engine/mtp.h"

#include "base/assert.h"

/* s.x (embeddings), s.mtp_h -> s.x: eh_proj of [norm of embedding, norm of h] of each row. */
static bool mtp_input(eng_engine *engine, const eng_batch *batch)
{
    eng_scratch *s = &engine->s;
    const eng_model *model = engine->model;
    uint32_t rows = batch->row_count, hidden = (uint32_t)model->shape.hidden_size;
    size_t bytes = eng_hidden_bytes(engine);
    for (uint32_t half = 0; half < 2; half++) {
        const void *input = half ? s->mtp_h : s->x;
        const void *weight = half ? model->mtp_hnorm : model->mtp_enorm;
        if (!engine->ops->norm(engine, input, NULL, weight, rows, hidden, s->n, NULL))
            return false;
        engine->ops->copy(engine, &(eng_pieces){.to = (uint8_t *)s->mtp_cat + half * bytes,
                                                .from = s->n,
                                                .to_stride = 2 * bytes,
                                                .from_stride = bytes,
                                                .bytes = bytes,
                                                .count = rows});
    }
    const eng_product into = {.matrix = &model->mtp_eh, .output = s->x};
    return engine->ops->linear(engine, s->mtp_cat, rows, &into, 1);
}

bool eng_mtp_run(eng_engine *engine, uint32_t row_count, bool full)
{
    eng_scratch *s = &engine->s;
    const eng_model *model = engine->model;
    sl_assert(model->mtp && row_count > 0 && row_count <= engine->rows_max);
    uint32_t hidden = (uint32_t)model->shape.hidden_size, index = model->layer_count - 1;
    engine->step_layer = model->layer_first + index;
    const eng_batch batch = {
        .row_count = row_count,
        .tokens = s->mtp_tokens,
        .rows = s->mtp_rows,
        .table = s->mtp_table,
        .positions = s->mtp_positions,
    };
    engine->ops->begin(engine, &batch);
    engine->ops->embed(engine, &batch, s->x);
    if (!mtp_input(engine, &batch))
        return false;
    if (!full)
        return eng_layer_run_keys(engine, index, &batch);
    if (!eng_layer_run(engine, index, &batch, true))
        return false;
    if (!engine->ops->norm(engine, s->x, s->res, model->mtp_norm, row_count, hidden, s->head_in,
                           NULL))
        return false;
    engine->ops->linear_f32(engine, &model->head, s->head_in, NULL, row_count, s->logits);
    if (engine->tap && engine->tap->draft)
        engine->tap->draft(
            engine->tap->context, s->mtp_positions, row_count,
            engine->ops->read(engine, s->logits,
                              (size_t)row_count * (size_t)model->shape.vocab_size * sizeof(float)));
    return true;
}

bool eng_mtp_run_alone(eng_engine *engine, const eng_batch *batch)
{
    eng_scratch *s = &engine->s;
    const eng_model *model = engine->model;
    uint32_t rows = batch->row_count;
    sl_assert(model->mtp_alone);
    engine->step_layer = model->layer_first;
    if (!mtp_input(engine, batch) || !eng_layer_run(engine, 0, batch, true) ||
        !engine->ops->norm(engine, s->x, s->res, model->mtp_norm, rows,
                           (uint32_t)model->shape.hidden_size, s->h, NULL))
        return false;
    if (engine->tap && engine->tap->normed)
        engine->tap->normed(engine->tap->context, batch->positions, rows,
                            engine->ops->read(engine, s->h, rows * eng_hidden_bytes(engine)));
    return true;
}
