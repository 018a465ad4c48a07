/* Registration and view against a real etcd: the life of members, duplicates, etcd's death. */
#include "tests/unit/cluster/harness.h"

#define LEASE (2 * SL_S_NS)

/* ---- a node ---- */

typedef struct node {
    clu_registration *registration;
    clu_member_info info;
    int registered, lost, failed, stopped;
    sl_err err;
} node;

static void on_registered(void *context)
{
    ((node *)context)->registered++;
}

static void on_lost(void *context)
{
    ((node *)context)->lost++;
}

static void on_failed(void *context, const sl_err *why)
{
    node *n = context;
    n->failed++;
    n->err = *why;
}

static void on_stopped(void *context)
{
    ((node *)context)->stopped++;
}

static void describe(node *n, const char *name, uint64_t incarnation, int port)
{
    memset(n, 0, sizeof(*n));
    snprintf(n->info.name, sizeof(n->info.name), "%s", name);
    snprintf(n->info.role, sizeof(n->info.role), "decode");
    snprintf(n->info.control, sizeof(n->info.control), "127.0.0.1:%d", port);
    snprintf(n->info.stamp.numerics_id, sizeof(n->info.stamp.numerics_id), "cpu-f32-v1");
    n->info.incarnation = incarnation;
    n->info.slots = 4;
}

static void start(node *n, clu_etcd *client)
{
    static const clu_registration_events EVENTS = {on_registered, on_lost, on_failed};
    clu_registration_options options = {.cluster = "demo", .info = &n->info, .lease_ns = LEASE};
    assert_ok(clu_registration_create(client, &options, &EVENTS, n, &n->registration, &err), &err);
}

static void stop(node *n)
{
    clu_registration_stop(n->registration, on_stopped, n);
    assert_int_equal(n->stopped, 0);
    wait_for(n->stopped);
    clu_registration_destroy(n->registration);
}

/* ---- a watcher ---- */

typedef struct watcher {
    clu_view *view;
    int ready, failed, added, changed, removed, connects[2];
    bool forget_at_once;
    sl_err err;
} watcher;

static void on_ready(void *context)
{
    ((watcher *)context)->ready++;
}

static void on_view_failed(void *context, const sl_err *why)
{
    watcher *w = context;
    w->failed++;
    w->err = *why;
}

static void on_added(void *context, clu_view_member *member)
{
    watcher *w = context;
    w->added++;
    assert_null(member->user);
    member->user = w;
}

static void on_changed(void *context, clu_view_member *member)
{
    watcher *w = context;
    w->changed++;
    assert_ptr_equal(member->user, w);
    if (w->forget_at_once && member->suspect)
        assert_true(clu_view_forget(w->view, member->info.name, member->info.incarnation));
}

static void on_removed(void *context, clu_view_member *member)
{
    watcher *w = context;
    w->removed++;
    assert_ptr_equal(member->user, w);
}

static void on_connected(void *context, bool connected)
{
    ((watcher *)context)->connects[connected]++;
}

static void look(watcher *w, clu_etcd *client, uint64_t suspect_keep_ns)
{
    static const clu_view_events EVENTS = {on_ready,   on_view_failed, on_added,
                                           on_changed, on_removed,     on_connected};
    clu_view_options options = {.cluster = "demo", .suspect_keep_ns = suspect_keep_ns};
    memset(w, 0, sizeof(*w));
    assert_ok(clu_view_create(client, &options, &EVENTS, w, &w->view, &err), &err);
    assert_int_equal(w->ready, 0);
}

static const clu_view_member *seen(const watcher *w, const char *name)
{
    return clu_view_find(w->view, name);
}

static bool suspect(const watcher *w, const char *name)
{
    const clu_view_member *m = seen(w, name);
    return m && m->suspect;
}

/* A record without a lease: nobody renews it, nobody puts it back. */
static void put_record(clu_etcd *client, const char *name, uint32_t pages)
{
    node n;
    char key[CLU_KEY_MAX];
    describe(&n, name, 7, 9000);
    n.info.pages = pages;
    assert_ok(clu_member_key("demo", name, key, &err), &err);
    sl_buf buf;
    sl_buf_init(&buf, 0);
    clu_member_write_json(&buf, &n.info);
    put(client, key, buf.data);
    sl_buf_fini(&buf);
}

/* ---- tests ---- */

TEST(life_of_a_member)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    node n, other;
    watcher w;
    describe(&n, "decode-0", 7, 9000);
    describe(&other, "decode-1", 8, 9001);
    start(&n, client);
    wait_for(n.registered);
    look(&w, client, 0);
    wait_for(w.ready);
    assert_int_equal(w.added, 1); /* before on_ready */
    assert_true(clu_member_equal(&seen(&w, "decode-0")->info, &n.info));
    start(&other, client);
    wait_for(w.added == 2);
    assert_int_equal(clu_view_count(w.view), 2);

    /* Updated in place; a quick series may be seen as its last. */
    n.info.state = CLU_MEMBER_STATE_DRAINING;
    n.info.slots = 9;
    assert_ok(clu_registration_update(n.registration, &n.info, &err), &err);
    n.info.pages = 77;
    assert_ok(clu_registration_update(n.registration, &n.info, &err), &err);
    wait_for(seen(&w, "decode-0")->info.pages == 77);
    assert_int_equal(seen(&w, "decode-0")->info.state, CLU_MEMBER_STATE_DRAINING);
    assert_int_equal(seen(&w, "decode-0")->info.slots, 9);
    clu_member_info wrong = n.info;
    wrong.incarnation++;
    assert_code(clu_registration_update(n.registration, &wrong, &err), SL_INVALID);

    /* Renewed: it outlives its lease several times over. */
    sl_time_ns until = sl_now_ns() + 2 * LEASE;
    wait_for(sl_now_ns() > until);
    assert_false(suspect(&w, "decode-0"));
    assert_int_equal(n.lost, 0);

    /* A clean leave is no suspicion. */
    int changes = w.changed;
    stop(&n);
    wait_for(w.removed == 1);
    assert_int_equal(w.changed, changes);
    assert_null(seen(&w, "decode-0"));
    assert_string_equal(get(client, "/sluice/v1/demo/members/decode-0"), "");
    stop(&other);
    clu_view_destroy(w.view);
    clu_etcd_destroy(client);
}

TEST(lost_lease_is_suspect)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    node n, again;
    watcher w, patient;
    describe(&n, "decode-0", 7, 9000);
    start(&n, client);
    look(&w, client, 500 * SL_MS_NS);
    look(&patient, client, 3600 * SL_S_NS);
    wait_for(w.added && patient.added);
    clu_registration_destroy(n.registration); /* as kill -9 does */
    wait_for(suspect(&patient, "decode-0"));
    wait_for(w.removed); /* after its time */
    assert_int_equal(patient.removed, 0);

    /* The wrong incarnation is not forgotten, the right one is, once. */
    assert_false(clu_view_forget(patient.view, "decode-0", 6));
    assert_true(clu_view_forget(patient.view, "decode-0", 7));
    assert_int_equal(patient.removed, 1);
    assert_false(clu_view_forget(patient.view, "decode-0", 7));

    /* A live member is not forgotten. A new life under the same name is another member. */
    describe(&again, "decode-0", 8, 9000);
    start(&again, client);
    wait_for(seen(&patient, "decode-0"));
    assert_false(clu_view_forget(patient.view, "decode-0", 8));
    clu_registration_destroy(again.registration);
    describe(&again, "decode-0", 9, 9000);
    int removed = patient.removed;
    start(&again, client);
    wait_for(seen(&patient, "decode-0") && seen(&patient, "decode-0")->info.incarnation == 9);
    assert_int_equal(patient.removed, removed + 1);
    assert_int_equal(patient.added, 3);
    stop(&again);
    clu_view_destroy(w.view);
    clu_view_destroy(patient.view);
    clu_etcd_destroy(client);
}

/* Two live nodes of one name: the second is told who has it. */
TEST(duplicate_name)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    node first, second;
    describe(&first, "decode-0", 7, 9000);
    describe(&second, "decode-0", 8, 9001);
    start(&first, client);
    wait_for(first.registered);
    start(&second, client);
    wait_for(second.failed);
    assert_int_equal(second.err.code, SL_EXISTS);
    assert_text_contains(second.err.text, "127.0.0.1:9000");
    assert_text_contains(second.err.text, "decode-0");
    assert_int_equal(second.registered, 0);
    assert_int_equal(first.lost, 0);
    clu_registration_destroy(second.registration);
    stop(&first);
    clu_etcd_destroy(client);
}

static sl_code claim(clu_etcd *client, const char *name, const char *control)
{
    const clu_claim wanted = {.cluster = "demo", .name = name, .control = control};
    sl_status status = clu_claim_check(client, loop, &wanted, &err);
    return status.code;
}

/* Before there is anything to register: the same, by looking only. */
TEST(claims)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    node first;
    describe(&first, "decode-0", 7, 9000);
    start(&first, client);
    wait_for(first.registered);
    assert_int_equal(claim(client, "decode-1", "127.0.0.1:9001"), SL_OK);
    assert_int_equal(claim(client, "decode-0", "127.0.0.1:9000"), SL_OK); /* ours: it is dead */
    assert_int_equal(claim(client, "decode-0", "127.0.0.1:9001"), SL_EXISTS);
    assert_text_contains(err.text, "127.0.0.1:9000");
    clu_registration_destroy(first.registration); /* its lease ends by itself */
    assert_int_equal(claim(client, "decode-0", "127.0.0.1:9001"), SL_OK);
    put(client, "/sluice/v1/demo/members/decode-0", "nonsense");
    assert_int_equal(claim(client, "decode-0", "127.0.0.1:9001"), SL_OK);
    assert_int_equal(claim(client, "De", "127.0.0.1:9001"), SL_INVALID);
    clu_etcd_destroy(client);
    const clu_etcd_options nobody = {.endpoints = "http://127.0.0.1:9",
                                     .timeout_ns = 300 * SL_MS_NS};
    assert_ok(clu_etcd_create(runtime, &nobody, &client, &err), &err);
    assert_int_not_equal(claim(client, "decode-0", "127.0.0.1:9001"), SL_OK);
    assert_text_contains(err.text, "127.0.0.1:9");
    clu_etcd_destroy(client);
}

/* The old record of a dead process elsewhere is waited out; one of our own address is taken over.
 */
TEST(old_record)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    node dead, moved, restarted;
    describe(&dead, "decode-0", 7, 9000);
    start(&dead, client);
    wait_for(dead.registered);
    clu_registration_destroy(dead.registration);
    describe(&moved, "decode-0", 8, 9001);
    start(&moved, client);
    wait_for(moved.registered || moved.failed);
    assert_int_equal(moved.failed, 0);
    clu_registration_destroy(moved.registration);

    describe(&restarted, "decode-0", 9, 9001);
    start(&restarted, client);
    wait_for(restarted.registered || restarted.failed);
    assert_int_equal(restarted.failed, 0);
    assert_non_null(strstr(get(client, "/sluice/v1/demo/members/decode-0"), "0000000000000009"));
    stop(&restarted);

    /* Put by hand, without a lease: nobody lives behind it. */
    put(client, "/sluice/v1/demo/members/decode-0", "nonsense");
    describe(&restarted, "decode-0", 10, 9002);
    start(&restarted, client);
    wait_for(restarted.registered);
    stop(&restarted);
    clu_etcd_destroy(client);
}

/* kill -9 and restart of etcd: the view stays, the node comes back by itself. */
TEST(etcd_restarts)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    clu_etcd *node_client = make_client();
    node n;
    watcher w;
    describe(&n, "decode-0", 7, 9000);
    start(&n, node_client);
    look(&w, client, 500 * SL_MS_NS);
    wait_for(w.ready && w.added && n.registered);
    wait_for(w.connects[1] == 1);
    etcd_signal(&etcd, SIGKILL);
    wait_for(w.connects[0] == 1);
    wait_for(n.lost == 1); /* longer than the lease */
    assert_non_null(seen(&w, "decode-0"));
    assert_false(clu_view_connected(w.view));
    assert_int_equal(w.removed, 0);
    etcd_run(&etcd);
    wait_for(n.registered == 2);
    wait_for(clu_view_connected(w.view));
    n.info.pages = 5;
    assert_ok(clu_registration_update(n.registration, &n.info, &err), &err);
    wait_for(seen(&w, "decode-0") && seen(&w, "decode-0")->info.pages == 5);
    stop(&n);
    wait_for(!seen(&w, "decode-0"));
    clu_view_destroy(w.view);
    clu_etcd_destroy(node_client);
    clu_etcd_destroy(client);
}

/* The watcher stands still while etcd restarts, changes and forgets its past: it lists again. */
TEST(compaction_while_away)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    watcher w;
    put_record(client, "decode-0", 1);
    put_record(client, "decode-1", 1);
    look(&w, client, 3600 * SL_S_NS);
    wait_for(w.ready && w.added == 2);
    put_record(client, "decode-0", 2);
    wait_for(w.changed == 1); /* the watch works */

    sl_loop *watcher_loop = loop;
    rpc_runtime *watcher_runtime = runtime;
    assert_ok(sl_loop_create(&loop, &err), &err);
    assert_ok(rpc_runtime_create(loop, &runtime, &err), &err);
    clu_etcd *second = make_client();
    etcd_signal(&etcd, SIGKILL);
    etcd_run(&etcd);
    put_record(second, "decode-0", 3);
    delete_key(second, "/sluice/v1/demo/members/decode-1");
    put_record(second, "decode-2", 1);
    compact(second, put(second, "/elsewhere", "x"));
    clu_etcd_destroy(second);
    rpc_runtime_destroy(runtime);
    sl_loop_destroy(loop);
    loop = watcher_loop;
    runtime = watcher_runtime;

    wait_for(w.added == 3 && suspect(&w, "decode-1"));
    assert_int_equal(seen(&w, "decode-0")->info.pages, 3);
    assert_false(suspect(&w, "decode-0"));
    assert_int_equal(w.removed, 0);
    put_record(client, "decode-1", 5); /* and the new watch works */
    wait_for(seen(&w, "decode-1")->info.pages == 5);
    assert_false(suspect(&w, "decode-1"));
    clu_view_destroy(w.view);
    clu_etcd_destroy(client);
}

/* Many at once: etcd is more likely ill than they are. */
TEST(mass_loss_freezes)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    enum { COUNT = 4 };
    watcher w;
    look(&w, client, 200 * SL_MS_NS);
    for (int i = 0; i < COUNT; i++) {
        char name[16];
        snprintf(name, sizeof(name), "decode-%d", i);
        put_record(client, name, 1);
    }
    wait_for(w.added == COUNT);
    delete_key(client, "/sluice/v1/demo/members/decode-0");
    delete_key(client, "/sluice/v1/demo/members/decode-1");
    wait_for(suspect(&w, "decode-1"));
    if (!seen(&w, "decode-0")) { /* the machine paused between the two: it was alone for too long */
        assert_int_equal(w.removed, 1);
    } else {
        assert_true(clu_view_frozen(w.view));
        sl_time_ns until = sl_now_ns() + SL_S_NS;
        wait_for(sl_now_ns() > until); /* five times the keep time */
        assert_true(suspect(&w, "decode-0") && suspect(&w, "decode-1"));
        assert_int_equal(w.removed, 0);
        /* The data path knows better about one; then the other is alone, and goes in its time. */
        assert_true(clu_view_forget(w.view, "decode-0", 7));
        assert_false(clu_view_frozen(w.view));
        wait_for(w.removed == 2);
    }
    clu_view_destroy(w.view);
    clu_etcd_destroy(client);
}

TEST(forget_inside_a_callback)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    watcher w;
    put_record(client, "decode-0", 1);
    look(&w, client, 3600 * SL_S_NS);
    wait_for(w.added);
    w.forget_at_once = true;
    delete_key(client, "/sluice/v1/demo/members/decode-0");
    wait_for(w.removed == 1);
    assert_int_equal(clu_view_count(w.view), 0);
    clu_view_destroy(w.view);
    clu_etcd_destroy(client);
}

/* A record deleted by hand while its node lives is put back. */
TEST(record_deleted)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    node n;
    watcher w;
    describe(&n, "decode-0", 7, 9000);
    start(&n, client);
    look(&w, client, 3600 * SL_S_NS);
    wait_for(w.added && n.registered);
    delete_key(client, "/sluice/v1/demo/members/decode-0");
    wait_for(suspect(&w, "decode-0"));
    wait_for(n.registered == 2);
    wait_for(!suspect(&w, "decode-0"));
    assert_int_equal(w.removed, 0);
    assert_int_equal(n.lost, 0);
    stop(&n);
    clu_view_destroy(w.view);
    clu_etcd_destroy(client);
}

TEST(bad_records)
{
    NEED_ETCD();
    clu_etcd *client = make_client();
    watcher w;
    put(client, "/sluice/v1/demo/members/x", "{");
    put(client, "/sluice/v1/other/members/y", "{}");
    look(&w, client, 0);
    wait_for(w.ready);
    assert_int_equal(clu_view_bad_records(w.view), 1);
    assert_int_equal(w.added, 0);
    put(client, "/sluice/v1/demo/members/liar",
        "{\"name\":\"other\",\"role\":\"decode\",\"control\":\"h:1\","
        "\"incarnation\":\"0000000000000001\",\"state\":\"ready\"}");
    wait_for(clu_view_bad_records(w.view) == 2);
    assert_int_equal(w.added, 0);
    clu_view_destroy(w.view);
    clu_etcd_destroy(client);
}

TEST(unreachable_at_start)
{
    NEED_ETCD();
    char url[64];
    snprintf(url, sizeof(url), "http://127.0.0.1:%d", free_port());
    clu_etcd *client = make_client_with(url, 500 * SL_MS_NS);
    node n;
    watcher w;
    describe(&n, "decode-0", 7, 9000);
    start(&n, client);
    look(&w, client, 0);
    wait_for(n.failed && w.failed);
    assert_int_equal(n.err.code, SL_UNAVAILABLE);
    assert_text_contains(n.err.text, url);
    assert_text_contains(w.err.text, url);
    assert_text_contains(w.err.text, "0.5 s");
    assert_false(clu_view_ready(w.view));
    /* Stopping what never stood ends too. */
    stop(&n);
    clu_view_destroy(w.view);
    clu_etcd_destroy(client);
}

TEST(stop_without_etcd)
{
    NEED_ETCD();
    clu_etcd *client = make_client_with(etcd.url, 500 * SL_MS_NS);
    node n;
    describe(&n, "decode-0", 7, 9000);
    do { /* half a second may be too short for etcd's start */
        start(&n, client);
        wait_for(n.registered || n.failed);
        if (n.failed)
            clu_registration_destroy(n.registration);
        n.failed = 0;
    } while (!n.registered);
    etcd_signal(&etcd, SIGKILL);
    stop(&n);
    clu_etcd_destroy(client);
}

static const struct CMUnitTest TESTS[] = {
    ETCD_TEST(life_of_a_member),
    ETCD_TEST(lost_lease_is_suspect),
    ETCD_TEST(duplicate_name),
    ETCD_TEST(claims),
    ETCD_TEST(old_record),
    ETCD_TEST(etcd_restarts),
    ETCD_TEST(compaction_while_away),
    ETCD_TEST(mass_loss_freezes),
    ETCD_TEST(forget_inside_a_callback),
    ETCD_TEST(record_deleted),
    ETCD_TEST(bad_records),
    ETCD_TEST(unreachable_at_start),
    ETCD_TEST(stop_without_etcd),
};
TEST_MAIN(TESTS)
