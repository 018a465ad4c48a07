/* Plans a placement: see placement.h.
 *
 * One layer and one host at a time, in a work area of its own; loops are bounded by the shape.
 * Ties go to the lower number, so that equal loads give equal plans. Thread: any. */
#include "cluster/placement.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"

#define TRIES     12u  /* orders of packing; the first is by weight */
#define TRY_NOISE 0.05 /* more in each */
#define EXCHANGES_MAX                                                           \
    4096u /* of one layer and host; each makes the heavier of two ranks lighter \
           */

/* One host's part of a layer. */
typedef struct host_plan {
    uint32_t expert_count, rank_count, slots;
    uint16_t experts[CLU_PLACE_EXPERTS_MAX];
    double loads[CLU_PLACE_EXPERTS_MAX]; /* of experts[i] */
    uint32_t replicas[CLU_PLACE_EXPERTS_MAX];
    double shares[CLU_PLACE_EXPERTS_MAX]; /* load of one replica */
    uint32_t used[CLU_PLACE_RANKS_MAX];
    double rank_loads[CLU_PLACE_RANKS_MAX];
    uint16_t *items; /* [rank_count][slots]: indexes into experts */
    uint16_t *best;  /* the same, of the best try */
} host_plan;

typedef struct weighted {
    double weight;
    uint32_t index;
} weighted;

static int by_weight(const void *a, const void *b)
{
    const weighted *x = a, *y = b;
    if (x->weight != y->weight)
        return x->weight > y->weight ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

/* ---- checks ---- */

sl_status clu_place_check_shape(const clu_place_shape *shape, sl_err *err)
{
    uint32_t hosts = shape->hosts ? shape->hosts : 1, groups = shape->groups ? shape->groups : 1;
    if (shape->layers == 0 || shape->layers > CLU_PLACE_LAYERS_MAX || shape->experts == 0 ||
        shape->experts > CLU_PLACE_EXPERTS_MAX || shape->ranks == 0 ||
        shape->ranks > CLU_PLACE_RANKS_MAX || shape->slots == 0 ||
        shape->slots > CLU_PLACE_SLOTS_MAX)
        return sl_fail(err, SL_INVALID, "placement of %u experts in %u layers on %u ranks of %u",
                       shape->experts, shape->layers, shape->ranks, shape->slots);
    if (shape->ranks % hosts != 0 || shape->experts % groups != 0)
        return sl_fail(err, SL_INVALID, "placement: %u ranks on %u hosts, %u experts in %u groups",
                       shape->ranks, hosts, shape->experts, groups);
    if (shape->ranks * shape->slots < shape->experts)
        return sl_fail(err, SL_INVALID, "placement: %u experts, %u slots", shape->experts,
                       shape->ranks * shape->slots);
    uint32_t left = shape->ranks > 1 && !shape->fragile ? shape->ranks - 1 : shape->ranks;
    if (left * shape->slots < shape->experts)
        return sl_fail(err, SL_INVALID,
                       "placement: %u experts need a slot, %u ranks have %u: with one rank less "
                       "they would have no place",
                       shape->experts, shape->ranks, shape->ranks * shape->slots);
    return sl_ok();
}

sl_status clu_place_check(const clu_place_shape *shape, const uint16_t *slots, sl_err *err)
{
    SL_TRY(clu_place_check_shape(shape, err));
    for (uint32_t layer = 0; layer < shape->layers; layer++) {
        const uint16_t *of = slots + (size_t)layer * shape->ranks * shape->slots;
        bool seen[CLU_PLACE_EXPERTS_MAX] = {false};
        uint32_t there = 0;
        for (uint32_t i = 0; i < shape->ranks * shape->slots; i++) {
            if (of[i] >= shape->experts)
                return sl_fail(err, SL_INVALID, "placement: layer %u, rank %u: expert %u of %u",
                               layer, i / shape->slots, of[i], shape->experts);
            there += !seen[of[i]];
            seen[of[i]] = true;
        }
        if (there != shape->experts)
            return sl_fail(err, SL_INVALID, "placement: layer %u: %u experts are nowhere", layer,
                           shape->experts - there);
    }
    return sl_ok();
}

/* ---- moving little ---- */

static bool slots_have(const uint16_t *slots, uint32_t count, uint16_t expert)
{
    for (uint32_t i = 0; i < count; i++)
        if (slots[i] == expert)
            return true;
    return false;
}

/* Experts of `after` that `before` has not; both of one rank in a layer. */
static uint32_t rank_moves(const clu_place_shape *shape, const uint16_t *before,
                           const uint16_t *after)
{
    uint32_t moves = 0;
    for (uint32_t i = 0; i < shape->slots; i++)
        moves += !slots_have(after, i, after[i]) && !slots_have(before, shape->slots, after[i]);
    return moves;
}

uint64_t clu_place_moves(const clu_place_shape *shape, const uint16_t *before,
                         const uint16_t *after)
{
    uint64_t moves = 0;
    for (size_t at = 0; at < (size_t)shape->layers * shape->ranks; at++)
        moves += rank_moves(shape, before + at * shape->slots, after + at * shape->slots);
    return moves;
}

/* The pair of a rank and a list, neither given yet, with the fewest moves; ties to the lower. */
static void best_pair(const clu_place_shape *shape, const uint16_t *before, const uint16_t *lists,
                      const bool *rank_done, const bool *list_done, uint32_t *out_rank,
                      uint32_t *out_list)
{
    uint32_t best = UINT32_MAX;
    for (uint32_t rank = 0; rank < shape->ranks; rank++) {
        for (uint32_t list = 0; list < shape->ranks && !rank_done[rank]; list++) {
            if (list_done[list])
                continue;
            uint32_t moves = rank_moves(shape, before + (size_t)rank * shape->slots,
                                        lists + (size_t)list * shape->slots);
            if (moves >= best)
                continue;
            best = moves;
            *out_rank = rank;
            *out_list = list;
        }
    }
}

void clu_place_keep(const clu_place_shape *shape, const uint16_t *before, uint16_t *slots)
{
    size_t of_layer = (size_t)shape->ranks * shape->slots;
    uint16_t *lists = sl_alloc(of_layer, sizeof(*lists), "placement lists");
    for (uint32_t layer = 0; layer < shape->layers; layer++) {
        bool rank_done[CLU_PLACE_RANKS_MAX] = {false}, list_done[CLU_PLACE_RANKS_MAX] = {false};
        uint16_t *of = slots + layer * of_layer;
        memcpy(lists, of, of_layer * sizeof(*lists));
        for (uint32_t i = 0; i < shape->ranks; i++) {
            uint32_t rank = 0, list = 0;
            best_pair(shape, before + layer * of_layer, lists, rank_done, list_done, &rank, &list);
            rank_done[rank] = list_done[list] = true;
            memcpy(of + (size_t)rank * shape->slots, lists + (size_t)list * shape->slots,
                   shape->slots * sizeof(*of));
        }
    }
    sl_free(lists);
}

/* ---- healing ---- */

/* Copies of each expert among the slots that are left. */
static void count_copies(const clu_place_shape *shape, const uint16_t *slots, uint32_t *out_copies)
{
    memset(out_copies, 0, shape->experts * sizeof(*out_copies));
    for (uint32_t i = 0; i < shape->ranks * shape->slots; i++)
        if (slots[i] != CLU_PLACE_EMPTY)
            out_copies[slots[i]]++;
}

/* The rank's slot with the expert that has the most copies; shape->slots: none has two. */
static uint32_t spare_slot(const clu_place_shape *shape, const uint16_t *of_rank,
                           const uint32_t *copies)
{
    uint32_t best = shape->slots;
    for (uint32_t i = 0; i < shape->slots; i++)
        if (copies[of_rank[i]] > 1 &&
            (best == shape->slots || copies[of_rank[i]] > copies[of_rank[best]]))
            best = i;
    return best;
}

static bool heal_expert(const clu_place_shape *shape, uint64_t mask, uint32_t expert,
                        uint32_t *came, uint32_t *copies, uint16_t *slots)
{
    uint32_t to = shape->ranks, at = 0;
    for (uint32_t rank = 0; rank < shape->ranks; rank++) {
        if ((mask >> rank & 1) == 0 || (to < shape->ranks && came[rank] >= came[to]))
            continue;
        uint32_t spare = spare_slot(shape, slots + (size_t)rank * shape->slots, copies);
        if (spare == shape->slots)
            continue;
        to = rank;
        at = spare;
    }
    if (to == shape->ranks)
        return false;
    uint16_t *slot = slots + (size_t)to * shape->slots + at;
    copies[*slot]--;
    copies[expert]++;
    came[to]++;
    *slot = (uint16_t)expert;
    return true;
}

sl_status clu_place_heal(const clu_place_shape *shape, const uint16_t *slots, uint64_t mask,
                         uint16_t *out_slots, sl_err *err)
{
    size_t of_layer = (size_t)shape->ranks * shape->slots;
    memcpy(out_slots, slots, shape->layers * of_layer * sizeof(*slots));
    for (size_t i = 0; i < shape->layers * of_layer; i++)
        if ((mask >> (i % of_layer / shape->slots) & 1) == 0)
            out_slots[i] = CLU_PLACE_EMPTY;
    for (uint32_t layer = 0; layer < shape->layers; layer++) {
        uint32_t copies[CLU_PLACE_EXPERTS_MAX], came[CLU_PLACE_RANKS_MAX] = {0};
        uint16_t *of = out_slots + layer * of_layer;
        count_copies(shape, of, copies);
        for (uint32_t e = 0; e < shape->experts; e++)
            if (copies[e] == 0 && !heal_expert(shape, mask, e, came, copies, of))
                return sl_fail(err, SL_INVALID, "layer %u: no room for expert %u on the ranks left",
                               layer, e);
    }
    return sl_ok();
}

double clu_place_imbalance(const clu_place_shape *shape, const double *loads, const uint16_t *slots)
{
    uint32_t replicas[CLU_PLACE_EXPERTS_MAX] = {0};
    double most = 0, total = 0;
    for (uint32_t i = 0; i < shape->ranks * shape->slots; i++)
        if (slots[i] != CLU_PLACE_EMPTY)
            replicas[slots[i]]++;
    for (uint32_t rank = 0; rank < shape->ranks; rank++) {
        double load = 0;
        for (uint32_t i = 0; i < shape->slots; i++) {
            uint32_t expert = slots[rank * shape->slots + i];
            if (expert == CLU_PLACE_EMPTY)
                continue;
            load += loads[expert] / replicas[expert];
        }
        most = load > most ? load : most;
        total += load;
    }
    return total > 0 ? most * shape->ranks / total : 1;
}

/* ---- one host ---- */

static uint16_t *items_of(const host_plan *p, uint32_t rank)
{
    return p->items + (size_t)rank * p->slots;
}

static void put(host_plan *p, uint32_t rank, uint32_t item)
{
    sl_assert(p->used[rank] < p->slots);
    items_of(p, rank)[p->used[rank]++] = (uint16_t)item;
    p->rank_loads[rank] += p->shares[item];
}

/* What a weight counts for in a try: 1 in the first, more and more at random in the others, so that
 * they come to other plans. */
static double noise(uint32_t try, uint32_t item, uint32_t purpose)
{
    return 1 + TRY_NOISE * try * sl_keyed_uniform(try, item, purpose);
}

/* One each, then one more for whoever has the highest load a replica; a try may weigh otherwise. */
static void replicate(host_plan *p, uint32_t try)
{
    for (uint32_t i = 0; i < p->expert_count; i++)
        p->replicas[i] = 1;
    for (uint32_t total = p->expert_count; total < p->rank_count * p->slots; total++) {
        uint32_t best = p->expert_count;
        double best_load = -1;
        for (uint32_t i = 0; i < p->expert_count; i++) {
            double load = p->loads[i] * noise(try, i, 1) / p->replicas[i];
            if (load <= best_load)
                continue;
            best = i;
            best_load = load;
        }
        p->replicas[best]++;
    }
    for (uint32_t i = 0; i < p->expert_count; i++)
        p->shares[i] = p->loads[i] / p->replicas[i];
}

/* The lightest rank with room; there is one, as there are as many items as slots. */
static uint32_t lightest(const host_plan *p)
{
    uint32_t best = p->rank_count;
    for (uint32_t rank = 0; rank < p->rank_count; rank++)
        if (p->used[rank] < p->slots &&
            (best == p->rank_count || p->rank_loads[rank] < p->rank_loads[best]))
            best = rank;
    return best;
}

/* Heaviest first, each to the lightest rank; in a later try by weights that are a little off. */
static void pack_host(host_plan *p, weighted *order, uint32_t try)
{
    memset(p->used, 0, sizeof(p->used));
    memset(p->rank_loads, 0, sizeof(p->rank_loads));
    for (uint32_t i = 0; i < p->expert_count; i++)
        order[i] = (weighted){p->shares[i] * noise(try, i, 2), i};
    qsort(order, p->expert_count, sizeof(*order), by_weight);
    for (uint32_t i = 0; i < p->expert_count; i++) {
        uint32_t item = order[i].index;
        for (uint32_t replica = 0; replica < p->replicas[item]; replica++)
            put(p, lightest(p), item);
    }
}

/* Exchanges an item of `heavy` for one of `light` so that the heavier of the two is as light as can
 * be; false: it cannot be lighter. */
static bool exchange(host_plan *p, uint32_t heavy, uint32_t light)
{
    double gap = p->rank_loads[heavy] - p->rank_loads[light], best = gap * (1 - 1e-9);
    uint32_t from = p->slots, to = p->slots;
    for (uint32_t i = 0; i < p->used[heavy]; i++) {
        uint32_t a = items_of(p, heavy)[i];
        for (uint32_t j = 0; j < p->used[light]; j++) {
            uint32_t b = items_of(p, light)[j];
            double after = fabs(gap - 2 * (p->shares[a] - p->shares[b]));
            if (after >= best)
                continue;
            best = after;
            from = i;
            to = j;
        }
    }
    if (from == p->slots)
        return false;
    uint16_t *a = &items_of(p, heavy)[from], *b = &items_of(p, light)[to], held = *a;
    double moved = p->shares[*a] - p->shares[*b];
    p->rank_loads[heavy] -= moved;
    p->rank_loads[light] += moved;
    *a = *b;
    *b = held;
    return true;
}

static void refine(host_plan *p, weighted *order)
{
    for (uint32_t round = 0; round < EXCHANGES_MAX; round++) {
        for (uint32_t rank = 0; rank < p->rank_count; rank++)
            order[rank] = (weighted){p->rank_loads[rank], rank};
        qsort(order, p->rank_count, sizeof(*order), by_weight);
        bool changed = false;
        for (uint32_t i = p->rank_count; i > 1 && !changed; i--)
            changed = exchange(p, order[0].index, order[i - 1].index);
        if (!changed)
            return;
    }
}

/* ---- a layer ---- */

/* Which host each group goes to: heaviest first to the lightest host, as many to each. */
static void groups_to_hosts(const clu_place_shape *shape, const double *loads, uint32_t groups,
                            uint32_t hosts, weighted *order, uint32_t *out_hosts)
{
    double host_loads[CLU_PLACE_RANKS_MAX] = {0};
    uint32_t host_groups[CLU_PLACE_RANKS_MAX] = {0}, size = shape->experts / groups;
    for (uint32_t g = 0; g < groups; g++) {
        order[g] = (weighted){0, g};
        for (uint32_t e = g * size; e < (g + 1) * size; e++)
            order[g].weight += loads[e];
    }
    qsort(order, groups, sizeof(*order), by_weight);
    for (uint32_t i = 0; i < groups; i++) {
        uint32_t best = hosts;
        for (uint32_t h = 0; h < hosts; h++)
            if (host_groups[h] < groups / hosts &&
                (best == hosts || host_loads[h] < host_loads[best]))
                best = h;
        out_hosts[order[i].index] = best;
        host_loads[best] += order[i].weight;
        host_groups[best]++;
    }
}

static double heaviest(const host_plan *p)
{
    double most = 0;
    for (uint32_t rank = 0; rank < p->rank_count; rank++)
        most = p->rank_loads[rank] > most ? p->rank_loads[rank] : most;
    return most;
}

static void plan_host(host_plan *p, weighted *order, uint16_t *out_slots)
{
    size_t slots = (size_t)p->rank_count * p->slots;
    double best = INFINITY;
    for (uint32_t try = 0; try < TRIES; try++) {
        replicate(p, try);
        pack_host(p, order, try);
        refine(p, order);
        if (heaviest(p) >= best * (1 - 1e-12))
            continue;
        best = heaviest(p);
        for (uint32_t i = 0; i < slots; i++)
            p->best[i] = p->experts[p->items[i]];
    }
    memcpy(out_slots, p->best, slots * sizeof(*out_slots));
}

static void plan_layer(const clu_place_shape *shape, const double *loads, host_plan *p,
                       weighted *order, uint16_t *out_slots)
{
    uint32_t groups = shape->groups ? shape->groups : 1, hosts = shape->hosts ? shape->hosts : 1;
    uint32_t host_of[CLU_PLACE_EXPERTS_MAX] = {0};
    bool split = hosts > 1 && groups % hosts == 0 &&
                 shape->ranks / hosts * shape->slots >= shape->experts / hosts;
    if (split)
        groups_to_hosts(shape, loads, groups, hosts, order, host_of);
    else
        hosts = 1; /* groups do not fit hosts: all ranks are as one */
    p->rank_count = shape->ranks / hosts;
    p->slots = shape->slots;
    for (uint32_t host = 0; host < hosts; host++) {
        p->expert_count = 0;
        for (uint32_t e = 0; e < shape->experts; e++) {
            if (split && host_of[e / (shape->experts / groups)] != host)
                continue;
            p->experts[p->expert_count] = (uint16_t)e;
            p->loads[p->expert_count++] = loads[e];
        }
        plan_host(p, order, out_slots + (size_t)host * p->rank_count * p->slots);
    }
}

sl_status clu_place_plan(const clu_place_shape *shape, const double *loads, uint16_t *out_slots,
                         sl_err *err)
{
    SL_TRY(clu_place_check_shape(shape, err));
    for (size_t i = 0; i < (size_t)shape->layers * shape->experts; i++)
        if (!isfinite(loads[i]) || loads[i] < 0)
            return sl_fail(err, SL_INVALID, "placement: layer %zu, expert %zu: a load of %g",
                           i / shape->experts, i % shape->experts, loads[i]);
    size_t slots = (size_t)shape->ranks * shape->slots;
    host_plan *plan = sl_alloc(1, sizeof(*plan), "placement plan");
    plan->items = sl_alloc(slots, sizeof(uint16_t), "placement items");
    plan->best = sl_alloc(slots, sizeof(uint16_t), "placement items");
    weighted *order = sl_alloc(CLU_PLACE_EXPERTS_MAX, sizeof(*order), "placement order");
    for (size_t layer = 0; layer < shape->layers; layer++)
        plan_layer(shape, loads + layer * shape->experts, plan, order, out_slots + layer * slots);
    sl_free(order);
    sl_free(plan->best);
    sl_free(plan->items);
    sl_free(plan);
    return sl_ok();
}
