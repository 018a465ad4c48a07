/* The continuous batch on a nano model: whatever the depth of drafts and whoever gives way, the
 * same tokens, log-probabilities, ends and kept pages. */
#include "base/fault.h"
#include "tests/unit/decode/batch_kit.h"

/* Whether each ask is run alone as well, to compare. For the thread sanitizer those runs show
 * nothing that the common ones do not, and take two thirds of its time. */
#ifdef __SANITIZE_THREAD__
static const bool each_alone = false;
#else
static const bool each_alone = true;
#endif

static uint32_t make_asks(rig *r, ask *asks)
{
    uint32_t n = 0;
    asks[n++] = ask_of(50, 100, 0);
    asks[n++] = ask_of(9, 60, 0.2f);
    asks[n++] = ask_of(130, 40, 1.0f);
    asks[n] = ask_of(61, 40, 0.3f); /* everything the sampler can do */
    asks[n].sampling.frequency_penalty = 0.5f;
    asks[n].sampling.presence_penalty = 0.25f;
    asks[n].sampling.repetition_penalty = 1.1f;
    asks[n].sampling.top_k = 20;
    asks[n].sampling.top_p = 0.9f;
    asks[n].sampling.min_p = 0.01f;
    asks[n].sampling.bias_count = 1;
    asks[n].sampling.bias[0] = (mdl_logit_bias){5, 2};
    asks[n++].sampling.logprob_count = 5;
    asks[n] = asks[n - 1]; /* the same, and what it hands out */
    asks[n++].handout = true;
    asks[n] = ask_of(62, 30, 0);
    asks[n++].sampling.logprob_count = 0;
    asks[n] = ask_of(57, 100, 0); /* ends at the window, which is a page's edge */
    asks[n++].capacity = 64;
    asks[n] = ask_of(60, 100, 0);
    asks[n++].capacity = 65;
    asks[n++] = ask_of(63, 1, 0);
    asks[n++] = ask_of(64, 2, 0);
    asks[n++] = ask_of(1, 3, 0);
    asks[n] = ask_of(100, 50, 0.2f);
    asks[n].handout = true;
    asks[n++].handed_over = true;
    run plain = run_at(r, 0, 0, asks, 2);
    for (uint32_t i = 0; i < 2; i++) { /* stop ids: alone, and held back by min_tokens */
        uint32_t at = latest_first(&plain.outcomes[i], 40);
        assert_true(at > 2);
        asks[n] = asks[i];
        asks[n].sampling.stop_id_count = 1;
        asks[n].sampling.stop_ids[0] = (int32_t)plain.outcomes[i].sampled[at].id;
        asks[n].sampling.min_tokens = i ? (int32_t)at + 3 : 0;
        n++;
    }
    run_free(&plain);
    assert_true(n <= ASKS_MAX);
    return n;
}

/* Sequences give way to each other and come back: from memory, from the second tier, from their
 * tokens alone. */
TEST(giving_way_changes_nothing)
{
    static const run HOW[] = {
        {.depth = 0, .cache_pages = 6},
        {.depth = 2, .cache_pages = 6, .no_prefix_cache = true},
        {.depth = 3, .cache_pages = 6, .tier = true},
    };
    enum { COUNT = 6 };
    ask asks[COUNT];
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    uint32_t count = COUNT;
    double preempted = 0;
    for (uint32_t i = 0; i < COUNT; i++) {
        asks[i] = ask_of(3 + 5 * i, 150 + (int32_t)i, (float)(i % 3) * 0.3f);
        asks[i].handout = i % 4 == 0;
        asks[i].handed_over = i % 5 == 2;
        asks[i].sampling.logprob_count = (int32_t)(i % 3) * 2;
    }
    run plain = run_at(&r, 0, 0, asks, count);
    for (size_t i = 0; i < sizeof(HOW) / sizeof(HOW[0]); i++) {
        run tight = run_tight(&r, &HOW[i], asks, count);
        printf("depth %u, %u pages%s: %.0f gave way, %.0f tokens computed again, %llu pages from "
               "the second tier, %u refused\n",
               HOW[i].depth, HOW[i].cache_pages, HOW[i].no_prefix_cache ? ", none kept" : "",
               tight.preempted, tight.recomputed, (unsigned long long)tight.tier_hits,
               tight.refused);
        for (uint32_t j = 0; j < count; j++) {
            outcome without = plain.outcomes[j]; /* what is kept differs */
            without.kept_bytes = 0;
            assert_same(&tight.outcomes[j], &without);
        }
        preempted += tight.preempted;
        run_free(&tight);
    }
    assert_true(preempted > 0);
    run_free(&plain);
    rig_close(&r);
}

/* As for other weights: every page goes at once, more than once, and what had begun goes on with
 * the same tokens, in the same choices, whatever the depth. */
TEST(giving_up_all_changes_nothing)
{
    static const char *const SITES[] = {"decode.step", NULL};
    rig r;
    sl_err err;
    ask asks[ASKS_MAX];
    rig_of(&r, &(nano_options){.echo = true});
    asks[0] = ask_of(50, 200, 0);
    asks[1] = ask_of(130, 200, 1);
    asks[1].handout = true;
    asks[2] = ask_of(70, 200, 1);
    asks[2].handed_over = true;
    asks[3] = fork_of(asks, 1, 5);
    run plain = run_at(&r, 0, 0, asks, 4);
    for (uint32_t depth = 0; depth < 3; depth++) {
        uint32_t gave_up = 0;
        /* the engine's thread may be done before this one sees that all have begun: hardly so
         * slowly */
        for (int i = 0; i < 50 && gave_up == 0; i++) {
            assert_ok(sl_fault_init(SITES, "decode.step=slow=5x60", &err), &err);
            run u = run_tight(&r, &(run){.depth = depth, .gives_up = true}, asks, 4);
            assert_ok(sl_fault_init(SITES, NULL, &err), &err);
            for (uint32_t j = 0; j < 4; j++)
                assert_same(&plain.outcomes[j], &u.outcomes[j]);
            gave_up = u.gave_up;
            run_free(&u);
        }
        assert_true(gave_up > 0);
    }
    run_free(&plain);
    rig_close(&r);
}

/* While one generates, a prompt gets the time that is set for it, not whole chunks. */
TEST(a_prompt_does_not_hold_up_who_generates)
{
    ask asks[2] = {ask_of(5, 100, 0), ask_of(600, 3, 0)};
    rig r;
    rig_of(&r, NULL);
    run whole = run_tight(&r, &(run){.cache_pages = 40}, asks, 2);
    run bounded = run_tight(&r, &(run){.cache_pages = 40, .chunk_ns = 1}, asks, 2);
    for (uint32_t i = 0; i < 2; i++)
        assert_same(&whole.outcomes[i], &bounded.outcomes[i]);
    printf("%u tokens while 600 were computed whole, %u within bounds\n", whole.before,
           bounded.before);
    assert_true(bounded.before >= 600 / ENG_CHUNK_MIN - 4); /* the first chunk may be whole */
    run_free(&whole);
    run_free(&bounded);
    rig_close(&r);
}

TEST(depth_changes_nothing)
{
    ask asks[ASKS_MAX];
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    uint32_t count = make_asks(&r, asks);
    run plain = run_at(&r, 0, 0, asks, count);
    assert_true(plain.drafted == 0 && plain.accepted == 0);
    assert_int_equal(plain.outcomes[count - 2].finish, DEC_FINISH_STOP);
    for (uint32_t depth = 1; depth <= ENG_DRAFTS_MAX; depth++) {
        run u = run_at(&r, depth, 0, asks, count);
        print_message("depth %u: %.0f drafted, %.0f accepted\n", depth, u.drafted, u.accepted);
        assert_true(u.accepted > 0 && u.accepted < u.drafted);
        assert_int_equal(u.kept, plain.kept);
        for (uint32_t i = 0; i < count; i++)
            assert_same(&u.outcomes[i], &plain.outcomes[i]);
        run_free(&u);
    }
    /* one at a time, and with rows for some drafts only */
    for (uint32_t i = 0; i < count && each_alone; i++) {
        run u = run_at(&r, 3, 0, &asks[i], 1);
        assert_int_equal(u.outcomes[0].count, plain.outcomes[i].count);
        assert_same(&u.outcomes[0], &plain.outcomes[i]);
        run_free(&u);
    }
    run u = run_at(&r, 3, CHUNK + 2, asks, count);
    for (uint32_t i = 0; i < count; i++)
        assert_same(&u.outcomes[i], &plain.outcomes[i]);
    run_free(&u);
    run_free(&plain);
    rig_close(&r);
}

/* What copies a prompt gives what it gives alone with its seed, also when the source has long ended
 * or gives one token only. */
TEST(forks_give_what_they_give_alone)
{
    enum { COUNT = 9 };
    ask asks[COUNT];
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    asks[0] = ask_of(130, 40, 1.0f);
    asks[1] = fork_of(asks, 0, 71);
    asks[2] = fork_of(asks, 0, 72);
    asks[3] = ask_of(100, 1, 1.0f);
    asks[3].handed_over = true;
    asks[4] = fork_of(asks, 3, 73);
    asks[4].sampling.max_tokens = 50;
    asks[5] = ask_of(64, 30, 0.7f);
    asks[5].handed_over = asks[5].handout = true;
    asks[6] = fork_of(asks, 5, 74);
    asks[7] = ask_of(1, 12, 1.0f);
    asks[7].handout = true;
    asks[8] = fork_of(asks, 7, 75);
    for (uint32_t depth = 0; depth <= 2; depth += 2) {
        run u = run_at(&r, depth, 0, asks, COUNT);
        for (uint32_t i = 0; i < COUNT && each_alone; i++) {
            ask alone = asks[i];
            alone.fork_of = 0;
            run v = run_at(&r, 0, 0, &alone, 1);
            assert_same(&u.outcomes[i], &v.outcomes[0]);
            run_free(&v);
        }
        run_free(&u);
    }
    rig_close(&r);
}

/* Choices share the prompt's pages when they are admitted. Those that gave way share nothing until
 * they are back, so that their promises together are more than there may be: they come back all
 * the same. */
TEST(choices_that_gave_way_come_back)
{
    enum { COUNT = 4 };
    ask asks[COUNT];
    rig r;
    rig_of(&r, NULL);
    asks[0] = ask_of(640, 140, 1.0f);
    for (uint32_t i = 1; i < COUNT; i++)
        asks[i] = fork_of(asks, 0, 80 + i);
    run tight = run_tight(&r, &(run){.cache_pages = 14, .overcommit_percent = 165}, asks, COUNT);
    for (uint32_t i = 0; i < COUNT && each_alone; i++) {
        ask alone = asks[i];
        alone.fork_of = 0;
        run v = run_at(&r, 0, 0, &alone, 1);
        v.outcomes[0].kept_bytes = 0;
        assert_same(&tight.outcomes[i], &v.outcomes[0]);
        run_free(&v);
    }
    assert_true(tight.preempted >= 2);
    run_free(&tight);
    rig_close(&r);
}

/* Random weights: nearly every draft is wrong, and drafting gives up. */
TEST(wrong_drafts_change_nothing)
{
    ask asks[2] = {ask_of(50, 120, 0), ask_of(61, 120, 1)};
    rig r;
    rig_of(&r, NULL);
    run plain = run_at(&r, 0, 0, asks, 2), u = run_at(&r, 3, 0, asks, 2);
    print_message("%.0f drafted, %.0f accepted\n", u.drafted, u.accepted);
    assert_true(u.drafted > 0 && u.drafted < 240);
    for (uint32_t i = 0; i < 2; i++)
        assert_same(&u.outcomes[i], &plain.outcomes[i]);
    run_free(&u);
    run_free(&plain);
    rig_close(&r);
}

TEST(drafts_that_fail_are_done_without)
{
    const nano_options files = {.huge = "model.layers.3.post_attention_layernorm.weight"};
    ask asks[2] = {ask_of(50, 30, 0), ask_of(61, 30, 1)};
    rig r;
    rig_of(&r, &files);
    run plain = run_at(&r, 0, 0, asks, 2), u = run_at(&r, 2, 0, asks, 2);
    assert_true(u.drafted == 0);
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(plain.outcomes[i].finish, DEC_FINISH_LENGTH);
        assert_same(&u.outcomes[i], &plain.outcomes[i]);
    }
    run_free(&u);
    run_free(&plain);
    rig_close(&r);
}

TEST(failed_step_leaves_what_was_right)
{
    static const char *const SITES[] = {"decode.step", NULL};
    ask asks[3] = {ask_of(50, 30, 0), ask_of(61, 30, 1), ask_of(1, 8, 0)};
    sl_err err;
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    assert_ok(sl_fault_init(SITES, "decode.step=fail@5", &err), &err);
    run u = run_at(&r, 3, 0, asks, 3); /* checks that every page is free */
    assert_ok(sl_fault_init(SITES, NULL, &err), &err);
    run plain = run_at(&r, 0, 0, asks, 3);
    uint32_t failed = 0;
    for (uint32_t i = 0; i < 3; i++) {
        const outcome *out = &u.outcomes[i], *whole = &plain.outcomes[i];
        failed += out->finish == DEC_FINISH_FAILED;
        assert_true(out->count <= whole->count && out->kept_bytes <= whole->kept_bytes);
        for (uint32_t j = 0; j < out->count; j++)
            assert_int_equal(out->sampled[j].id, whole->sampled[j].id);
        if (out->kept_bytes > 0)
            assert_memory_equal(out->kept, whole->kept, out->kept_bytes);
    }
    assert_true(failed > 0);
    run_free(&plain);
    run_free(&u);
    rig_close(&r);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(giving_way_changes_nothing),
    cmocka_unit_test(giving_up_all_changes_nothing),
    cmocka_unit_test(a_prompt_does_not_hold_up_who_generates),
    cmocka_unit_test(depth_changes_nothing),
    cmocka_unit_test(forks_give_what_they_give_alone),
    cmocka_unit_test(choices_that_gave_way_come_back),
    cmocka_unit_test(wrong_drafts_change_nothing),
    cmocka_unit_test(drafts_that_fail_are_done_without),
    cmocka_unit_test(failed_step_leaves_what_was_right),
};
TEST_MAIN(TESTS)
