/* The engine's ledger: each page with those who have it bound, and when it is taken. */
#include "tests/unit/engine/support.h"

#include <poll.h>

#include "engine/ledger.h"
#include "engine/worker.h"

#define LENGTH 200u

static void take(const rig *r, eng_ledger *ledger)
{
    eng_ledger_take(r->engine, ledger);
    uint32_t states[ENG_PAGE_STATE_COUNT] = {0};
    for (uint32_t i = 0; i < ledger->page_count; i++)
        states[ledger->pages[i].state]++;
    assert_int_equal(states[ENG_PAGE_STATE_FREE], ledger->free_count);
    assert_int_equal(states[ENG_PAGE_STATE_KEPT], ledger->kept_count);
}

static eng_ledger_page page_of(const eng_ledger *ledger, const eng_sequence *sequence,
                               uint32_t block)
{
    return ledger->pages[eng_sequence_page(sequence, block)];
}

TEST(pages_have_their_owners)
{
    uint32_t tokens[LENGTH];
    rig r;
    sl_err err;
    rig_open(&r);
    stream_fill(1, LENGTH, tokens);
    eng_ledger *ledger = eng_ledger_create(r.engine);
    take(&r, ledger);
    assert_int_equal(ledger->free_count, ledger->page_count);
    assert_int_equal(ledger->sequence_count, 0);

    eng_sequence *a, *b;
    const eng_prefix prefix = {tokens, LENGTH, 0};
    assert_ok(eng_sequence_open_prefix(r.engine, 2 * LENGTH, LENGTH, &prefix, &a, &err), &err);
    eng_sequence_set_owner(a, 5);
    sequence_feed(r.engine, a, tokens, LENGTH, 64, NULL);
    assert_ok(eng_sequence_fork(a, LENGTH, eng_sequence_h_final(a), LENGTH, &b, &err), &err);
    take(&r, ledger);
    assert_int_equal(ledger->sequence_count, 2);
    assert_int_equal(ledger->sequences[0].owner, 5);
    assert_int_equal(ledger->sequences[0].count, 4);
    assert_int_equal(ledger->sequences[0].promised, 3);
    assert_int_equal(ledger->promised, 3);
    assert_int_equal(ledger->sequences[1].owner, 0); /* nobody said whose it is */
    for (uint32_t block = 0; block < 4; block++) {
        uint32_t at = ledger->sequences[0].first + block;
        assert_int_equal(ledger->bound[at], eng_sequence_page(a, block));
        bool whole = block < 3;
        assert_int_equal(page_of(ledger, a, block).state,
                         whole ? ENG_PAGE_STATE_SEALED : ENG_PAGE_STATE_PRIVATE);
        assert_int_equal(page_of(ledger, a, block).ref_count, whole ? 2 : 1);
    }

    eng_sequence_close(b);
    eng_sequence_publish(a, &prefix);
    eng_sequence_close(a);
    take(&r, ledger);
    assert_int_equal(ledger->sequence_count, 0);
    assert_int_equal(ledger->kept_count, 3);
    assert_int_equal(ledger->promised, 0);
    eng_sequence *next = sequence_open(r.engine, 64); /* in the same place: the owner is gone */
    take(&r, ledger);
    assert_int_equal(ledger->sequences[0].owner, 0);
    eng_sequence_close(next);
    eng_ledger_destroy(ledger);
    rig_close(&r);
}

/* ---- when it is taken ---- */

#define EVENTS 100u

typedef struct asking {
    eng_worker_client *client;
    uint32_t emitted; /* the engine thread's */
    uint32_t at_ask;  /* emitted when asked */
    uint32_t polled;
    uint32_t asks;
} asking;

static void no_command(void *context, const void *command)
{
}

static bool emit_one(void *context)
{
    asking *a = context;
    if (a->emitted == EVENTS)
        return false;
    a->emitted++;
    eng_worker_emit(a->client, &a->emitted);
    return true;
}

static void no_stop(void *context)
{
}

static void on_ask(void *context)
{
    asking *a = context;
    a->at_ask = a->emitted;
}

static void on_asked(void *context)
{
    asking *a = context;
    assert_true(a->polled <= a->at_ask); /* none from after */
    a->asks++;
}

static void on_event(void *context, const void *event)
{
    asking *a = context;
    a->polled++;
}

TEST(asked_between_events)
{
    static const eng_worker_ops OPS = {.command_bytes = 4,
                                       .command_capacity = 2,
                                       .event_bytes = 4,
                                       .event_capacity = 4,
                                       .command = no_command,
                                       .run = emit_one,
                                       .stop = no_stop};
    asking a = {.emitted = 0};
    rig r;
    sl_err err;
    eng_worker *worker;
    rig_open(&r);
    assert_ok(eng_worker_create(r.engine, &worker, &err), &err);
    assert_ok(eng_worker_attach(worker, &OPS, &a, &a.client, &err), &err);
    assert_false(eng_worker_ask(worker, on_ask, on_asked, &a)); /* it does not run yet */
    assert_ok(eng_worker_start(worker, &err), &err);
    struct pollfd fd = {.fd = eng_worker_fd(a.client), .events = POLLIN};
    uint32_t asked = 0;
    while (a.polled < EVENTS || a.asks < asked) {
        if (a.asks == asked && a.polled < EVENTS) {
            assert_true(eng_worker_ask(worker, on_ask, on_asked, &a));
            assert_false(eng_worker_ask(worker, on_ask, on_asked, &a));
            asked++;
        }
        assert_true(poll(&fd, 1, -1) >= 0);
        eng_worker_poll(a.client, on_event, &a);
    }
    assert_true(asked > 0);
    assert_true(eng_worker_ask(worker, on_ask, on_asked, &a)); /* asked of one that sleeps */
    while (a.asks <= asked) {
        assert_true(poll(&fd, 1, -1) >= 0);
        eng_worker_poll(a.client, on_event, &a);
    }
    eng_worker_destroy(worker);
    rig_close(&r);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(pages_have_their_owners),
    cmocka_unit_test(asked_between_events),
};
TEST_MAIN(TESTS)
