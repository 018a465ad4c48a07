/* A lease that renews itself and is granted anew when lost.
 *
 * Owns one keep-alive stream at a time. Thread: the runtime's loop. The lease counts as lost when
 * etcd says TTL 0, or when a whole TTL passed since the last renewal that was answered was sent. */
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "cluster/internal.h"
#include "rpc/methods.h"

struct clu_lease {
    clu_etcd *etcd;
    clu_lease_events events;
    void *context;
    int64_t ttl_s; /* asked for */
    int64_t id;    /* 0 = none */
    uint64_t granted_ns;
    clu_request *grant;
    rpc_call *stream;
    sl_timer *timer; /* no lease: next grant; lease: next renewal, or answer overdue */
    bool asked;      /* a renewal is out */
    sl_time_ns asked_at;
    sl_time_ns expires;
    clu_backoff backoff;
};

static void grant(clu_lease *lease);
static void open_stream(clu_lease *lease);

static void drop_stream(clu_lease *lease)
{
    rpc_call_drop(lease->stream);
    lease->stream = NULL;
    lease->asked = false;
}

static void lose(clu_lease *lease)
{
    drop_stream(lease);
    lease->id = 0;
    /* Everybody's lease may be lost at once: do not come back all together. */
    sl_timer_set(lease->timer, sl_now_ns() + clu_jitter(CLU_BACKOFF_MAX_NS));
    if (lease->events.on_lost)
        lease->events.on_lost(lease->context);
}

/* ---- keep-alive ---- */

static void renew(clu_lease *lease)
{
    Etcdserverpb__LeaseKeepAliveRequest request = ETCDSERVERPB__LEASE_KEEP_ALIVE_REQUEST__INIT;
    request.id = lease->id;
    lease->asked_at = sl_now_ns();
    if (sl_is_ok(rpc_stream_write(lease->stream, &request.base)))
        lease->asked = true;
    sl_timer_set(lease->timer, lease->asked_at + lease->granted_ns / 3);
}

static void on_message(void *context, const ProtobufCMessage *message)
{
    clu_lease *lease = context;
    const Etcdserverpb__LeaseKeepAliveResponse *reply = (const void *)message;
    static const sl_err FINE = {SL_OK, ""};
    clu_etcd_note(lease->etcd, &FINE);
    if (reply->id != lease->id)
        return;
    lease->asked = false;
    if (reply->ttl <= 0) {
        lose(lease);
        return;
    }
    clu_backoff_reset(&lease->backoff);
    lease->granted_ns = (uint64_t)reply->ttl * SL_S_NS;
    lease->expires = lease->asked_at + lease->granted_ns;
    sl_timer_set(lease->timer, lease->asked_at + lease->granted_ns / 3);
}

static void on_end(void *context, const sl_err *err)
{
    clu_lease *lease = context;
    sl_err why = *err;
    if (why.code == SL_OK)
        why.code = SL_UNAVAILABLE; /* etcd never ends it well */
    lease->stream = NULL;
    lease->asked = false;
    clu_etcd_note(lease->etcd, &why);
    sl_timer_set(lease->timer, sl_now_ns() + clu_backoff_next(&lease->backoff));
}

static void open_stream(clu_lease *lease)
{
    static const rpc_stream_events EVENTS = {.on_message = on_message, .on_end = on_end};
    rpc_call_options options;
    rpc_metadata token;
    sl_err err;
    if (clu_etcd_stream_options(lease->etcd, &options, &token) &&
        sl_is_ok(rpc_stream_open(clu_etcd_channel(lease->etcd),
                                 &rpc_method_etcd_lease_lease_keep_alive, NULL, &options, &EVENTS,
                                 lease, &lease->stream, &err)))
        renew(lease);
    else
        sl_timer_set(lease->timer, sl_now_ns() + clu_backoff_next(&lease->backoff));
}

static void on_timer(void *context, sl_time_ns now)
{
    clu_lease *lease = context;
    if (!lease->id) {
        if (!lease->grant)
            grant(lease);
        return;
    }
    if (now >= lease->expires) {
        sl_debug("etcd lease %llx: no renewal for its whole time", (unsigned long long)lease->id);
        lose(lease);
        return;
    }
    if (lease->asked) {
        /* A third of the time without an answer: try elsewhere. */
        sl_err err;
        (void)sl_fail(&err, SL_DEADLINE, "etcd lease keep-alive: no answer");
        drop_stream(lease);
        clu_etcd_note(lease->etcd, &err);
    }
    if (lease->stream)
        renew(lease);
    else
        open_stream(lease);
    /* Whatever happens, look again when it would expire. */
    if (!lease->stream && lease->expires < now + CLU_BACKOFF_FIRST_NS)
        sl_timer_set(lease->timer, lease->expires);
}

/* ---- grant ---- */

static void on_granted(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    clu_lease *lease = context;
    lease->grant = NULL;
    if (err->code != SL_OK) {
        sl_timer_set(lease->timer, sl_now_ns() + clu_backoff_next(&lease->backoff));
        return;
    }
    const Etcdserverpb__LeaseGrantResponse *reply = (const void *)message;
    if (reply->id == 0 || reply->ttl <= 0) {
        sl_timer_set(lease->timer, sl_now_ns() + clu_backoff_next(&lease->backoff));
        return;
    }
    clu_backoff_reset(&lease->backoff);
    lease->id = reply->id;
    lease->granted_ns = (uint64_t)reply->ttl * SL_S_NS;
    lease->expires = lease->asked_at + lease->granted_ns;
    sl_timer_set(lease->timer, lease->asked_at + lease->granted_ns / 3);
    if (lease->events.on_granted)
        lease->events.on_granted(lease->context, lease->id);
}

static void grant(clu_lease *lease)
{
    Etcdserverpb__LeaseGrantRequest request = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;
    request.ttl = lease->ttl_s;
    clu_request_options options = {.timeout_ns = CLU_ETCD_ATTEMPT_NS};
    lease->asked_at = sl_now_ns();
    sl_err err;
    sl_status status =
        clu_etcd_request(lease->etcd, &rpc_method_etcd_lease_lease_grant, &request.base, &options,
                         on_granted, lease, &lease->grant, &err);
    if (!sl_is_ok(status))
        sl_timer_set(lease->timer, sl_now_ns() + clu_backoff_next(&lease->backoff));
}

sl_status clu_lease_create(clu_etcd *etcd, uint64_t ttl_ns, const clu_lease_events *events,
                           void *context, clu_lease **out_lease, sl_err *err)
{
    if (ttl_ns < CLU_LEASE_NS_MIN || ttl_ns > CLU_LEASE_NS_MAX)
        return sl_fail(err, SL_INVALID, "etcd lease: want 1 s to 1 h");
    clu_lease *lease = sl_alloc(1, sizeof(*lease), "etcd lease");
    lease->etcd = etcd;
    lease->events = *events;
    lease->context = context;
    lease->ttl_s = (int64_t)((ttl_ns + SL_S_NS - 1) / SL_S_NS);
    lease->timer = sl_timer_create(rpc_runtime_loop(clu_etcd_runtime(etcd)), on_timer, lease);
    grant(lease);
    *out_lease = lease;
    return sl_ok();
}

int64_t clu_lease_id(const clu_lease *lease)
{
    return lease->id;
}

void clu_lease_destroy(clu_lease *lease)
{
    if (!lease)
        return;
    drop_stream(lease);
    clu_request_drop(lease->grant);
    sl_timer_destroy(lease->timer);
    sl_free(lease);
}
