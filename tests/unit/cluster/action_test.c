/* Audited changes and tables against a real etcd: each change has its record, conflicts do nothing,
 * an old leader does nothing; records and desired state survive what they are parsed from. */
#include "tests/unit/cluster/harness.h"

#include "cluster/action.h"
#include "cluster/desired.h"
#include "cluster/table.h"

#define KEY "/sluice/v1/t/"

typedef struct done {
    int count;
    int64_t revision;
    sl_err err;
} done;

static void on_done(void *context, int64_t revision, const sl_err *why)
{
    done *d = context;
    d->count++;
    d->revision = revision;
    d->err = *why;
}

static done act(clu_etcd *client, const clu_action *action)
{
    done d = {0};
    clu_action_run *run;
    assert_ok(clu_action_start(client, "t", action, on_done, &d, &run, &err), &err);
    assert_int_equal(d.count, 0);
    wait_for(d.count);
    return d;
}

static clu_action change(const char *key, const char *value)
{
    return (clu_action){.actor = "operator a",
                        .verb = "test",
                        .target = "x",
                        .detail = "why",
                        .changes = {{.key = key, .value = value}},
                        .change_count = 1};
}

TEST(change_and_record_are_one)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    assert_string_equal(get(client, KEY "audit/next"), ""); /* waits for etcd: actions do not */
    clu_action first = change(KEY "desired/a", "1"), second = change(KEY "desired/a", NULL);
    done d = act(client, &first);
    assert_int_equal(d.err.code, SL_OK);
    assert_true(d.revision > 0);
    assert_string_equal(get(client, KEY "desired/a"), "1");
    assert_string_equal(get(client, KEY "audit/next"), "1");
    assert_text_contains(get(client, KEY "audit/000"), "\"actor\":\"operator a\"");
    assert_int_equal(act(client, &second).err.code, SL_OK);
    assert_string_equal(get(client, KEY "desired/a"), "");
    assert_text_contains(get(client, KEY "audit/001"), "\"sequence\":1");
    put(client, KEY "audit/next", "2001"); /* the ring is bounded */
    assert_int_equal(act(client, &first).err.code, SL_OK);
    assert_text_contains(get(client, KEY "audit/001"), "\"sequence\":2001");
    clu_etcd_destroy(client);
}

TEST(what_is_not_expected_does_nothing)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    int64_t revision = put(client, KEY "k", "theirs");
    clu_action action = change(KEY "k", "ours");
    action.changes[0].expects = true;
    done d = act(client, &action);
    assert_int_equal(d.err.code, SL_CONFLICT);
    assert_text_contains(d.err.text, "changed by someone else");
    assert_string_equal(get(client, KEY "k"), "theirs");
    assert_string_equal(get(client, KEY "audit/next"), "");
    action.changes[0].revision = revision;
    assert_int_equal(act(client, &action).err.code, SL_OK);
    assert_string_equal(get(client, KEY "k"), "ours");
    clu_etcd_destroy(client);
}

TEST(an_old_leader_does_nothing)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    int64_t elected = put(client, KEY "leader", "router-0");
    clu_action action = change(KEY "k", "1");
    action.fence = elected;
    assert_int_equal(act(client, &action).err.code, SL_OK);
    delete_key(client, KEY "leader");
    action.changes[0].value = "2";
    done d = act(client, &action);
    assert_int_equal(d.err.code, SL_CONFLICT);
    assert_text_contains(d.err.text, "no longer the leader");
    int64_t again = put(client, KEY "leader", "router-0"); /* the same name, another election */
    assert_int_equal(act(client, &action).err.code, SL_CONFLICT);
    assert_string_equal(get(client, KEY "k"), "1");
    assert_string_equal(get(client, KEY "audit/next"), "1");
    action.fence = again;
    assert_int_equal(act(client, &action).err.code, SL_OK);
    assert_string_equal(get(client, KEY "k"), "2");
    clu_etcd_destroy(client);
}

TEST(many_at_once_are_all_recorded)
{
    enum { COUNT = 8 };
    NEED_ETCD();
    clu_etcd *client = make_client();
    done all[COUNT] = {{0}};
    clu_action_run *run, *dropped;
    int ended = 0;
    assert_string_equal(get(client, KEY "audit/next"), "");
    clu_action action = {.actor = "a", .verb = "v", .target = "", .detail = ""};
    for (int i = 0; i < COUNT; i++)
        assert_ok(clu_action_start(client, "t", &action, on_done, &all[i], &run, &err), &err);
    while (ended < COUNT) {
        sl_loop_run_once(loop, 50);
        ended = 0;
        for (int i = 0; i < COUNT; i++)
            ended += all[i].count;
    }
    for (int i = 0; i < COUNT; i++)
        assert_int_equal(all[i].err.code, SL_OK);
    assert_string_equal(get(client, KEY "audit/next"), "8");
    assert_ok(clu_action_start(client, "t", &action, on_done, &all[0], &dropped, &err), &err);
    clu_action_drop(dropped);
    assert_int_equal(all[0].count, 1);
    clu_etcd_destroy(client);
}

TEST(without_etcd_it_says_so)
{
    clu_etcd *client;
    clu_etcd_options options = {.endpoints = "http://127.0.0.1:1", .timeout_ns = 200 * SL_MS_NS};
    NEED_ETCD();
    assert_ok(clu_etcd_create(runtime, &options, &client, &err), &err);
    clu_action action = {.actor = "a", .verb = "v", .target = "", .detail = ""};
    sl_code code = act(client, &action).err.code;
    assert_true(code == SL_UNAVAILABLE || code == SL_DEADLINE);
    clu_action_run *run;
    assert_code(clu_action_start(client, "Bad Name", &action, on_done, NULL, &run, &err),
                SL_INVALID);
    clu_etcd_destroy(client);
}

/* ---- table ---- */

typedef struct seen {
    int lists, listed, puts, deletes;
    char name[64], value[64], gone[64];
} seen;

static void on_list(void *context)
{
    ((seen *)context)->lists++;
}

static void on_put(void *context, const char *name, const char *value,
                   const Etcdserverpb__KeyValue *kv)
{
    seen *s = context;
    s->puts++;
    snprintf(s->name, sizeof(s->name), "%s", name);
    snprintf(s->value, sizeof(s->value), "%s", value);
    assert_true(kv->mod_revision > 0);
}

static void on_delete(void *context, const char *name)
{
    seen *s = context;
    s->deletes++;
    snprintf(s->gone, sizeof(s->gone), "%s", name);
}

static void on_listed(void *context)
{
    ((seen *)context)->listed++;
}

TEST(a_table_follows_its_prefix)
{
    static const clu_table_events EVENTS = {on_list, on_put, on_delete, on_listed, NULL};
    NEED_ETCD();
    clu_etcd *client = make_client();
    clu_table *table;
    seen s = {0};
    put(client, KEY "desired/a", "1");
    put(client, KEY "elsewhere", "no");
    assert_code(clu_table_create(client, "", &EVENTS, &s, &table, &err), SL_INVALID);
    assert_ok(clu_table_create(client, KEY "desired/", &EVENTS, &s, &table, &err), &err);
    assert_false(clu_table_ready(table));
    wait_for(s.listed == 1);
    assert_true(clu_table_ready(table));
    assert_int_equal(s.puts, 1);
    assert_string_equal(s.name, "a");
    put(client, KEY "desired/b", "2");
    wait_for(s.puts == 2);
    assert_string_equal(s.value, "2");
    delete_key(client, KEY "desired/a");
    wait_for(s.deletes == 1);
    assert_string_equal(s.gone, "a");
    clu_table_destroy(table);
    clu_etcd_destroy(client);
}

/* ---- records ---- */

TEST(records_are_read_as_written)
{
    clu_audit_record record = {.sequence = 7, .time_us = 1234567, .fence = 42}, back;
    snprintf(record.actor, sizeof(record.actor), "operator \"a\"\n");
    snprintf(record.verb, sizeof(record.verb), "cordon");
    sl_buf buf;
    sl_buf_init(&buf, 0);
    clu_audit_write_json(&buf, &record);
    assert_ok(clu_audit_parse_json(buf.data, buf.size, &back, &err), &err);
    assert_memory_equal(&record, &back, sizeof(back));
    sl_buf_fini(&buf);
    static const char *const BAD[] = {
        "", "7", "{}", "{\"sequence\":-1}", "[1]", "{\"sequence\":1,\"time_us\":1,\"actor\":1}"};
    for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++)
        assert_code(clu_audit_parse_json(BAD[i], strlen(BAD[i]), &back, &err), SL_INVALID);
}

TEST(desired_is_read_as_written)
{
    clu_desired desired = {.cordoned = true, .reason = "fan \"loud\""}, back;
    sl_buf buf;
    sl_buf_init(&buf, 0);
    clu_desired_write_json(&buf, &desired);
    assert_ok(clu_desired_parse_json(buf.data, buf.size, &back, &err), &err);
    assert_true(back.cordoned);
    assert_string_equal(back.reason, desired.reason);
    sl_buf_fini(&buf);
    assert_ok(clu_desired_parse_json("{\"later\":1}", 11, &back, &err), &err);
    assert_false(back.cordoned);
    static const char *const BAD[] = {"", "7", "{\"cordoned\":1}", "{\"reason\":1}"};
    for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++)
        assert_code(clu_desired_parse_json(BAD[i], strlen(BAD[i]), &back, &err), SL_INVALID);
}

static const struct CMUnitTest TESTS[] = {
    ETCD_TEST(change_and_record_are_one),
    ETCD_TEST(what_is_not_expected_does_nothing),
    ETCD_TEST(an_old_leader_does_nothing),
    ETCD_TEST(many_at_once_are_all_recorded),
    ETCD_TEST(without_etcd_it_says_so),
    ETCD_TEST(a_table_follows_its_prefix),
    cmocka_unit_test(records_are_read_as_written),
    cmocka_unit_test(desired_is_read_as_written),
};
TEST_MAIN(TESTS)
