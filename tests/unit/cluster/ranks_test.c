/* Ranks of an instance find each other through a real etcd, and leave together. */
#include "tests/unit/cluster/harness.h"

#include "cluster/ranks.h"

#define LEASE SL_S_NS

enum { SIZE = 3 };

typedef struct rank {
    clu_ranks *ranks;
    char contact[CLU_CONTACT_MAX];
    int joins, failed, left, refused;
    clu_formation formation; /* of the last on_join */
    uint64_t table;
    sl_err err;
} rank;

static void on_join(void *context, const clu_formation *formation, const clu_placement *table)
{
    rank *r = context;
    r->joins++;
    r->formation = *formation;
    r->table = table->version;
}

static void on_failed(void *context, const sl_err *why)
{
    rank *r = context;
    r->failed++;
    r->err = *why;
}

static void on_refused(void *context, const sl_err *why)
{
    ((rank *)context)->refused++;
}

static void on_left(void *context)
{
    ((rank *)context)->left++;
}

static void open_rank(rank *r, clu_etcd *client, const char *node, uint32_t number, uint32_t size)
{
    static const clu_ranks_events EVENTS = {on_join, on_refused, on_failed};
    memset(r, 0, sizeof(*r));
    const clu_ranks_options options = {
        .cluster = "demo",
        .instance = "decode-0",
        .rank = number,
        .size = size,
        .node = node,
        .shape = {.layers = 2, .experts = 4, .ranks = size, .slots = 4},
        .lease_ns = LEASE,
        .reform_ns = 60 * SL_S_NS,
    };
    assert_ok(clu_ranks_create(client, &options, &EVENTS, r, &r->ranks, &err), &err);
}

static void start(rank *r, clu_etcd *client, const char *node, uint32_t number, uint32_t size,
                  const char *contact)
{
    open_rank(r, client, node, number, size);
    snprintf(r->contact, sizeof(r->contact), "%s", contact);
    clu_ranks_enter(r->ranks, contact);
}

/* All three, in formation 1. */
static void start_all(rank *all, clu_etcd *client)
{
    static const char *const NODES[SIZE] = {"a", "b", "c"};
    char contact[32];
    for (uint32_t i = 0; i < SIZE; i++) {
        snprintf(contact, sizeof(contact), "127.0.0.1:%u#01", i + 1);
        start(&all[i], client, NODES[i], i, SIZE, contact);
    }
    wait_for(all[0].joins && all[1].joins && all[2].joins);
}

/* The last join of each rank of the mask went well, and they go over. */
static void go_over(rank *all, uint64_t mask)
{
    char contact[32];
    for (uint32_t i = 0; i < SIZE; i++) {
        const clu_formation *to = &all[i].formation;
        if ((mask >> i & 1) == 0)
            continue;
        snprintf(contact, sizeof(contact), "127.0.0.1:%u#%02u", i + 1, (unsigned)to->number + 1);
        clu_ranks_tried(all[i].ranks, to->number, true, contact);
        clu_ranks_used(all[i].ranks, to->number, to->ranks, to->placement);
    }
}

static void destroy_all(rank *all)
{
    for (uint32_t i = 0; i < SIZE; i++)
        clu_ranks_destroy(all[i].ranks);
}

TEST(they_find_each_other_and_leave_together)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    rank a, b, c;
    char missing[64];
    start(&a, client, "a", 0, SIZE, "127.0.0.1:1#01");
    start(&b, client, "b", 1, SIZE, "127.0.0.1:2#02");
    do {
        sl_loop_run_once(loop, 50);
        clu_ranks_missing(a.ranks, missing, sizeof(missing));
    } while (strcmp(missing, "2") != 0);
    assert_int_equal(a.joins, 0);
    start(&c, client, "c", 2, SIZE, "127.0.0.1:3#03");
    wait_for(a.joins && b.joins && c.joins);
    assert_int_equal(a.formation.number, 1);
    assert_int_equal(a.formation.ranks, 7);
    assert_int_equal(a.table, 1);
    assert_string_equal(a.formation.contacts[2], "127.0.0.1:3#03");
    assert_string_equal(c.formation.contacts[2], "127.0.0.1:3#03");
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
    wait_for(a.joins && b.joins);
    clu_ranks_destroy(b.ranks); /* as killed: the lease runs out */
    clu_ranks_leave(a.ranks, on_left, &a);
    wait_for(a.left);
    clu_ranks_destroy(a.ranks);
    clu_etcd_destroy(client);
}

TEST(a_rank_that_dies_is_left_out_and_taken_in_again)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    static rank all[SIZE];
    start_all(all, client);
    go_over(all, 7);
    /* It dies as a member: the record that stays until its lease ends must not call it free. */
    wait_for(strstr(get(client, "/sluice/v1/demo/instances/decode-0/1"), "\"formation\":1"));
    clu_ranks_destroy(all[1].ranks);
    clu_ranks_lost(all[0].ranks, 2);
    clu_ranks_lost(all[2].ranks, 0);
    wait_for(all[0].formation.number == 2 && all[2].formation.number == 2);
    assert_int_equal(all[0].formation.ranks, 5);
    assert_string_equal(all[0].formation.contacts[2], "127.0.0.1:3#02");
    go_over(all, 5);
    start(&all[1], client, "b", 1, SIZE, "127.0.0.1:2#99");
    wait_for(all[0].formation.number == 3 && all[1].joins && all[2].formation.number == 3);
    assert_int_equal(all[1].formation.ranks, 7);
    assert_string_equal(all[2].formation.contacts[1], "127.0.0.1:2#99");
    go_over(all, 7);
    destroy_all(all);
    clu_etcd_destroy(client);
}

TEST(an_attempt_that_failed_is_made_again)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    static rank all[SIZE];
    start_all(all, client);
    for (uint32_t i = 0; i < SIZE; i++)
        clu_ranks_tried(all[i].ranks, 1, false, "127.0.0.1:9#09");
    wait_for(all[0].formation.number == 2 && all[1].formation.number == 2 &&
             all[2].formation.number == 2);
    assert_string_equal(all[0].formation.contacts[0], "127.0.0.1:9#09");
    destroy_all(all);
    clu_etcd_destroy(client);
}

static void put_table(clu_etcd *client, const clu_placement *table, const char *more)
{
    sl_buf buf;
    sl_buf_init(&buf, 0);
    clu_placement_write_json(&buf, table);
    sl_buf_puts(&buf, more);
    sl_buf_putc(&buf, '\0');
    (void)put(client, "/sluice/v1/demo/placement/decode-0", buf.data);
    sl_buf_fini(&buf);
}

TEST(a_newer_table_is_followed_if_it_can_be)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    static rank all[SIZE];
    start_all(all, client);
    go_over(all, 7);
    clu_placement *table = clu_placement_copy(clu_ranks_table(all[0].ranks));
    put_table(client, table, "!"); /* no JSON */
    wait_for(all[0].refused == 1 && all[1].refused == 1);
    put_table(client, table, "\n"); /* no newer version */
    wait_for(all[0].refused == 2 && all[1].refused == 2);
    table->version = 7;
    put_table(client, table, "");
    wait_for(all[0].formation.number == 2 && all[2].formation.number == 2);
    assert_int_equal(all[0].formation.ranks, 7);
    assert_int_equal(all[0].formation.placement, 7);
    assert_int_equal(all[0].table, 7);
    clu_placement_destroy(table);
    destroy_all(all);
    clu_etcd_destroy(client);
}

TEST(who_was_left_out_hears_of_it)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    static rank all[SIZE];
    start_all(all, client);
    go_over(all, 7);
    clu_ranks_lost(all[0].ranks, 2);
    clu_ranks_lost(all[2].ranks, 2);
    wait_for(all[1].failed);
    assert_int_equal(all[1].err.code, SL_CONFLICT);
    assert_int_equal(all[0].failed + all[2].failed, 0);
    destroy_all(all);
    clu_etcd_destroy(client);
}

TEST(a_rank_belongs_to_one_node)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    rank a, again;
    start(&a, client, "a", 0, 1, "127.0.0.1:1#01");
    wait_for(a.joins);
    start(&again, client, "other", 0, 1, "127.0.0.1:2#02");
    wait_for(again.failed);
    assert_int_equal(again.err.code, SL_EXISTS);
    assert_text_contains(again.err.text, "taken by node a");
    assert_int_equal(again.joins + a.failed, 0);
    clu_ranks_destroy(a.ranks); /* its lease runs out, then another may have it */
    clu_ranks_destroy(again.ranks);
    start(&again, client, "other", 0, 1, "127.0.0.1:2#02");
    wait_for(again.joins);
    clu_ranks_destroy(again.ranks);
    clu_etcd_destroy(client);
}

TEST(ranks_must_count_alike)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    rank a;
    start(&a, client, "a", 0, 2, "127.0.0.1:1#01");
    clu_rank_record wrong = {.node = "c", .contact = "h:1#2", .size = 3};
    sl_buf buf;
    sl_buf_init(&buf, 0);
    clu_rank_write_json(&buf, &wrong);
    sl_buf_putc(&buf, '\0');
    (void)put(client, "/sluice/v1/demo/instances/decode-0/1", buf.data);
    sl_buf_fini(&buf);
    wait_for(a.failed);
    assert_int_equal(a.err.code, SL_INVALID);
    assert_text_contains(a.err.text, "--ep-size");
    clu_ranks_destroy(a.ranks);
    clu_etcd_destroy(client);
}

static sl_code parsed(const char *text)
{
    clu_rank_record record;
    return clu_rank_parse_json(text, strlen(text), &record, &err).code;
}

#define REST ",\"formation\":1,\"tried\":2,\"ready\":2,\"failed\":false,\"lost\":[1]}"

TEST(records_are_read_strictly)
{
    clu_rank_record record;
    const char good[] = "{\"node\":\"a\",\"contact\":\"h:1#2\",\"size\":2,\"leaving\":true" REST;
    assert_ok(clu_rank_parse_json(good, strlen(good), &record, &err), &err);
    assert_string_equal(record.contact, "h:1#2");
    assert_true(record.leaving && record.size == 2 && record.lost == 2 && record.tried == 2);
    static const char *const BAD[] = {
        "",
        "[]",
        "{\"contact\":\"h:1#2\",\"size\":2,\"leaving\":true" REST,
        "{\"node\":\"A b\",\"contact\":\"h:1#2\",\"size\":2,\"leaving\":true" REST,
        "{\"node\":\"a\",\"contact\":\"\",\"size\":2,\"leaving\":true" REST,
        "{\"node\":\"a\",\"contact\":7,\"size\":2,\"leaving\":true" REST,
        "{\"node\":\"a\",\"contact\":\"h:1#2\",\"size\":0,\"leaving\":true" REST,
        "{\"node\":\"a\",\"contact\":\"h:1#2\",\"size\":65,\"leaving\":true" REST,
        "{\"node\":\"a\",\"contact\":\"h:1#2\",\"size\":2,\"leaving\":1" REST,
        "{\"node\":\"a\",\"contact\":\"h:1#2\",\"size\":2,\"leaving\":true}",
    };
    for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++)
        if (parsed(BAD[i]) != SL_INVALID)
            fail_msg("taken: %s", BAD[i]);
}

static const struct CMUnitTest TESTS[] = {
    ETCD_TEST(they_find_each_other_and_leave_together),
    ETCD_TEST(who_is_gone_counts_as_left),
    ETCD_TEST(a_rank_that_dies_is_left_out_and_taken_in_again),
    ETCD_TEST(an_attempt_that_failed_is_made_again),
    ETCD_TEST(a_newer_table_is_followed_if_it_can_be),
    ETCD_TEST(who_was_left_out_hears_of_it),
    ETCD_TEST(a_rank_belongs_to_one_node),
    ETCD_TEST(ranks_must_count_alike),
    cmocka_unit_test(records_are_read_strictly),
};
TEST_MAIN(TESTS)
