/* Ranks of an instance find each other through a real etcd, and leave together. */
#include "tests/unit/cluster/harness.h"

#include "cluster/ranks.h"

#define LEASE SL_S_NS

typedef struct rank {
    clu_ranks *ranks;
    char contact[CLU_CONTACT_MAX];
    int complete, failed, left;
    char seen[4][CLU_CONTACT_MAX];
    uint32_t size;
    sl_err err;
} rank;

static void on_complete(void *context, const char *const *contacts)
{
    rank *r = context;
    r->complete++;
    for (uint32_t i = 0; i < r->size; i++)
        snprintf(r->seen[i], sizeof(r->seen[i]), "%s", contacts[i]);
}

static void on_failed(void *context, const sl_err *why)
{
    rank *r = context;
    r->failed++;
    r->err = *why;
}

static void on_left(void *context)
{
    ((rank *)context)->left++;
}

static void start(rank *r, clu_etcd *client, const char *node, uint32_t number, uint32_t size,
                  const char *contact)
{
    static const clu_ranks_events EVENTS = {on_complete, on_failed};
    memset(r, 0, sizeof(*r));
    r->size = size;
    const clu_ranks_options options = {.cluster = "demo",
                                       .instance = "decode-0",
                                       .rank = number,
                                       .size = size,
                                       .node = node,
                                       .contact = contact,
                                       .lease_ns = LEASE};
    assert_ok(clu_ranks_create(client, &options, &EVENTS, r, &r->ranks, &err), &err);
}

TEST(they_find_each_other_and_leave_together)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    rank a, b, c;
    char missing[64];
    start(&a, client, "a", 0, 3, "127.0.0.1:1#01");
    start(&b, client, "b", 1, 3, "127.0.0.1:2#02");
    do {
        sl_loop_run_once(loop, 50);
        clu_ranks_missing(a.ranks, missing, sizeof(missing));
    } while (strcmp(missing, "2") != 0);
    assert_int_equal(a.complete, 0);
    start(&c, client, "c", 2, 3, "127.0.0.1:3#03");
    wait_for(a.complete && b.complete && c.complete);
    assert_string_equal(a.seen[2], "127.0.0.1:3#03");
    assert_string_equal(c.seen[0], "127.0.0.1:1#01");
    clu_ranks_met(a.ranks);
    clu_ranks_met(b.ranks);
    clu_ranks_leave(a.ranks, on_left, &a);
    clu_ranks_leave(b.ranks, on_left, &b);
    clu_ranks_stay(b.ranks);
    clu_ranks_leave(c.ranks, on_left, &c);
    for (int i = 0; i < 20; i++)
        sl_loop_run_once(loop, 50);
    assert_int_equal(a.left + b.left + c.left, 0); /* b stays */
    clu_ranks_leave(b.ranks, on_left, &b);
    wait_for(a.left && b.left && c.left);
    clu_ranks_destroy(a.ranks);
    clu_ranks_destroy(b.ranks);
    clu_ranks_destroy(c.ranks);
    clu_etcd_destroy(client);
}

TEST(who_is_gone_counts_as_left)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    rank a, b;
    start(&a, client, "a", 0, 2, "127.0.0.1:1#01");
    start(&b, client, "b", 1, 2, "127.0.0.1:2#02");
    wait_for(a.complete && b.complete);
    clu_ranks_destroy(b.ranks); /* as killed: the lease runs out */
    clu_ranks_leave(a.ranks, on_left, &a);
    wait_for(a.left);
    clu_ranks_destroy(a.ranks);
    clu_etcd_destroy(client);
}

TEST(a_rank_that_was_started_again_has_a_new_contact)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    rank a, b;
    start(&a, client, "a", 0, 2, "127.0.0.1:1#01");
    start(&b, client, "b", 1, 2, "127.0.0.1:2#02");
    wait_for(a.complete && b.complete);
    clu_ranks_destroy(b.ranks);
    start(&b, client, "b", 1, 2, "127.0.0.1:2#77"); /* at once: the record is its own */
    wait_for(strcmp(a.seen[1], "127.0.0.1:2#77") == 0 && b.complete);
    clu_ranks_destroy(a.ranks);
    clu_ranks_destroy(b.ranks);
    clu_etcd_destroy(client);
}

TEST(a_rank_belongs_to_one_node)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    rank a, again;
    start(&a, client, "a", 0, 1, "127.0.0.1:1#01");
    wait_for(a.complete);
    start(&again, client, "other", 0, 1, "127.0.0.1:2#02");
    wait_for(again.failed);
    assert_int_equal(again.err.code, SL_EXISTS);
    assert_text_contains(again.err.text, "taken by node a");
    assert_int_equal(again.complete + a.failed, 0);
    clu_ranks_destroy(a.ranks); /* its lease runs out, then another may have it */
    clu_ranks_destroy(again.ranks);
    start(&again, client, "other", 0, 1, "127.0.0.1:2#02");
    wait_for(again.complete);
    clu_ranks_destroy(again.ranks);
    clu_etcd_destroy(client);
}

TEST(ranks_must_count_alike)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    rank a, b;
    start(&a, client, "a", 0, 2, "127.0.0.1:1#01");
    start(&b, client, "b", 1, 3, "127.0.0.1:2#02");
    wait_for(a.failed && b.failed);
    assert_int_equal(a.err.code, SL_INVALID);
    assert_text_contains(a.err.text, "--ep-size");
    clu_ranks_destroy(a.ranks);
    clu_ranks_destroy(b.ranks);
    clu_etcd_destroy(client);
}

static sl_code parsed(const char *text)
{
    clu_rank_record record;
    return clu_rank_parse_json(text, strlen(text), &record, &err).code;
}

TEST(records_are_read_strictly)
{
    clu_rank_record record;
    const char good[] = "{\"node\":\"a\",\"contact\":\"h:1#2\",\"size\":2,\"leaving\":true}";
    assert_ok(clu_rank_parse_json(good, strlen(good), &record, &err), &err);
    assert_string_equal(record.contact, "h:1#2");
    assert_true(record.leaving && record.size == 2);
    static const char *const BAD[] = {
        "",
        "[]",
        "{\"contact\":\"h:1#2\",\"size\":2,\"leaving\":true}",
        "{\"node\":\"A b\",\"contact\":\"h:1#2\",\"size\":2,\"leaving\":true}",
        "{\"node\":\"a\",\"contact\":\"\",\"size\":2,\"leaving\":true}",
        "{\"node\":\"a\",\"contact\":7,\"size\":2,\"leaving\":true}",
        "{\"node\":\"a\",\"contact\":\"h:1#2\",\"size\":0,\"leaving\":true}",
        "{\"node\":\"a\",\"contact\":\"h:1#2\",\"size\":65,\"leaving\":true}",
        "{\"node\":\"a\",\"contact\":\"h:1#2\",\"size\":2,\"leaving\":1}",
    };
    for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++)
        if (parsed(BAD[i]) != SL_INVALID)
            fail_msg("taken: %s", BAD[i]);
}

static const struct CMUnitTest TESTS[] = {
    ETCD_TEST(they_find_each_other_and_leave_together),
    ETCD_TEST(who_is_gone_counts_as_left),
    ETCD_TEST(a_rank_that_was_started_again_has_a_new_contact),
    ETCD_TEST(a_rank_belongs_to_one_node),
    ETCD_TEST(ranks_must_count_alike),
    cmocka_unit_test(records_are_read_strictly),
};
TEST_MAIN(TESTS)
