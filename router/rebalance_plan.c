/* See rebalance_plan.h. A layer after the other. */
#include "router/rebalance_plan.h"

#include <string.h>

#include "cluster/balance.h"

typedef struct sums {
    clu_balance_sum before, after;
} sums;

/* Memory of one expert's weights; 0: not known. */
static uint64_t bytes_each(const rtr_rebalance_question *q)
{
    const clu_place_shape *shape = &q->table->shape;
    clu_placement *nothing = clu_placement_copy(q->table);
    for (uint64_t i = 0; i < clu_placement_entries(shape); i++)
        nothing->slots[i] = CLU_PLACE_EMPTY;
    uint64_t held = clu_place_moves(shape, nothing->slots, q->table->slots);
    clu_placement_destroy(nothing);
    return held ? q->bytes / held : 0;
}

static void add(sums *s, const clu_place_shape *shape, const double *loads, const uint16_t *before,
                const uint16_t *after)
{
    clu_balance_add_layer(&s->before, shape, loads, before);
    clu_balance_add_layer(&s->after, shape, loads, after);
}

static sl_status plan_layer(const rtr_rebalance_question *q, const clu_place_shape *shape,
                            const double *loads, const uint16_t *before, uint16_t *after,
                            sl_err *err)
{
    SL_TRY(clu_place_plan(shape, loads, after, err));
    clu_place_keep(shape, before, after);
    double was = clu_place_imbalance(shape, loads, before),
           is = clu_place_imbalance(shape, loads, after);
    if (was - is < q->gain * was || was - is <= 0)
        memcpy(after, before, (size_t)shape->ranks * shape->slots * sizeof *after);
    return sl_ok();
}

static sl_status plan_all(const rtr_rebalance_question *q, clu_placement *after,
                          rtr_rebalance_plan *plan, sl_err *err)
{
    clu_place_shape shape = q->table->shape;
    size_t of_layer = (size_t)shape.ranks * shape.slots;
    sums recent = {0}, past = {0};
    shape.layers = 1;
    for (size_t layer = 0; layer < q->table->shape.layers; layer++) {
        const double *loads = q->recent + layer * shape.experts;
        const uint16_t *before = q->table->slots + layer * of_layer;
        uint16_t *to = after->slots + layer * of_layer;
        if (q->stopped && __atomic_load_n(q->stopped, __ATOMIC_RELAXED))
            return sl_fail(err, SL_CANCELLED, "told to stop");
        SL_TRY(plan_layer(q, &shape, loads, before, to, err));
        plan->moves += clu_place_moves(&shape, before, to);
        add(&recent, &shape, loads, before, to);
        add(&past, &shape, q->past + layer * shape.experts, before, to);
    }
    plan->before = clu_balance_end(&recent.before).mean;
    plan->after = clu_balance_end(&recent.after).mean;
    plan->long_before = clu_balance_end(&past.before).mean;
    plan->long_after = clu_balance_end(&past.after).mean;
    return sl_ok();
}

sl_status rtr_rebalance_make_plan(const rtr_rebalance_question *q, clu_placement **out_table,
                                  rtr_rebalance_plan *out_plan, sl_err *err)
{
    clu_placement *after = clu_placement_copy(q->table);
    rtr_rebalance_plan plan = {.placement = q->table->version};
    sl_status status = plan_all(q, after, &plan, err);
    if (!sl_is_ok(status)) {
        clu_placement_destroy(after);
        return status;
    }
    plan.bytes = plan.moves * bytes_each(q);
    after->version++;
    *out_table = after;
    *out_plan = plan;
    return status;
}
