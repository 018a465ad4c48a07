/* The order of prompts, and rows for a time. */
#include "engine/schedule.h"

#include "base/rng.h"
#include "tests/unit/test.h"

TEST(short_ones_first_but_not_for_ever)
{
    const eng_turn long_one = {.left = 16000, .since = 0, .order = 1};
    for (uint64_t rows = 0; rows < 100000; rows += 500) {
        const eng_turn short_one = {.left = 100, .since = rows, .order = 2 + rows};
        assert_int_equal(eng_turn_before(&long_one, &short_one, rows), rows >= 15900 * ENG_AGEING);
        assert_int_equal(eng_turn_before(&short_one, &long_one, rows),
                         !eng_turn_before(&long_one, &short_one, rows));
    }
    const eng_turn urgent = {.priority = -1, .left = 1 << 20, .since = 90000, .order = 9};
    assert_true(eng_turn_before(&urgent, &long_one, 90000));
    const eng_turn twin = {.left = 16000, .since = 0, .order = 2};
    assert_true(eng_turn_before(&long_one, &twin, 77));
    assert_false(eng_turn_before(&twin, &long_one, 77));
}

/* Prompts that come for ever: each is computed within ENG_AGEING times its length of others' rows
 * from when it is the oldest, and the short ones wait for little. */
TEST(nobody_starves)
{
    enum { SLOTS = 16, CHUNK = 128 };
    eng_turn turns[SLOTS];
    uint32_t total[SLOTS];
    uint64_t rows = 0, order = 0, draws = 0, shorts = 0, short_waits = 0;
    for (uint32_t i = 0; i < SLOTS; i++)
        turns[i].left = 0;
    for (uint32_t step = 0; step < 20000; step++) {
        for (uint32_t i = 0; i < SLOTS; i++) {
            if (turns[i].left > 0)
                continue;
            bool huge = sl_keyed_uniform(3, draws++, 1) < 0.02;
            total[i] = huge ? 4000 : 1 + (uint32_t)(sl_keyed_uniform(3, draws++, 2) * 100);
            turns[i] = (eng_turn){.left = total[i], .since = rows, .order = order++};
        }
        for (uint32_t left = CHUNK; left > 0;) {
            uint32_t best = SLOTS;
            for (uint32_t i = 0; i < SLOTS; i++)
                if (turns[i].left > 0 &&
                    (best == SLOTS || eng_turn_before(&turns[i], &turns[best], rows)))
                    best = i;
            if (best == SLOTS)
                break;
            uint32_t take = turns[best].left < left ? turns[best].left : left;
            turns[best].left -= take;
            left -= take;
            rows += take;
            uint64_t waited = rows - turns[best].since;
            if (turns[best].left > 0)
                continue;
            /* aged ones are served in order of age: a bounded number of equals may come before */
            assert_true(waited <= (uint64_t)(ENG_AGEING + 1) * total[best] + SLOTS * 4100);
            shorts += total[best] <= 100;
            short_waits += total[best] <= 100 ? waited : 0;
        }
    }
    print_message("a short prompt waits for %llu rows, of queues of %u prompts\n",
                  (unsigned long long)(short_waits / shorts), SLOTS);
    assert_true(short_waits / shorts < 4000);
}

static double noise(uint64_t at)
{
    return 0.95 + 0.1 * sl_keyed_uniform(5, at, 3);
}

/* A machine with a cost of its own, noisy: the budget is kept within a fifth once a few steps were
 * seen, at any position, and never starves. */
TEST(a_budget_becomes_rows)
{
    static const struct {
        double base, row, read;
    } MACHINES[] = {{2e6, 3e5, 40}, {3e8, 1e5, 2}, {1e5, 1e6, 1000}, {5e6, 2e5, 0}};
    for (size_t m = 0; m < sizeof(MACHINES) / sizeof(MACHINES[0]); m++) {
        eng_cost cost = {0};
        uint32_t position = 0, decodes = 4, good = 0, judged = 0;
        const uint64_t budget = 100 * 1000 * 1000;
        for (uint32_t step = 0; step < 400; step++) {
            eng_load load = {0};
            decodes = 1 + step % 7;
            for (uint32_t i = 0; i < decodes; i++)
                eng_load_add(&load, 500 + 10 * i + step, 1);
            uint64_t limit = eng_cost_predict_ns(&cost, &load) + budget;
            double alone = MACHINES[m].base + MACHINES[m].row * (double)load.rows +
                           MACHINES[m].read * (double)load.reads;
            uint32_t rows = step % 3 ? eng_cost_rows(&cost, &load, position, 512, limit, true) : 0;
            eng_load_add(&load, position, rows);
            double ns = MACHINES[m].base + MACHINES[m].row * (double)load.rows +
                        MACHINES[m].read * (double)load.reads;
            eng_cost_note(&cost, &load, (uint64_t)(ns * noise(step)));
            position = (position + rows) % 20000;
            assert_true(step % 3 == 0 || rows >= ENG_CHUNK_MIN);
            if (step < 30 || rows <= ENG_CHUNK_MIN)
                continue;
            judged++;
            good += ns - alone <= 1.2 * (double)budget + 0.1 * alone;
        }
        print_message("machine %zu: %u of %u steps within the budget\n", m, good, judged);
        assert_true(good * 10 >= judged * 9);
    }
}

TEST(edges)
{
    eng_cost cost = {0};
    eng_load none = {0};
    assert_int_equal(eng_cost_rows(&cost, &none, 0, 512, 0, true), ENG_CHUNK_MIN);
    assert_int_equal(eng_cost_rows(&cost, &none, 0, 5, 0, true), 5);
    assert_int_equal(eng_cost_rows(&cost, &none, 0, 512, 0, false), 0);
    assert_int_equal(eng_cost_predict_ns(&cost, &none), 0);
    for (int i = 0; i < 50; i++) { /* one kind of step only: terms cannot be told apart */
        eng_load one = {0};
        eng_load_add(&one, 100, 1);
        eng_cost_note(&cost, &one, 1000000);
    }
    eng_load one = {0};
    eng_load_add(&one, 100, 1);
    assert_in_range(eng_cost_predict_ns(&cost, &one), 990000, 1010000);
    assert_int_equal(eng_cost_rows(&cost, &one, 0, 512, UINT64_MAX, true), 512);
    assert_int_equal(eng_cost_rows(&cost, &one, 1 << 20, 512, 0, true), ENG_CHUNK_MIN);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(short_ones_first_but_not_for_ever),
    cmocka_unit_test(nobody_starves),
    cmocka_unit_test(a_budget_becomes_rows),
    cmocka_unit_test(edges),
};
TEST_MAIN(TESTS)
