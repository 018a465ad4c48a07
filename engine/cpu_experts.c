/* Router and experts on the CPU: the rows of all experts as one list of products.
 *
 * Thread: the engine thread. Owns nothing. */
#include "engine/cpu.h"

bool eng_cpu_route(eng_engine *engine, const eng_layer *layer, uint32_t rows)
{
    eng_scratch *s = &engine->s;
    const mdl_shape *shape = &engine->model->shape;
    const krn_route_args args = {
        .experts = (uint32_t)shape->expert_count,
        .groups = (uint32_t)shape->group_count,
        .groups_kept = (uint32_t)shape->topk_group_count,
        .chosen = (uint32_t)shape->experts_per_token,
        .scaling = (float)shape->routed_scaling_factor,
        .normalise = true,
    };
    if (!krn_route(engine->pool, &args, s->router_logits, layer->router_bias, rows, s->experts,
                   s->expert_weights)) {
        engine->fault = "a router score";
        return false;
    }
    krn_route_group(s->experts, rows, args.chosen, args.experts, s->expert_offsets, s->expert_rows,
                    s->expert_places);
    return true;
}

uint32_t eng_cpu_expert_inputs(const eng_engine *engine, const eng_layer *layer,
                               eng_cpu_product *out_products)
{
    const eng_scratch *s = &engine->s;
    uint32_t experts = (uint32_t)engine->model->shape.expert_count, count = 0;
    size_t width = (size_t)engine->model->shape.moe_intermediate_size;
    for (uint32_t e = 0; e < experts; e++) {
        uint32_t at = s->expert_offsets[e];
        if (s->expert_offsets[e + 1] == at)
            continue;
        eng_cpu_product product = {
            .matrix = &layer->experts[e].gate,
            .row_index = s->expert_rows + at,
            .rows = s->expert_offsets[e + 1] - at,
            .output = eng_row_at(engine, s->gate, at, width),
        };
        out_products[count++] = product;
        product.matrix = &layer->experts[e].up;
        product.output = eng_row_at(engine, s->up, at, width);
        out_products[count++] = product;
    }
    return count;
}

uint32_t eng_cpu_expert_downs(const eng_engine *engine, const eng_layer *layer,
                              eng_cpu_product *out_products)
{
    const eng_scratch *s = &engine->s;
    uint32_t experts = (uint32_t)engine->model->shape.expert_count, count = 0;
    size_t hidden = (size_t)engine->model->shape.hidden_size;
    for (uint32_t e = 0; e < experts; e++) {
        uint32_t at = s->expert_offsets[e];
        if (s->expert_offsets[e + 1] == at)
            continue;
        out_products[count++] = (eng_cpu_product){
            .matrix = &layer->experts[e].down,
            .input_row = at,
            .rows = s->expert_offsets[e + 1] - at,
            .output = eng_row_at(engine, s->down, at, hidden),
        };
    }
    return count;
}

/* Outputs of the experts' down projections into s.down (stacked by expert) and s.shared_out. */
static bool moe_down(eng_engine *engine, const eng_layer *layer, uint32_t rows, uint32_t stacked)
{
    eng_scratch *s = &engine->s;
    eng_cpu_product products[KRN_EXPERTS_MAX + 1];
    uint32_t width = layer->experts[0].gate.n, shared_width = layer->mlp.gate.n;
    void *shared_in = eng_row_at(engine, s->gate, stacked, width);
    uint32_t count = eng_cpu_expert_downs(engine, layer, products);
    eng_cpu_product shared = {.matrix = &layer->mlp.down, .rows = rows, .output = s->shared_out};
    if (shared_width == width) { /* same length of rows: one call for all */
        shared.input_row = stacked;
        products[count++] = shared;
        return eng_cpu_linear(engine, s->gate, stacked + rows, products, count);
    }
    return eng_cpu_linear(engine, s->gate, stacked, products, count) &&
           eng_cpu_linear(engine, shared_in, rows, &shared, 1);
}

/* Each expert works on the rows that chose it, stacked by expert. */
bool eng_cpu_experts(eng_engine *engine, const eng_layer *layer, uint32_t rows)
{
    eng_scratch *s = &engine->s;
    eng_cpu_product products[2 * KRN_EXPERTS_MAX + 2];
    uint32_t stacked = rows * (uint32_t)engine->model->shape.experts_per_token;
    uint32_t width = layer->experts[0].gate.n, shared_width = layer->mlp.gate.n;
    uint32_t count = eng_cpu_expert_inputs(engine, layer, products);
    eng_cpu_product shared = {
        .matrix = &layer->mlp.gate,
        .rows = rows,
        .output = eng_row_at(engine, s->gate, stacked, width),
    };
    products[count++] = shared;
    shared.matrix = &layer->mlp.up;
    shared.output = eng_row_at(engine, s->up, stacked, width);
    products[count++] = shared;
    if (!eng_cpu_linear(engine, s->n, rows, products, count))
        return false;
    eng_cpu_silu_mul(engine, s->gate, s->up, (size_t)stacked * width + (size_t)rows * shared_width);
    return moe_down(engine, layer, rows, stacked);
}
