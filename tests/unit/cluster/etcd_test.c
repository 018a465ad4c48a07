/* The etcd client against a real etcd: requests, rotation, leases, watches, kill -9, compaction. */
#include "tests/unit/cluster/harness.h"

/* ---- requests ---- */

TEST(put_get_delete_txn)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    int64_t first = put(client, "/t/a", "1");
    assert_true(first > 0);
    assert_true(clu_etcd_connected(client));
    assert_string_equal(get(client, "/t/a"), "1");
    assert_string_equal(get(client, "/t/none"), "");

    Etcdserverpb__Compare compare = ETCDSERVERPB__COMPARE__INIT;
    compare.key = clu_bytes("/t/a");
    compare.target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE;
    compare.target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_CREATE_REVISION;
    Etcdserverpb__TxnRequest txn = ETCDSERVERPB__TXN_REQUEST__INIT;
    txn.n_compare = 1;
    txn.compare = &(Etcdserverpb__Compare *){&compare};
    answer a = ask(client, &rpc_method_etcd_kv_txn, &txn.base, false);
    assert_int_equal(a.err.code, SL_OK);
    assert_false(((Etcdserverpb__TxnResponse *)(void *)a.reply)->succeeded);
    rpc_message_free(a.reply);
    compare.create_revision = first;
    a = ask(client, &rpc_method_etcd_kv_txn, &txn.base, false);
    assert_true(((Etcdserverpb__TxnResponse *)(void *)a.reply)->succeeded);
    rpc_message_free(a.reply);

    delete_key(client, "/t/a");
    assert_string_equal(get(client, "/t/a"), "");

    /* The past that was compacted is refused, not invented. */
    int64_t last = put(client, "/t/a", "2");
    compact(client, last);
    Etcdserverpb__RangeRequest old = ETCDSERVERPB__RANGE_REQUEST__INIT;
    old.key = clu_bytes("/t/a");
    old.revision = first;
    a = ask(client, &rpc_method_etcd_kv_range, &old.base, true);
    assert_int_equal(a.err.code, SL_TOO_LARGE);
    assert_text_contains(a.err.text, "compacted");
    assert_true(clu_etcd_connected(client)); /* it answered */
    clu_etcd_destroy(client);
}

TEST(status)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    Etcdserverpb__StatusRequest request = ETCDSERVERPB__STATUS_REQUEST__INIT;
    answer a = ask(client, &rpc_method_etcd_maintenance_status, &request.base, true);
    assert_int_equal(a.err.code, SL_OK);
    assert_int_equal(((Etcdserverpb__StatusResponse *)(void *)a.reply)->version[0], '3');
    rpc_message_free(a.reply);
    clu_etcd_destroy(client);
}

static void count_connected(void *context, bool connected)
{
    ((int *)context)[connected]++;
}

/* A dead endpoint in front: idempotent requests find the live one. */
TEST(rotation)
{
    NEED_ETCD();
    char endpoints[200];
    snprintf(endpoints, sizeof(endpoints), "http://127.0.0.1:%d,%s", free_port(), etcd.url);
    clu_etcd *client = make_client_with(endpoints, 30 * SL_S_NS);
    int changes[2] = {0};
    assert_ok(clu_etcd_listen(client, count_connected, changes, &err), &err);
    put(client, "/t/r", "x");
    assert_string_equal(get(client, "/t/r"), "x");
    wait_for(changes[1]);
    assert_int_equal(changes[0], 0); /* one of two down is not etcd lost */
    clu_etcd_unlisten(client, count_connected, changes);
    clu_etcd_destroy(client);
}

TEST(unreachable)
{
    NEED_ETCD();
    char endpoints[200];
    snprintf(endpoints, sizeof(endpoints), "127.0.0.1:%d,http://127.0.0.1:%d/", free_port(),
             free_port());
    clu_etcd *client = make_client_with(endpoints, 700 * SL_MS_NS);
    Etcdserverpb__RangeRequest request = ETCDSERVERPB__RANGE_REQUEST__INIT;
    request.key = clu_bytes("x");
    answer a = ask(client, &rpc_method_etcd_kv_range, &request.base, true);
    assert_true(a.err.code == SL_UNAVAILABLE || a.err.code == SL_DEADLINE);
    assert_false(clu_etcd_connected(client));
    a = ask(client, &rpc_method_etcd_kv_range, &request.base, false);
    assert_true(a.err.code == SL_UNAVAILABLE || a.err.code == SL_DEADLINE);
    /* Dropped: no answer any more. */
    clu_request *open;
    answer dropped = {0};
    assert_ok(clu_etcd_request(client, &rpc_method_etcd_kv_range, &request.base, NULL, on_answer,
                               &dropped, &open, &err),
              &err);
    clu_request_drop(open);
    clu_etcd_destroy(client);
    assert_int_equal(dropped.count, 0);
}

TEST(bad_endpoints)
{
    NEED_ETCD();
    static const char *const BAD[] = {"",
                                      "http://",
                                      "http://a:1,",
                                      "http://a",
                                      "https://a:1",
                                      "http://a:1/v3",
                                      "http://a:65536",
                                      "http://10.0.0.300:1",
                                      "a:1,a:2,a:3,a:4,a:5,a:6,a:7,a:8,a:9"};
    for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++) {
        clu_etcd_options options = {.endpoints = BAD[i]};
        clu_etcd *client = NULL;
        err.text[0] = 0;
        sl_status status = clu_etcd_create(runtime, &options, &client, &err);
        assert_false(sl_is_ok(status));
        assert_text_contains(err.text, "etcd");
        assert_code(clu_etcd_check(&options, &err), status.code);
        assert_null(client);
    }
}

/* ---- lease ---- */

typedef struct lease_view {
    int granted, lost;
    int64_t id;
} lease_view;

static void on_granted(void *context, int64_t id)
{
    lease_view *v = context;
    v->granted++;
    v->id = id;
}

static void on_lost(void *context)
{
    ((lease_view *)context)->lost++;
}

static const clu_lease_events LEASE_EVENTS = {on_granted, on_lost};

static void revoke_lease(clu_etcd *client, int64_t id)
{
    Etcdserverpb__LeaseRevokeRequest request = ETCDSERVERPB__LEASE_REVOKE_REQUEST__INIT;
    request.id = id;
    answer a = ask(client, &rpc_method_etcd_lease_lease_revoke, &request.base, false);
    assert_int_equal(a.err.code, SL_OK);
    rpc_message_free(a.reply);
}

TEST(lease)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    lease_view v = {0};
    clu_lease *held, *bad = NULL;
    assert_code(clu_lease_create(client, 1, &LEASE_EVENTS, &v, &bad, &err), SL_INVALID);
    assert_ok(clu_lease_create(client, 2 * SL_S_NS, &LEASE_EVENTS, &v, &held, &err), &err);
    wait_for(v.granted == 1);
    put_lease(client, "/t/kept", "x", v.id);

    /* A second one that is not renewed: its key goes, the first one's stays. */
    lease_view w = {0};
    clu_lease *left;
    assert_ok(clu_lease_create(client, 2 * SL_S_NS, &LEASE_EVENTS, &w, &left, &err), &err);
    wait_for(w.granted == 1);
    put_lease(client, "/t/left", "x", w.id);
    clu_lease_destroy(left);
    wait_for(!*get(client, "/t/left"));
    assert_string_equal(get(client, "/t/kept"), "x");
    assert_int_equal(v.lost, 0);

    /* Revoked from outside: etcd answers TTL 0, and a new one is granted. */
    int64_t old = v.id;
    revoke_lease(client, old);
    wait_for(v.lost == 1);
    wait_for(v.granted == 2);
    assert_true(v.id != old);
    assert_true(clu_lease_id(held) == v.id);
    clu_lease_destroy(held);
    clu_etcd_destroy(client);
}

/* etcd away for longer than the lease: lost without an answer, granted again when it is back. */
TEST(lease_outlives_etcd)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    lease_view v = {0};
    clu_lease *lease;
    assert_ok(clu_lease_create(client, 2 * SL_S_NS, &LEASE_EVENTS, &v, &lease, &err), &err);
    wait_for(v.granted == 1);
    etcd_signal(&etcd, SIGKILL);
    wait_for(v.lost == 1);
    assert_int_equal(clu_lease_id(lease), 0);
    etcd_run(&etcd);
    wait_for(v.granted == 2);
    clu_lease_destroy(lease);
    clu_etcd_destroy(client);
}

/* ---- watch ---- */

typedef struct watch_view {
    int events, deletes, compacted;
    int64_t revision;
    char seen[512]; /* values in order */
} watch_view;

static void on_events(void *context, Etcdserverpb__Event *const *events, size_t count,
                      int64_t revision)
{
    watch_view *v = context;
    assert_true(revision > v->revision);
    v->revision = revision;
    for (size_t i = 0; i < count; i++) {
        v->events++;
        size_t used = strlen(v->seen);
        if (events[i]->type == ETCDSERVERPB__EVENT__EVENT_TYPE__DELETE)
            v->deletes++;
        else
            snprintf(v->seen + used, sizeof(v->seen) - used, "%.*s ", (int)events[i]->kv->value.len,
                     (const char *)events[i]->kv->value.data);
    }
}

static void on_compacted(void *context)
{
    ((watch_view *)context)->compacted++;
}

static const clu_watch_events WATCH_EVENTS = {on_events, on_compacted};

TEST(watch_over_restart)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    watch_view v = {0};
    clu_watch *watch;
    int64_t start = put(client, "/t/w/0", "before") + 1;
    put(client, "/t/w/1", "one"); /* the past since `start` comes too */
    assert_ok(clu_watch_create(client, "/t/w/", start, &WATCH_EVENTS, &v, &watch, &err), &err);
    put(client, "/t/w/2", "two");
    put(client, "/t/other", "not seen");
    wait_for(v.events == 2);
    assert_string_equal(v.seen, "one two ");
    delete_key(client, "/t/w/1");
    wait_for(v.deletes == 1);

    etcd_signal(&etcd, SIGKILL);
    wait_for(!clu_etcd_connected(client));
    etcd_run(&etcd);
    put(client, "/t/w/3", "three");
    wait_for(v.events == 4);
    put(client, "/t/w/4", "four");
    wait_for(v.events == 5);
    assert_string_equal(v.seen, "one two three four "); /* nothing lost, nothing twice */
    clu_watch_destroy(watch);
    clu_etcd_destroy(client);
}

TEST(watch_compacted)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    watch_view v = {0};
    clu_watch *watch = NULL;
    int64_t old = put(client, "/t/c/0", "a");
    int64_t last = 0;
    for (int i = 0; i < 5; i++)
        last = put(client, "/t/c/0", "b");
    compact(client, last);
    assert_code(clu_watch_create(client, "/t/c/", 0, &WATCH_EVENTS, &v, &watch, &err), SL_INVALID);
    assert_ok(clu_watch_create(client, "/t/c/", old, &WATCH_EVENTS, &v, &watch, &err), &err);
    wait_for(v.compacted == 1);
    clu_watch_restart(watch, last + 1);
    put(client, "/t/c/0", "new");
    wait_for(v.events == 1);
    assert_string_equal(v.seen, "new ");
    clu_watch_destroy(watch);
    clu_etcd_destroy(client);
}

/* A stopped etcd closes nothing: keepalive ends the stream, and it resumes. */
TEST(watch_over_stop)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    watch_view v = {0};
    clu_watch *watch;
    int64_t start = put(client, "/t/s", "a") + 1;
    assert_ok(clu_watch_create(client, "/t/s", start, &WATCH_EVENTS, &v, &watch, &err), &err);
    put(client, "/t/s", "b");
    wait_for(v.events == 1);
    etcd_signal(&etcd, SIGSTOP);
    wait_for(!clu_etcd_connected(client));
    etcd_signal(&etcd, SIGCONT);
    wait_for(clu_etcd_connected(client));
    put(client, "/t/s", "c");
    wait_for(v.events == 2);
    assert_string_equal(v.seen, "b c ");
    clu_watch_destroy(watch);
    clu_etcd_destroy(client);
}

static const struct CMUnitTest TESTS[] = {
    ETCD_TEST(put_get_delete_txn),
    ETCD_TEST(status),
    ETCD_TEST(rotation),
    ETCD_TEST(unreachable),
    ETCD_TEST(bad_endpoints),
    ETCD_TEST(lease),
    ETCD_TEST(lease_outlives_etcd),
    ETCD_TEST(watch_over_restart),
    ETCD_TEST(watch_compacted),
    ETCD_TEST(watch_over_stop),
};
TEST_MAIN(TESTS)
