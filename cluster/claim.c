/* See claim.h. One request after the other. Thread: the loop's. */
#include "cluster/claim.h"

#include <inttypes.h>
#include <string.h>

#include "cluster/member.h"
#include "rpc/methods.h"

#define POLL_MS     500           /* looks at another's lease */
#define GRACE_NS    (3 * SL_S_NS) /* etcd deletes expired leases in batches */
#define LEASE_S_MIN 6 /* of a shorter one whole seconds do not tell whether it is renewed */

typedef struct claiming {
    bool done;
    sl_err err;
    bool there; /* a record, with: */
    clu_member_info other;
    int64_t lease, ttl, granted; /* seconds; ttl <= 0: it has ended */
} claiming;

static const clu_request_options OPTIONS = {.idempotent = true};

static void on_record(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    claiming *c = context;
    const Etcdserverpb__RangeResponse *reply = (const void *)message;
    c->done = true;
    c->err = *err;
    if (!reply || reply->n_kvs == 0)
        return;
    const Etcdserverpb__KeyValue *kv = reply->kvs[0];
    c->lease = kv->lease;
    c->there = sl_is_ok(clu_member_parse_json(kv->value.data, kv->value.len, &c->other, NULL));
}

static void on_time_to_live(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    claiming *c = context;
    const Etcdserverpb__LeaseTimeToLiveResponse *reply = (const void *)message;
    c->done = true;
    c->err = *err;
    c->ttl = reply ? reply->ttl : 0;
    c->granted = reply ? reply->grantedttl : 0;
}

static sl_status ask(claiming *c, clu_etcd *etcd, sl_loop *loop, const rpc_method *method,
                     const ProtobufCMessage *request, rpc_done_fn fn, sl_err *err)
{
    c->done = false;
    SL_TRY(clu_etcd_request(etcd, method, request, &OPTIONS, fn, c, NULL, err));
    while (!c->done)
        sl_loop_run_once(loop, POLL_MS);
    return c->err.code == SL_OK
               ? sl_ok()
               : sl_fail(err, c->err.code, "etcd at %s: %s", clu_etcd_endpoints(etcd), c->err.text);
}

static sl_status ask_lease(claiming *c, clu_etcd *etcd, sl_loop *loop, sl_err *err)
{
    Etcdserverpb__LeaseTimeToLiveRequest request = ETCDSERVERPB__LEASE_TIME_TO_LIVE_REQUEST__INIT;
    request.id = c->lease;
    return ask(c, etcd, loop, &rpc_method_etcd_lease_lease_time_to_live, &request.base,
               on_time_to_live, err);
}

static void pass(sl_loop *loop, uint64_t ms)
{
    sl_time_ns end = sl_now_ns() + ms * SL_MS_NS;
    for (sl_time_ns now = sl_now_ns(); now < end; now = sl_now_ns())
        sl_loop_run_once(loop, (int)((end - now) / SL_MS_NS) + 1);
}

static sl_status taken(const claiming *c, const char *name, sl_err *err)
{
    return sl_fail(err, SL_EXISTS,
                   "node name \"%s\" is taken: a live node at %s (incarnation %016" PRIx64
                   ") has it in etcd",
                   name, c->other.control, c->other.incarnation);
}

/* A live node renews at a third of its lease: one that has not by half of it is gone. */
static bool is_late(const claiming *c)
{
    return c->ttl <= 0 || (c->granted >= LEASE_S_MIN && c->ttl <= c->granted / 2);
}

static sl_status watch_lease(claiming *c, clu_etcd *etcd, sl_loop *loop, const char *name,
                             sl_err *err)
{
    SL_TRY(ask_lease(c, etcd, loop, err));
    sl_time_ns end = sl_now_ns() + (uint64_t)(c->granted > 0 ? c->granted : 0) * SL_S_NS + GRACE_NS;
    while (!is_late(c)) {
        int64_t before = c->ttl;
        pass(loop, POLL_MS);
        SL_TRY(ask_lease(c, etcd, loop, err));
        if (c->ttl > before || sl_now_ns() >= end)
            return taken(c, name, err);
    }
    return sl_ok();
}

sl_status clu_claim_check(clu_etcd *etcd, sl_loop *loop, const clu_claim *claim, sl_err *err)
{
    claiming c = {0};
    char key[CLU_KEY_MAX];
    Etcdserverpb__RangeRequest request = ETCDSERVERPB__RANGE_REQUEST__INIT;
    SL_TRY(clu_member_key(claim->cluster, claim->name, key, err));
    request.key = clu_bytes(key);
    SL_TRY(ask(&c, etcd, loop, &rpc_method_etcd_kv_range, &request.base, on_record, err));
    if (!c.there || c.lease == 0 || c.other.state == CLU_MEMBER_STATE_LEFT ||
        strcmp(c.other.control, claim->control) == 0)
        return sl_ok();
    return watch_lease(&c, etcd, loop, claim->name, err);
}
