/* Router, grouping by expert, combine.
 *
 * Thread: the pool's caller. */
#include "kernels/cpu/variant.h"

#include "base/assert.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

typedef struct route_work {
    const krn_route_args *args;
    const float *logits, *bias;
    uint32_t *experts;
    float *weights;
    atomic_bool fault;
} route_work;

/* Marks the `keep` largest of values [count], ties to the lower index; those marked already are not
 * candidates. */
static void mark_largest(const float *values, uint32_t count, uint32_t keep, bool *marks)
{
    for (uint32_t i = 0; i < keep; i++) {
        uint32_t best = count;
        for (uint32_t j = 0; j < count; j++)
            if (!marks[j] && (best == count || values[j] > values[best]))
                best = j;
        marks[best] = true;
    }
}

static float two_largest(const float *values, uint32_t count)
{
    float first = -INFINITY, second = -INFINITY;
    for (uint32_t i = 0; i < count; i++) {
        if (values[i] > first) {
            second = first;
            first = values[i];
        } else if (values[i] > second) {
            second = values[i];
        }
    }
    return first + second;
}

static bool route_row(const krn_route_args *a, const float *logits, const float *bias,
                      uint32_t *out_experts, float *out_weights)
{
    float sigmoid[KRN_EXPERTS_MAX], biased[KRN_EXPERTS_MAX], group[KRN_EXPERT_GROUPS_MAX] = {0};
    bool group_kept[KRN_EXPERT_GROUPS_MAX] = {false};
    bool chosen[KRN_EXPERTS_MAX] = {false};
    uint32_t size = a->experts / a->groups;
    for (uint32_t e = 0; e < a->experts; e++) {
        sigmoid[e] = 1.0f / (1.0f + krn_exp(-logits[e]));
        biased[e] = sigmoid[e] + bias[e];
        if (isnan(biased[e]))
            return false;
    }
    for (uint32_t g = 0; g < a->groups; g++)
        group[g] = two_largest(biased + g * size, size);
    mark_largest(group, a->groups, a->groups_kept, group_kept);
    for (uint32_t e = 0; e < a->experts; e++)
        if (!group_kept[e / size])
            biased[e] = -INFINITY;
    mark_largest(biased, a->experts, a->chosen, chosen);
    uint32_t count = 0;
    float sum = 0.0f;
    for (uint32_t e = 0; e < a->experts; e++) {
        if (!chosen[e])
            continue;
        out_experts[count] = e;
        out_weights[count++] = sigmoid[e];
        sum = sum + sigmoid[e];
    }
    for (uint32_t i = 0; i < count; i++) {
        float weight = a->normalise ? out_weights[i] / sum : out_weights[i];
        out_weights[i] = weight * a->scaling;
    }
    return true;
}

static void route_slice(void *context, uint32_t first, uint32_t count)
{
    route_work *w = context;
    uint32_t experts = w->args->experts, chosen = w->args->chosen;
    for (size_t t = first; t < (size_t)first + count; t++)
        if (!route_row(w->args, w->logits + t * experts, w->bias, w->experts + t * chosen,
                       w->weights + t * chosen))
            atomic_store_explicit(&w->fault, true, memory_order_relaxed);
}

bool krn_route(krn_pool *pool, const krn_route_args *args, const float *logits, const float *bias,
               uint32_t rows, uint32_t *out_experts, float *out_weights)
{
    sl_assert(args->experts <= KRN_EXPERTS_MAX && args->groups <= KRN_EXPERT_GROUPS_MAX);
    sl_assert(args->chosen <= KRN_EXPERTS_CHOSEN_MAX && args->experts % args->groups == 0);
    sl_assert(args->groups_kept * (args->experts / args->groups) >= args->chosen);
    route_work w = {.args = args,
                    .logits = logits,
                    .bias = bias,
                    .experts = out_experts,
                    .weights = out_weights};
    krn_pool_slices(pool, rows, 8, route_slice, &w);
    return !atomic_load_explicit(&w.fault, memory_order_relaxed);
}

void krn_route_group(const uint32_t *experts_chosen, uint32_t rows, uint32_t chosen,
                     uint32_t experts, uint32_t *out_offsets, uint32_t *out_rows,
                     uint32_t *out_places)
{
    uint32_t next[KRN_EXPERTS_MAX] = {0};
    sl_assert(experts <= KRN_EXPERTS_MAX);
    for (size_t i = 0; i < (size_t)rows * chosen; i++)
        next[experts_chosen[i]]++;
    uint32_t at = 0;
    for (uint32_t e = 0; e < experts; e++) {
        uint32_t count = next[e];
        out_offsets[e] = at;
        next[e] = at;
        at += count;
    }
    out_offsets[experts] = at;
    for (uint32_t t = 0; t < rows; t++) {
        for (uint32_t i = 0; i < chosen; i++) {
            uint32_t place = next[experts_chosen[(size_t)t * chosen + i]]++;
            out_rows[place] = t;
            out_places[(size_t)t * chosen + i] = place;
        }
    }
}

typedef struct combine_work {
    const uint16_t *outputs;
    const uint32_t *places;
    const float *weights;
    uint32_t chosen;
    const uint16_t *shared;
    uint32_t hidden;
    uint16_t *y;
} combine_work;

static void combine_slice(void *context, uint32_t first, uint32_t count)
{
    const combine_work *w = context;
    size_t at = (size_t)first * w->chosen, out = (size_t)first * w->hidden;
    krn_variant_current()->common->combine(w->outputs, w->places + at, w->weights + at, w->chosen,
                                           w->shared ? w->shared + out : NULL, count, w->hidden,
                                           w->y + out);
}

void krn_combine(krn_pool *pool, const uint16_t *outputs, const uint32_t *places,
                 const float *weights, uint32_t chosen, const uint16_t *shared, uint32_t rows,
                 uint32_t hidden, uint16_t *out_y)
{
    combine_work w = {.outputs = outputs,
                      .places = places,
                      .weights = weights,
                      .chosen = chosen,
                      .shared = shared,
                      .hidden = hidden,
                      .y = out_y};
    krn_pool_slices(pool, rows, 16, combine_slice, &w);
}

typedef struct plain_combine_work {
    const float *outputs;
    const uint32_t *places;
    const float *weights;
    uint32_t chosen;
    const float *shared;
    uint32_t hidden;
    float *y;
} plain_combine_work;

static void plain_combine_slice(void *context, uint32_t first, uint32_t count)
{
    const plain_combine_work *w = context;
    for (size_t t = first; t < (size_t)first + count; t++) {
        float *y = w->y + t * w->hidden;
        memset(y, 0, w->hidden * sizeof(float));
        for (uint32_t i = 0; i < w->chosen; i++) {
            const float *x = w->outputs + (size_t)w->places[t * w->chosen + i] * w->hidden;
            float weight = w->weights[t * w->chosen + i];
            for (uint32_t j = 0; j < w->hidden; j++)
                y[j] = y[j] + weight * x[j];
        }
        for (uint32_t j = 0; w->shared && j < w->hidden; j++)
            y[j] = y[j] + w->shared[t * w->hidden + j];
    }
}

void krn_plain_combine(krn_pool *pool, const float *outputs, const uint32_t *places,
                       const float *weights, uint32_t chosen, const float *shared, uint32_t rows,
                       uint32_t hidden, float *out_y)
{
    plain_combine_work w = {.outputs = outputs,
                            .places = places,
                            .weights = weights,
                            .chosen = chosen,
                            .shared = shared,
                            .hidden = hidden,
                            .y = out_y};
    krn_pool_slices(pool, rows, 16, plain_combine_slice, &w);
}
