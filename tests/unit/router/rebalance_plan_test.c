/* Does a plan move what helps, leave what does not, and say truly what it would do? */
#include "router/rebalance_plan.h"

#include <math.h>

#include "cluster/balance.h"
#include "tests/unit/test.h"

enum { LAYERS = 3, EXPERTS = 8, RANKS = 4, SLOTS = 3 };

typedef struct fixture {
    clu_placement *table;
    double recent[LAYERS * EXPERTS], past[LAYERS * EXPERTS];
    rtr_rebalance_question question;
} fixture;

static void fresh(fixture *f)
{
    const clu_place_shape shape = {
        .layers = LAYERS, .experts = EXPERTS, .ranks = RANKS, .slots = SLOTS};
    sl_err err;
    *f = (fixture){0};
    assert_ok(clu_placement_create(&shape, 7, &f->table, &err), &err);
    for (uint32_t i = 0; i < LAYERS * EXPERTS; i++)
        f->recent[i] = f->past[i] = 100;
    f->question = (rtr_rebalance_question){
        .table = f->table, .recent = f->recent, .past = f->past, .gain = 0.05, .bytes = 0};
}

static clu_placement *plan(const fixture *f, rtr_rebalance_plan *out_plan)
{
    clu_placement *table;
    sl_err err;
    assert_ok(rtr_rebalance_make_plan(&f->question, &table, out_plan, &err), &err);
    assert_ok(clu_place_check(&table->shape, table->slots, &err), &err);
    assert_int_equal(table->version, 8);
    assert_int_equal(out_plan->placement, 7);
    return table;
}

/* A layer's load on one expert that has one slot, or all of it. */
static void skew(fixture *f, double *loads, uint32_t layer)
{
    uint32_t copies[EXPERTS] = {0}, single = EXPERTS;
    for (uint32_t i = 0; i < RANKS * SLOTS; i++)
        copies[f->table->slots[layer * RANKS * SLOTS + i]]++;
    for (uint32_t e = 0; e < EXPERTS; e++)
        single = copies[e] == 1 ? e : single;
    assert_true(single < EXPERTS);
    loads[layer * EXPERTS + single] = 2000;
}

TEST(a_layer_that_gains_moves_and_no_other)
{
    size_t of_layer = (size_t)RANKS * SLOTS;
    fixture f;
    rtr_rebalance_plan p;
    fresh(&f);
    skew(&f, f.recent, 1);
    skew(&f, f.past, 1);
    f.question.bytes = 4800;
    clu_placement *table = plan(&f, &p);
    for (size_t layer = 0; layer < LAYERS; layer += 2)
        assert_memory_equal(table->slots + layer * of_layer, f.table->slots + layer * of_layer,
                            of_layer * sizeof(uint16_t));
    assert_true(p.moves > 0 && p.after < p.before && p.long_after < p.long_before);
    assert_int_equal(p.moves, clu_place_moves(&table->shape, f.table->slots, table->slots));
    double after = clu_balance_of_table(&table->shape, f.recent, table->slots).mean;
    assert_true(fabs(p.after - after) < 1e-12);
    assert_true(p.bytes > 0 && p.bytes % p.moves == 0);
    clu_placement_destroy(table);
    clu_placement_destroy(f.table);
}

TEST(even_load_and_none_move_nothing)
{
    fixture f;
    rtr_rebalance_plan p;
    fresh(&f);
    memset(f.recent, 0, sizeof(f.recent));
    clu_placement *table = plan(&f, &p);
    assert_int_equal(p.moves, 0);
    assert_true(p.before == 1 && p.after == 1);
    assert_memory_equal(table->slots, f.table->slots,
                        clu_placement_entries(&table->shape) * sizeof(uint16_t));
    clu_placement_destroy(table);
    f.question.gain = 10; /* no layer gains so much */
    skew(&f, f.recent, 0);
    table = plan(&f, &p);
    assert_int_equal(p.moves, 0);
    assert_true(p.before > 1 && p.after == p.before);
    clu_placement_destroy(table);
    clu_placement_destroy(f.table);
}

TEST(what_helps_now_is_judged_by_the_past_too)
{
    fixture f;
    rtr_rebalance_plan p;
    fresh(&f);
    skew(&f, f.recent, 0);
    clu_placement *table = plan(&f, &p);
    assert_true(p.after < p.before);
    assert_true(p.long_after >= p.long_before); /* it was even */
    clu_placement_destroy(table);
    clu_placement_destroy(f.table);
}

TEST(what_cannot_be_planned_says_so)
{
    fixture f;
    rtr_rebalance_plan p;
    clu_placement *table;
    sl_err err;
    bool stopped = true;
    fresh(&f);
    f.question.stopped = &stopped;
    assert_code(rtr_rebalance_make_plan(&f.question, &table, &p, &err), SL_CANCELLED);
    stopped = false;
    f.recent[5] = NAN;
    assert_code(rtr_rebalance_make_plan(&f.question, &table, &p, &err), SL_INVALID);
    clu_placement_destroy(f.table);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(a_layer_that_gains_moves_and_no_other),
    cmocka_unit_test(even_load_and_none_move_nothing),
    cmocka_unit_test(what_helps_now_is_judged_by_the_past_too),
    cmocka_unit_test(what_cannot_be_planned_says_so),
};
TEST_MAIN(TESTS)
