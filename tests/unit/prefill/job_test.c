/* Which actions does a prefill ask for in each life, and does every life end with nothing held? */
#include "prefill/job.h"

#include "tests/unit/test.h"

static pre_job_state job;

static pre_outcome on(pre_event_kind kind, sl_time_ns now)
{
    pre_event event = {.kind = kind, .code = SL_UNAVAILABLE};
    return pre_job_handle(&job, &event, now);
}

static void compute(void)
{
    pre_job_init(&job, 1000);
    assert_int_equal(on(PRE_EVENT_START, 1).actions, PRE_ACTION_OPEN_ENGINE);
    assert_int_equal(on(PRE_EVENT_OPENED, 2).actions, PRE_ACTION_COMPUTE);
    assert_int_equal(job.state, PRE_STATE_COMPUTING);
}

TEST(plain_life)
{
    compute();
    assert_int_equal(on(PRE_EVENT_COMPUTED, 3).actions, 0);
    assert_int_equal(job.state, PRE_STATE_DRAINING);
    /* The pages stay until the decode node has everything. */
    assert_int_equal(on(PRE_EVENT_ACKNOWLEDGED, 4).actions,
                     PRE_ACTION_REPLY_DONE | PRE_ACTION_CLOSE_ENGINE);
    on(PRE_EVENT_ENGINE_CLOSED, 5);
    assert_int_equal(job.state, PRE_STATE_DONE);
}

TEST(waits_for_pages)
{
    pre_job_init(&job, 1000);
    assert_int_equal(on(PRE_EVENT_START, 1).actions, PRE_ACTION_OPEN_ENGINE);
    assert_int_equal(on(PRE_EVENT_OPEN_FULL, 2).actions, 0);
    assert_int_equal(job.state, PRE_STATE_QUEUED);
    assert_int_equal(on(PRE_EVENT_START, 3).actions, PRE_ACTION_OPEN_ENGINE);
}

TEST(can_never_be_served)
{
    pre_job_init(&job, 1000);
    on(PRE_EVENT_START, 1);
    assert_int_equal(on(PRE_EVENT_OPEN_FAILED, 2).actions,
                     PRE_ACTION_REPLY_FAILED | PRE_ACTION_CANCEL_SEND);
    on(PRE_EVENT_SEND_FAILED, 3);
    assert_int_equal(job.state, PRE_STATE_DONE);
}

TEST(decode_node_died)
{
    compute();
    pre_outcome out = on(PRE_EVENT_SEND_FAILED, 3);
    assert_int_equal(out.actions, PRE_ACTION_REPLY_FAILED | PRE_ACTION_CLOSE_ENGINE);
    assert_int_equal(out.code, SL_UNAVAILABLE);
    assert_int_equal(on(PRE_EVENT_COMPUTED, 4).actions, 0); /* the last chunk was under way */
    on(PRE_EVENT_ENGINE_CLOSED, 5);
    assert_int_equal(job.state, PRE_STATE_DONE);
}

TEST(cancel_closes_the_transfer_before_the_pages)
{
    compute();
    assert_int_equal(on(PRE_EVENT_CANCEL, 3).actions, PRE_ACTION_CANCEL_SEND);
    assert_int_equal(on(PRE_EVENT_SEND_FAILED, 4).actions, PRE_ACTION_CLOSE_ENGINE);
    on(PRE_EVENT_ENGINE_CLOSED, 5);
    assert_int_equal(job.state, PRE_STATE_DONE);
}

TEST(cancel_while_the_engine_binds_pages)
{
    pre_job_init(&job, 1000);
    on(PRE_EVENT_START, 1);
    assert_int_equal(on(PRE_EVENT_CANCEL, 2).actions, PRE_ACTION_CANCEL_SEND);
    assert_int_equal(on(PRE_EVENT_OPENED, 3).actions, 0);
    assert_int_equal(on(PRE_EVENT_SEND_FAILED, 4).actions, PRE_ACTION_CLOSE_ENGINE);
    on(PRE_EVENT_ENGINE_CLOSED, 5);
    assert_int_equal(job.state, PRE_STATE_DONE);
}

TEST(deadline_is_exact)
{
    compute();
    assert_int_equal(on(PRE_EVENT_TICK, 999).actions, 0);
    pre_outcome out = on(PRE_EVENT_TICK, 1000);
    assert_int_equal(out.actions, PRE_ACTION_REPLY_FAILED | PRE_ACTION_CANCEL_SEND);
    assert_int_equal(out.code, SL_DEADLINE);
}

TEST(time_at_rest_does_not_count)
{
    compute();
    on(PRE_EVENT_REST, 600);
    on(PRE_EVENT_REST, 900); /* it is told more than once */
    assert_true(pre_job_due(&job) == SL_NEVER);
    assert_int_equal(on(PRE_EVENT_TICK, 5000).actions, 0);
    on(PRE_EVENT_GO, 5600);
    on(PRE_EVENT_GO, 5700);
    assert_true(pre_job_due(&job) == 6000);
    assert_int_equal(on(PRE_EVENT_TICK, 5999).actions, 0);
    assert_int_equal(on(PRE_EVENT_TICK, 6000).code, SL_DEADLINE);
    assert_int_equal(job.state, PRE_STATE_CLOSING);
    assert_true(pre_job_due(&job) == SL_NEVER);
}

TEST(what_ends_at_rest_ends)
{
    compute();
    on(PRE_EVENT_REST, 600);
    assert_int_equal(on(PRE_EVENT_CANCEL, 700).actions, PRE_ACTION_CANCEL_SEND);
    on(PRE_EVENT_GO, 800);
    assert_int_equal(on(PRE_EVENT_SEND_FAILED, 801).actions, PRE_ACTION_CLOSE_ENGINE);
    on(PRE_EVENT_ENGINE_CLOSED, 802);
    assert_int_equal(job.state, PRE_STATE_DONE);
}

/* ---- a random walk against a model of the world ---- */

typedef struct world {
    bool send, cancelling, open_pending, close_pending, bound, computing;
    int replies;
    uint64_t state;
} world;

static uint32_t draw(world *w, uint32_t limit)
{
    w->state = w->state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(w->state >> 33) % limit;
}

static void carry_out(world *w, pre_outcome out)
{
    if (out.actions & PRE_ACTION_OPEN_ENGINE)
        w->open_pending = true;
    if (out.actions & PRE_ACTION_COMPUTE)
        w->computing = true;
    if (out.actions & PRE_ACTION_CANCEL_SEND)
        w->cancelling = true;
    if (out.actions & PRE_ACTION_CLOSE_ENGINE) {
        /* Pages that a decode node may still be fetching are never given back. */
        assert_false(w->send || w->close_pending);
        w->close_pending = true;
    }
    if (out.actions & (PRE_ACTION_REPLY_DONE | PRE_ACTION_REPLY_FAILED))
        assert_int_equal(++w->replies, 1);
}

static void random_event(world *w, sl_time_ns now)
{
    switch (draw(w, 8)) {
    case 0:
        if (job.state == PRE_STATE_QUEUED)
            carry_out(w, on(PRE_EVENT_START, now));
        break;
    case 1:
        if (w->open_pending) {
            static const pre_event_kind ANSWERS[] = {PRE_EVENT_OPENED, PRE_EVENT_OPENED,
                                                     PRE_EVENT_OPEN_FULL, PRE_EVENT_OPEN_FAILED};
            pre_event_kind answer = ANSWERS[draw(w, 4)];
            w->open_pending = false;
            w->bound = answer == PRE_EVENT_OPENED;
            carry_out(w, on(answer, now));
        }
        break;
    case 2:
        if (w->computing) {
            w->computing = false;
            carry_out(w, on(draw(w, 4) ? PRE_EVENT_COMPUTED : PRE_EVENT_COMPUTE_FAILED, now));
        }
        break;
    case 3:
        if (w->send && (w->cancelling || draw(w, 4) == 0)) {
            bool good = !w->cancelling && job.state == PRE_STATE_DRAINING;
            w->send = false;
            carry_out(w, on(good ? PRE_EVENT_ACKNOWLEDGED : PRE_EVENT_SEND_FAILED, now));
        }
        break;
    case 4:
        if (w->close_pending && !w->open_pending) {
            w->close_pending = w->computing = w->bound = false;
            carry_out(w, on(PRE_EVENT_ENGINE_CLOSED, now));
        }
        break;
    case 5:
        if (draw(w, 6) == 0)
            carry_out(w, on(PRE_EVENT_CANCEL, now));
        break;
    case 6:
        carry_out(w, on(draw(w, 8) ? PRE_EVENT_GO : PRE_EVENT_REST, now));
        break;
    default:
        carry_out(w, on(PRE_EVENT_TICK, now));
    }
}

TEST(every_walk_ends_with_nothing_held)
{
    for (uint64_t seed = 0; seed < 20000; seed++) {
        world w = {.send = true, .state = seed};
        pre_job_init(&job, 300);
        for (sl_time_ns now = 0; now < 4000 && job.state != PRE_STATE_DONE; now++)
            random_event(&w, now);
        assert_int_equal(job.state, PRE_STATE_DONE);
        assert_false(w.send || w.close_pending || w.bound);
    }
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(plain_life),
    cmocka_unit_test(waits_for_pages),
    cmocka_unit_test(can_never_be_served),
    cmocka_unit_test(decode_node_died),
    cmocka_unit_test(cancel_closes_the_transfer_before_the_pages),
    cmocka_unit_test(cancel_while_the_engine_binds_pages),
    cmocka_unit_test(deadline_is_exact),
    cmocka_unit_test(time_at_rest_does_not_count),
    cmocka_unit_test(what_ends_at_rest_ends),
    cmocka_unit_test(every_walk_ends_with_nothing_held),
};
TEST_MAIN(TESTS)
