/* Multi-token prediction (spec 5): u = eh_proj([enorm(embed(t)); hnorm(h)]), one MoE layer, head.
 *
 * A step keeps the layer's cache rows for every token; the whole layer runs for drafts only.
 * Thread: the engine thread. */
#include "engine/mtp.h"

#include <string.h>

#include "base/assert.h"

/* s.mtp_cat = [norm of embedding, norm of h] of each row. */
static bool mtp_input(eng_engine *engine, uint32_t rows)
{
    eng_scratch *s = &engine->s;
    const eng_model *model = engine->model;
    uint32_t hidden = (uint32_t)model->shape.hidden_size;
    size_t bytes = (size_t)hidden * engine->element_bytes;
    eng_op_embed(engine, s->mtp_tokens, rows, s->x);
    for (uint32_t half = 0; half < 2; half++) {
        const void *input = half ? s->mtp_h : s->x;
        const void *weight = half ? model->mtp_hnorm : model->mtp_enorm;
        if (!eng_op_norm(engine, input, NULL, weight, rows, hidden, s->n, NULL))
            return false;
        for (uint32_t i = 0; i < rows; i++)
            memcpy((uint8_t *)s->mtp_cat + (2 * i + half) * bytes, (uint8_t *)s->n + i * bytes,
                   bytes);
    }
    return true;
}

bool eng_mtp_run(eng_engine *engine, uint32_t row_count, bool full)
{
    eng_scratch *s = &engine->s;
    const eng_model *model = engine->model;
    sl_assert(model->mtp && row_count > 0 && row_count <= engine->rows_max);
    uint32_t hidden = (uint32_t)model->shape.hidden_size, index = model->layer_count - 1;
    engine->step_layer = model->layer_first + index;
    krn_rope_table(engine->pool, &model->rope, s->mtp_positions, row_count, s->mtp_table);
    const eng_batch batch = {
        .row_count = row_count,
        .rows = s->mtp_rows,
        .table = s->mtp_table,
        .positions = s->mtp_positions,
    };
    if (!mtp_input(engine, row_count))
        return false;
    const eng_product into = {.matrix = &model->mtp_eh, .rows = row_count, .output = s->x};
    if (!eng_op_linear(engine, s->mtp_cat, row_count, &into, 1))
        return false;
    if (!full)
        return eng_layer_run_keys(engine, index, &batch);
    if (!eng_layer_run(engine, index, &batch, true))
        return false;
    if (!eng_op_norm(engine, s->x, s->res, model->mtp_norm, row_count, hidden, s->head_in, NULL))
        return false;
    eng_op_linear_f32(engine, &model->head, s->head_in, NULL, row_count, s->logits);
    if (engine->tap && engine->tap->draft)
        engine->tap->draft(engine->tap->context, s->mtp_positions, row_count, s->logits);
    return true;
}
