/* A prefill node rests by an operator's wish: the decode node that waits for it is told. */
#include "tests/unit/router/front_kit.h"

#define SELF_MS 10000 /* front_kit.h */

TEST(who_waits_for_a_node_that_rests_is_told)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    p->finish_runs = false;
    KIT_UNTIL(&k, kit_ready(&k));
    KIT_UNTIL(&k, p->serve != NULL);
    kit_client c = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, p->runs == 1);
    p->pause_ms = 60000;
    kit_tell_load(p);
    KIT_UNTIL(&k, d->extends == 1);
    assert_int_equal(d->extend.epoch, d->admits[0].epoch);
    assert_int_equal(d->extend.prefill_deadline_ms, 60000 + SELF_MS);
    kit_tell_load(d); /* of no interest */
    p->pause_ms = 120000;
    kit_tell_load(p); /* for longer */
    KIT_UNTIL(&k, d->extends == 2);
    assert_int_equal(d->extend.prefill_deadline_ms, 120000 + SELF_MS);
    p->pause_ms = 0;
    kit_tell_load(p);
    KIT_UNTIL(&k, d->extends == 3);
    assert_int_equal(d->extend.prefill_deadline_ms, SELF_MS);
    kit_tokens(d, 0, 2, STOP);
    kit_expect(&k, &c, "data: [DONE]");
    check_tokens(&c, 2);
    assert_int_equal(d->extends, 3);
    assert_int_equal(d->admit_count, 1);
    kit_client_close(&c);
    kit_close(&k);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(who_waits_for_a_node_that_rests_is_told),
};
API_TEST_MAIN(TESTS)
