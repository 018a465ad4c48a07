/* Who leads, against a real etcd: one at a time, with a higher fence each time; one that is cut off
 * is deposed by its own clock, and what it does then has no effect. */
#include "tests/unit/cluster/harness.h"

#include "cluster/action.h"
#include "cluster/desired.h"
#include "cluster/election.h"

#define KEY "/sluice/v1/t/"

typedef struct seen {
    int elected, deposed;
    int64_t fence;
    char leader[CLU_NAME_MAX];
} seen;

static void on_elected(void *context, int64_t fence)
{
    seen *s = context;
    s->elected++;
    s->fence = fence;
}

static void on_deposed(void *context)
{
    ((seen *)context)->deposed++;
}

static void on_leader(void *context, const char *name)
{
    seen *s = context;
    snprintf(s->leader, sizeof(s->leader), "%s", name);
}

static clu_election *campaign(clu_etcd *client, const char *name, seen *s)
{
    static const clu_election_events EVENTS = {on_elected, on_deposed, on_leader};
    clu_election_options options = {.cluster = "t", .name = name, .lease_ns = SL_S_NS};
    clu_election *election;
    memset(s, 0, sizeof(*s));
    assert_ok(clu_election_create(client, &options, &EVENTS, s, &election, &err), &err);
    return election;
}

TEST(one_leads_then_the_other)
{
    NEED_ETCD();
    clu_etcd *client = make_client(), *other = make_client();
    seen a, b;
    clu_election *first = campaign(client, "a", &a);
    wait_for(a.elected == 1);
    assert_true(a.fence > 0 && clu_election_fence(first) == a.fence);
    clu_election *second = campaign(other, "b", &b);
    wait_for(strcmp(b.leader, "a") == 0);
    assert_int_equal(clu_election_fence(second), 0);
    clu_election_destroy(first); /* as a process that ends: its lease expires */
    wait_for(b.elected == 1);
    assert_true(b.fence > a.fence);
    assert_string_equal(clu_election_leader(second), "b");
    delete_key(client, KEY "leader"); /* by whoever: it is deposed, then elected anew */
    wait_for(b.deposed >= 1 && b.elected >= 2);
    clu_election_destroy(second);
    clu_etcd_destroy(client);
    clu_etcd_destroy(other);
}

typedef struct done {
    int count;
    sl_err err;
} done;

static void on_done(void *context, int64_t revision, const sl_err *why)
{
    done *d = context;
    d->count++;
    d->err = *why;
}

/* Its lease is revoked under it, as etcd does to one that it does not hear: whatever it has in hand
 * and sends then changes nothing, though it reaches etcd. */
TEST(a_partitioned_old_leader_applies_nothing)
{
    NEED_ETCD();
    clu_etcd *client = make_client(), *other = make_client();
    seen a, b;
    done d = {0};
    clu_action_run *run;
    clu_election *first = campaign(client, "a", &a);
    wait_for(a.elected == 1);
    int64_t before = a.fence;
    clu_election *second = campaign(other, "b", &b);
    etcd_signal(&etcd, SIGSTOP); /* nobody hears of etcd, for longer than the lease */
    wait_for(a.deposed == 1);
    assert_int_equal(clu_election_fence(first), 0);
    etcd_signal(&etcd, SIGCONT);
    wait_for(b.elected + a.elected >= 2); /* somebody is elected anew */
    clu_action action = {.actor = "controller a",
                         .verb = "scale",
                         .target = "",
                         .detail = "",
                         .changes = {{.key = KEY "scale", .value = "old"}},
                         .change_count = 1,
                         .fence = before};
    assert_ok(clu_action_start(client, "t", &action, on_done, &d, &run, &err), &err);
    wait_for(d.count);
    assert_int_equal(d.err.code, SL_CONFLICT);
    assert_text_contains(d.err.text, "no longer the leader");
    assert_string_equal(get(client, KEY "scale"), "");
    assert_string_equal(get(client, KEY "audit/next"), "");
    clu_election_destroy(first);
    clu_election_destroy(second);
    clu_etcd_destroy(client);
    clu_etcd_destroy(other);
}

TEST(scale_is_read_as_written)
{
    clu_scale scale = {3, 1}, back;
    sl_buf buf;
    sl_buf_init(&buf, 0);
    clu_scale_write_json(&buf, &scale);
    assert_ok(clu_scale_parse_json(buf.data, buf.size, &back, &err), &err);
    assert_int_equal(back.prefill, 3);
    assert_int_equal(back.decode, 1);
    sl_buf_fini(&buf);
    static const char *const BAD[] = {"", "{}", "{\"prefill\":1,\"decode\":0}",
                                      "{\"prefill\":-1,\"decode\":1}",
                                      "{\"prefill\":1,\"decode\":1025}"};
    for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++)
        assert_code(clu_scale_parse_json(BAD[i], strlen(BAD[i]), &back, &err), SL_INVALID);
}

static const struct CMUnitTest TESTS[] = {
    ETCD_TEST(one_leads_then_the_other),
    ETCD_TEST(a_partitioned_old_leader_applies_nothing),
    cmocka_unit_test(scale_is_read_as_written),
};
TEST_MAIN(TESTS)
