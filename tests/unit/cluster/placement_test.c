/* Planning of placements: what must hold for any load, and balance beside DeepSeek's published
 * EPLB, re-implemented here from its description. */
#include <math.h>

#include "base/rng.h"
#include "cluster/placement_table.h"
#include "tests/unit/test.h"

enum { SLOTS_ALL = 1024 };

/* ---- EPLB as published ---- */

/* Items by weight, heaviest first. */
static void sorted(const double *weights, uint32_t count, uint32_t *out_order)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = i;
        for (; at > 0 && weights[out_order[at - 1]] < weights[i]; at--)
            out_order[at] = out_order[at - 1];
        out_order[at] = i;
    }
}

/* As many items to each pack, each to the lightest that has room. */
static void balanced_packing(const double *weights, uint32_t count, uint32_t packs,
                             uint32_t *out_pack)
{
    double loads[SLOTS_ALL] = {0};
    uint32_t used[SLOTS_ALL] = {0}, order[SLOTS_ALL];
    sorted(weights, count, order);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t best = packs;
        for (uint32_t p = 0; p < packs; p++)
            if (used[p] < count / packs && (best == packs || loads[p] < loads[best]))
                best = p;
        out_pack[order[i]] = best;
        loads[best] += weights[order[i]];
        used[best]++;
    }
}

/* max / mean of the ranks' loads. */
static double eplb(const clu_place_shape *shape, const double *loads)
{
    uint32_t hosts = shape->groups % shape->hosts == 0 ? shape->hosts : 1;
    uint32_t groups = hosts > 1 ? shape->groups : 1, size = shape->experts / groups;
    uint32_t host_of[SLOTS_ALL], ranks = shape->ranks / hosts, slots = ranks * shape->slots;
    double group_loads[SLOTS_ALL] = {0}, most = 0, total = 0;
    for (uint32_t e = 0; e < shape->experts; e++) {
        group_loads[e / size] += loads[e];
        total += loads[e];
    }
    balanced_packing(group_loads, groups, hosts, host_of);
    for (uint32_t host = 0; host < hosts; host++) {
        uint32_t expert[SLOTS_ALL], replicas[SLOTS_ALL], count = 0, rank_of[SLOTS_ALL];
        double shares[SLOTS_ALL], rank_loads[SLOTS_ALL] = {0};
        for (uint32_t e = 0; e < shape->experts; e++) {
            replicas[e] = 1;
            if (host_of[e / size] == host)
                expert[count++] = e;
        }
        for (uint32_t own = count; count < slots; count++) {
            uint32_t best = expert[0];
            for (uint32_t i = 0; i < own; i++)
                if (loads[expert[i]] / replicas[expert[i]] > loads[best] / replicas[best])
                    best = expert[i];
            replicas[best]++;
            expert[count] = best;
        }
        for (uint32_t i = 0; i < slots; i++)
            shares[i] = loads[expert[i]] / replicas[expert[i]];
        balanced_packing(shares, slots, ranks, rank_of);
        for (uint32_t i = 0; i < slots; i++)
            rank_loads[rank_of[i]] += shares[i];
        for (uint32_t r = 0; r < ranks; r++)
            most = rank_loads[r] > most ? rank_loads[r] : most;
    }
    return most * shape->ranks / total;
}

/* ---- loads ---- */

typedef enum kind { EVEN, RANDOM, ZIPF, ONE_HOT, GROUPED, KINDS } kind;

static void fill(kind of, uint64_t seed, const clu_place_shape *shape, double *out_loads)
{
    for (uint32_t e = 0; e < shape->experts; e++) {
        double u = sl_keyed_uniform(seed, e, 1);
        double random = 50 + 100 * u;
        uint32_t rank = (uint32_t)(sl_keyed_uniform(seed, e, 2) * shape->experts);
        out_loads[e] = of == EVEN      ? 10
                       : of == RANDOM  ? random
                       : of == ZIPF    ? 10000.0 / (1 + rank)
                       : of == ONE_HOT ? (e == seed % shape->experts ? 1000 : 1)
                                       : random * (1 + e * shape->groups / shape->experts % 4 * 3);
    }
}

static const clu_place_shape SHAPES[] = {
    {.layers = 1, .experts = 16, .groups = 4, .ranks = 3, .hosts = 1, .slots = 8},
    {.layers = 1, .experts = 16, .groups = 4, .ranks = 4, .hosts = 1, .slots = 6},
    {.layers = 1, .experts = 12, .groups = 4, .ranks = 8, .hosts = 2, .slots = 2},
    {.layers = 1, .experts = 256, .groups = 8, .ranks = 32, .hosts = 4, .slots = 9},
    {.layers = 1, .experts = 256, .groups = 8, .ranks = 32, .hosts = 1, .slots = 10},
    {.layers = 1, .experts = 256, .groups = 8, .ranks = 16, .hosts = 3 - 1, .slots = 18},
};

TEST(balance_is_that_of_eplb_or_better)
{
    double loads[CLU_PLACE_EXPERTS_MAX], sum_ours = 0, sum_theirs = 0;
    uint16_t slots[SLOTS_ALL];
    sl_err err;
    uint32_t better = 0, count = 0;
    for (size_t s = 0; s < sizeof(SHAPES) / sizeof(SHAPES[0]); s++) {
        const clu_place_shape *shape = &SHAPES[s];
        for (uint64_t seed = 0; seed < 12; seed++) {
            for (int of = 0; of < KINDS; of++) {
                fill((kind)of, seed, shape, loads);
                assert_ok(clu_place_plan(shape, loads, slots, &err), &err);
                assert_ok(clu_place_check(shape, slots, &err), &err);
                double ours = clu_place_imbalance(shape, loads, slots);
                double theirs = eplb(shape, loads);
                if (ours > theirs * (1 + 1e-9))
                    fail_msg("shape %zu, loads %d, seed %d: %.6f, EPLB %.6f", s, of, (int)seed,
                             ours, theirs);
                better += ours < theirs * (1 - 1e-9);
                count++;
                sum_ours += ours;
                sum_theirs += theirs;
            }
        }
    }
    print_message("max/mean: %.4f on average, EPLB %.4f; better in %u of %u, never worse\n",
                  sum_ours / count, sum_theirs / count, better, count);
}

TEST(layers_are_planned_apart_and_alike)
{
    const clu_place_shape shape = {.layers = 3, .experts = 16, .groups = 4, .ranks = 4, .slots = 6};
    double loads[3 * 16];
    uint16_t one[3 * 24], two[3 * 24];
    sl_err err;
    fill(ZIPF, 1, &shape, loads);
    fill(EVEN, 1, &shape, loads + 16);
    fill(ZIPF, 1, &shape, loads + 32);
    assert_ok(clu_place_plan(&shape, loads, one, &err), &err);
    assert_ok(clu_place_plan(&shape, loads, two, &err), &err);
    assert_ok(clu_place_check(&shape, one, &err), &err);
    assert_memory_equal(one, two, sizeof(one));
    assert_memory_equal(one, one + 48, 24 * sizeof(one[0]));
}

/* More slots than experts times ranks: shares get finer, loads stay even. */
TEST(slots_to_spare)
{
    const clu_place_shape shape = {.layers = 1, .experts = 3, .ranks = 2, .slots = 6};
    const double loads[3] = {5, 0, 1};
    uint16_t slots[12];
    sl_err err;
    assert_ok(clu_place_plan(&shape, loads, slots, &err), &err);
    assert_ok(clu_place_check(&shape, slots, &err), &err);
    assert_true(clu_place_imbalance(&shape, loads, slots) < 1.2);
    const double none[3] = {0, 0, 0};
    assert_true(clu_place_imbalance(&shape, none, slots) == 1);
}

static void refused(clu_place_shape shape, const char *words)
{
    sl_err err;
    assert_code(clu_place_check_shape(&shape, &err), SL_INVALID);
    assert_text_contains(err.text, words);
}

TEST(what_cannot_be_healed_or_is_wrong_is_refused)
{
    sl_err err;
    refused((clu_place_shape){.layers = 1, .experts = 16, .ranks = 4, .slots = 5}, "one rank less");
    refused((clu_place_shape){.layers = 1, .experts = 16, .ranks = 1, .slots = 15}, "");
    refused((clu_place_shape){.layers = 0, .experts = 16, .ranks = 2, .slots = 16}, "0 layers");
    refused((clu_place_shape){.layers = 1, .experts = 513, .ranks = 2, .slots = 512}, "513");
    refused((clu_place_shape){.layers = 1, .experts = 16, .ranks = 65, .slots = 16}, "65");
    refused((clu_place_shape){.layers = 1, .experts = 16, .ranks = 4, .hosts = 3, .slots = 16},
            "3 hosts");
    refused((clu_place_shape){.layers = 1, .experts = 16, .groups = 3, .ranks = 4, .slots = 16},
            "3 groups");
    const clu_place_shape shape = {.layers = 1, .experts = 2, .ranks = 2, .slots = 2};
    uint16_t slots[4];
    assert_code(clu_place_plan(&shape, (double[]){1, -1}, slots, &err), SL_INVALID);
    assert_code(clu_place_plan(&shape, (double[]){NAN, 1}, slots, &err), SL_INVALID);
    assert_code(clu_place_check(&shape, (uint16_t[]){0, 2, 1, 0}, &err), SL_INVALID);
    assert_text_contains(err.text, "expert 2 of 2");
    assert_code(clu_place_check(&shape, (uint16_t[]){0, 0, 0, 0}, &err), SL_INVALID);
    assert_text_contains(err.text, "1 experts are nowhere");
}

static bool holds(const clu_place_shape *shape, const uint16_t *slots, uint32_t rank, uint16_t e)
{
    for (uint32_t i = 0; i < shape->slots; i++)
        if (slots[rank * shape->slots + i] == e)
            return true;
    return false;
}

/* ---- moving little ---- */

TEST(a_plan_keeps_what_it_can)
{
    double loads[CLU_PLACE_EXPERTS_MAX];
    uint16_t before[SLOTS_ALL], plan[SLOTS_ALL], kept[SLOTS_ALL];
    sl_err err;
    for (size_t s = 0; s < 5; s++) {
        const clu_place_shape *shape = &SHAPES[s];
        if (shape->hosts > 1)
            continue;
        fill(RANDOM, 1, shape, loads);
        assert_ok(clu_place_plan(shape, loads, before, &err), &err);
        assert_int_equal(clu_place_moves(shape, before, before), 0);
        memcpy(kept, before, sizeof(kept)); /* the same, but ranks 0 and 1 have changed places */
        memcpy(kept, before + shape->slots, shape->slots * sizeof(*kept));
        memcpy(kept + shape->slots, before, shape->slots * sizeof(*kept));
        clu_place_keep(shape, before, kept);
        assert_int_equal(clu_place_moves(shape, before, kept), 0);
        fill(ZIPF, 2, shape, loads);
        assert_ok(clu_place_plan(shape, loads, plan, &err), &err);
        memcpy(kept, plan, sizeof(kept));
        clu_place_keep(shape, before, kept);
        assert_ok(clu_place_check(shape, kept, &err), &err);
        assert_true(fabs(clu_place_imbalance(shape, loads, kept) -
                         clu_place_imbalance(shape, loads, plan)) < 1e-12);
        uint64_t moves = clu_place_moves(shape, before, kept);
        assert_true(moves <= clu_place_moves(shape, before, plan));
        print_message("%u experts on %u ranks: %u of %u slots change\n", shape->experts,
                      shape->ranks, (unsigned)moves, shape->ranks * shape->slots);
    }
}

/* ---- healing ---- */

TEST(any_rank_may_die)
{
    double loads[CLU_PLACE_EXPERTS_MAX];
    uint16_t slots[SLOTS_ALL], healed[SLOTS_ALL];
    sl_err err;
    for (size_t s = 0; s < 5; s++) {
        const clu_place_shape *shape = &SHAPES[s];
        for (uint32_t dead = 0; dead<shape->ranks; dead += shape->ranks> 8 ? 11 : 1) {
            uint64_t mask = (UINT64_MAX >> (64 - shape->ranks)) & ~(UINT64_C(1) << dead);
            uint32_t most = 0, least = UINT32_MAX;
            fill(ZIPF, dead, shape, loads);
            assert_ok(clu_place_plan(shape, loads, slots, &err), &err);
            assert_ok(clu_place_heal(shape, slots, mask, healed, &err), &err);
            for (uint32_t rank = 0; rank < shape->ranks; rank++) {
                uint32_t came = 0;
                for (uint32_t i = 0; i < shape->slots; i++) {
                    uint16_t e = healed[rank * shape->slots + i];
                    assert_int_equal(e == CLU_PLACE_EMPTY, rank == dead);
                    came += rank != dead && !holds(shape, slots, rank, e);
                }
                most = came > most && rank != dead ? came : most;
                least = came < least && rank != dead ? came : least;
            }
            for (uint16_t e = 0; e < shape->experts; e++) {
                bool there = false;
                for (uint32_t rank = 0; rank < shape->ranks; rank++)
                    there |= holds(shape, healed, rank, e);
                if (!there)
                    fail_msg("shape %zu without rank %u: expert %u is nowhere", s, dead, e);
            }
            assert_true(most <=
                        least + 2); /* they come to all ranks alike, where these have room */
        }
    }
}

TEST(what_has_no_room_is_not_healed)
{
    const clu_place_shape shape = {
        .layers = 1, .experts = 4, .ranks = 2, .slots = 2, .fragile = true};
    const uint16_t slots[4] = {0, 1, 2, 3};
    uint16_t healed[4];
    sl_err err;
    assert_ok(clu_place_check(&shape, slots, &err), &err);
    assert_ok(clu_place_heal(&shape, slots, 3, healed, &err), &err);
    assert_memory_equal(slots, healed, sizeof(slots));
    assert_code(clu_place_heal(&shape, slots, 1, healed, &err), SL_INVALID);
    assert_text_contains(err.text, "no room for expert 2");
}

/* ---- tables ---- */

TEST(tables_are_read_as_they_were_written)
{
    const clu_place_shape shape = {.layers = 3, .experts = 16, .groups = 4, .ranks = 4, .slots = 6};
    clu_placement *table, *again;
    sl_buf buf;
    sl_err err;
    assert_ok(clu_placement_create(&shape, 9, &table, &err), &err);
    sl_buf_init(&buf, 0);
    clu_placement_write_json(&buf, table);
    assert_ok(clu_placement_parse_json(buf.data, buf.size, &again, &err), &err);
    assert_true(again->version == 9 && clu_placement_fits(again, &shape) && !again->shape.fragile);
    assert_memory_equal(again->slots, table->slots,
                        clu_placement_entries(&shape) * sizeof(uint16_t));
    clu_placement_destroy(again);
    clu_placement_destroy(table);
    sl_buf_fini(&buf);
}

TEST(tables_are_read_strictly)
{
    static const char *const BAD[] = {
        "",
        "{}",
        "{\"version\":0,\"experts\":2,\"groups\":1,\"slots\":2,\"layers\":[[[0,1],[0,1]]]}",
        "{\"version\":1,\"experts\":2,\"groups\":1,\"slots\":2,\"layers\":[]}",
        "{\"version\":1,\"experts\":2,\"groups\":1,\"slots\":2,\"layers\":7}",
        "{\"version\":1,\"experts\":2,\"groups\":1,\"slots\":2,\"layers\":[[[0,1],[0]]]}",
        "{\"version\":1,\"experts\":2,\"groups\":1,\"slots\":2,\"layers\":[[[0,1],[0,2]]]}",
        "{\"version\":1,\"experts\":2,\"groups\":1,\"slots\":2,\"layers\":[[[0,0],[0,0]]]}",
        "{\"version\":1,\"experts\":5,\"groups\":1,\"slots\":2,\"layers\":[[[0,1],[2,3]]]}",
        "{\"version\":1,\"experts\":2,\"groups\":1,\"slots\":2,\"layers\":[[[0,1],[0,1]],[[0,1]]]}",
    };
    clu_placement *table;
    sl_err err;
    for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++)
        if (clu_placement_parse_json(BAD[i], strlen(BAD[i]), &table, &err).code != SL_INVALID)
            fail_msg("taken: %s", BAD[i]);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(balance_is_that_of_eplb_or_better),
    cmocka_unit_test(layers_are_planned_apart_and_alike),
    cmocka_unit_test(slots_to_spare),
    cmocka_unit_test(what_cannot_be_healed_or_is_wrong_is_refused),
    cmocka_unit_test(a_plan_keeps_what_it_can),
    cmocka_unit_test(any_rank_may_die),
    cmocka_unit_test(what_has_no_room_is_not_healed),
    cmocka_unit_test(tables_are_read_as_they_were_written),
    cmocka_unit_test(tables_are_read_strictly),
};
TEST_MAIN(TESTS)
