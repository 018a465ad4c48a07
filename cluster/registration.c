/* A node's own record: claimed by transaction, kept under a lease, taken back on stop.
 *
 * Owns the lease, one request at a time and one timer. Thread: the runtime's loop. Only a
 * transaction that compares the key's revision ever replaces another process's record. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"
#include "cluster/internal.h"
#include "cluster/registration.h"
#include "cluster/txn.h"
#include "rpc/methods.h"

#define RIVAL_POLL_NS  (500 * SL_MS_NS)
#define RIVAL_GRACE_NS (3 * SL_S_NS) /* etcd deletes expired leases in batches */

typedef enum state {
    STATE_LEASE,      /* no lease yet, or lost */
    STATE_CLAIM,      /* transaction out or to be repeated */
    STATE_RIVAL,      /* another record has the name: is its owner alive? */
    STATE_REGISTERED, /* the record stands; put out if `putting` */
    STATE_TOMBSTONE,
    STATE_REVOKE,
    STATE_STOPPED,
    STATE_FAILED,
} state;

struct clu_registration {
    clu_etcd *etcd;
    clu_registration_events events;
    void *context;
    char key[CLU_KEY_MAX];
    clu_member_info info;
    uint64_t lease_ns;
    clu_lease *lease;
    state state;
    int64_t expected_revision; /* claim: the key's mod_revision must be this; 0 = absent */
    clu_request *request;
    sl_timer *timer;
    clu_backoff backoff;
    bool dirty; /* info changed since it was sent */
    bool ever_registered;
    sl_time_ns start_deadline;
    /* rival */
    clu_member_info rival;
    int64_t rival_lease, rival_revision, rival_ttl;
    sl_time_ns rival_deadline;
    /* stop */
    void (*on_stopped)(void *context);
    void *stopped_context;
    sl_time_ns stop_deadline;
};

static void claim(clu_registration *r);
static void put(clu_registration *r);
static void verify(clu_registration *r);
static void verify_later(clu_registration *r);
static void revoke(clu_registration *r);

static void again_later(clu_registration *r)
{
    sl_timer_set(r->timer, sl_now_ns() + clu_backoff_next(&r->backoff));
}

static void fail(clu_registration *r, const sl_err *err)
{
    r->state = STATE_FAILED;
    clu_request_drop(r->request);
    r->request = NULL;
    clu_lease_destroy(r->lease);
    r->lease = NULL;
    sl_timer_set(r->timer, SL_NEVER);
    sl_err copy = *err;
    if (r->events.on_failed)
        r->events.on_failed(r->context, &copy);
}

static void render(const clu_registration *r, sl_buf *buf)
{
    sl_buf_init(buf, CLU_MEMBER_JSON_MAX);
    clu_member_write_json(buf, &r->info);
    sl_assert(!buf->overflow);
}

static const clu_request_options REQUEST_OPTIONS = {.timeout_ns = CLU_ETCD_ATTEMPT_NS};

static sl_status send_request(clu_registration *r, const rpc_method *method,
                              const ProtobufCMessage *request, rpc_done_fn fn)
{
    sl_assert(!r->request);
    sl_err err;
    return clu_etcd_request(r->etcd, method, request, &REQUEST_OPTIONS, fn, r, &r->request, &err);
}

static void verify_later(clu_registration *r)
{
    sl_timer_set(r->timer, sl_now_ns() + r->lease_ns);
}

static void registered(clu_registration *r)
{
    r->state = STATE_REGISTERED;
    r->ever_registered = true;
    clu_backoff_reset(&r->backoff);
    verify_later(r);
    if (r->dirty)
        put(r);
    if (r->events.on_registered)
        r->events.on_registered(r->context);
}

/* ---- rival: a record with our name and another incarnation ---- */

static void rival_alive(clu_registration *r)
{
    sl_err err;
    (void)sl_fail(&err, SL_EXISTS,
                  "node name \"%s\" is taken: a live node at %s (incarnation %016" PRIx64
                  ") has it in etcd",
                  r->info.name, r->rival.control[0] ? r->rival.control : "an unknown address",
                  r->rival.incarnation);
    fail(r, &err);
}

static void on_time_to_live(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    clu_registration *r = context;
    r->request = NULL;
    if (err->code == SL_OK) {
        const Etcdserverpb__LeaseTimeToLiveResponse *reply = (const void *)message;
        if (r->rival_ttl >= 0 && reply->ttl > r->rival_ttl) {
            rival_alive(r); /* renewed while we watched */
            return;
        }
        if (r->rival_ttl < 0)
            r->rival_deadline = sl_now_ns() + RIVAL_GRACE_NS +
                                (uint64_t)(reply->ttl > 0 ? reply->ttl : 0) * SL_S_NS;
        r->rival_ttl = reply->ttl > 0 ? reply->ttl : 0;
        if (sl_now_ns() >= r->rival_deadline) {
            rival_alive(r);
            return;
        }
    }
    /* Claim again soon: it succeeds once the old record is gone. */
    sl_timer_set(r->timer, sl_now_ns() + RIVAL_POLL_NS);
}

static void ask_time_to_live(clu_registration *r)
{
    Etcdserverpb__LeaseTimeToLiveRequest request = ETCDSERVERPB__LEASE_TIME_TO_LIVE_REQUEST__INIT;
    request.id = r->rival_lease;
    if (!sl_is_ok(send_request(r, &rpc_method_etcd_lease_lease_time_to_live, &request.base,
                               on_time_to_live)))
        sl_timer_set(r->timer, sl_now_ns() + RIVAL_POLL_NS);
}

static void found_record(clu_registration *r, const Etcdserverpb__KeyValue *kv)
{
    clu_member_info other;
    sl_err err;
    memset(&other, 0, sizeof(other));
    bool readable = sl_is_ok(clu_member_parse_json(kv->value.data, kv->value.len, &other, &err));
    bool ours = readable && other.incarnation == r->info.incarnation;
    /* We listen on that address, so whoever wrote it does not any more. */
    bool same_place = readable && strcmp(other.control, r->info.control) == 0;
    bool left = readable && other.state == CLU_MEMBER_STATE_LEFT;
    if (ours || same_place || left || kv->lease == 0) {
        r->expected_revision = kv->mod_revision;
        claim(r);
        return;
    }
    if (r->state != STATE_RIVAL || r->rival_lease != kv->lease) {
        r->state = STATE_RIVAL;
        r->rival = other;
        r->rival_lease = kv->lease;
        r->rival_ttl = -1;
        r->rival_deadline = SL_NEVER;
        sl_debug("registration of %s: an older record from %s is there, waiting for its lease",
                 r->info.name, other.control);
    }
    ask_time_to_live(r);
}

/* ---- claim ---- */

static void on_claimed(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    clu_registration *r = context;
    r->request = NULL;
    if (err->code != SL_OK) {
        /* A lost lease is told by the lease itself. Whether it took place is open: the next claim
         * finds our own incarnation. */
        again_later(r);
        return;
    }
    const Etcdserverpb__TxnResponse *reply = (const void *)message;
    if (reply->succeeded) {
        registered(r);
        return;
    }
    r->expected_revision = 0;
    const Etcdserverpb__KeyValue *kv = clu_txn_found(reply, 0);
    if (kv)
        found_record(r, kv);
    else
        again_later(r);
}

static void claim(clu_registration *r)
{
    if (r->state != STATE_RIVAL)
        r->state = STATE_CLAIM;
    clu_txn txn;
    sl_buf value;
    sl_err err;
    render(r, &value);
    clu_txn_init(&txn);
    clu_txn_compare_mod(&txn, r->key, r->expected_revision);
    clu_txn_put(&txn, r->key, value.data, clu_lease_id(r->lease));
    r->dirty = false;
    sl_assert(!r->request);
    sl_status status =
        clu_txn_send(r->etcd, &txn, &REQUEST_OPTIONS, on_claimed, r, &r->request, &err);
    sl_buf_fini(&value);
    if (!sl_is_ok(status))
        again_later(r);
}

/* ---- update ---- */

static void on_put(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    clu_registration *r = context;
    (void)message;
    r->request = NULL;
    if (r->state == STATE_TOMBSTONE) {
        revoke(r); /* in any case: it deletes the record */
        return;
    }
    if (err->code != SL_OK) {
        r->dirty = true;
        again_later(r); /* "lease not found" included: the lease will tell, then it is claimed */
    } else if (r->dirty) {
        put(r);
    } else {
        verify_later(r);
    }
}

static void put(clu_registration *r)
{
    sl_buf value;
    render(r, &value);
    Etcdserverpb__PutRequest request = ETCDSERVERPB__PUT_REQUEST__INIT;
    request.key = clu_bytes(r->key);
    request.value = (ProtobufCBinaryData){value.size, (uint8_t *)value.data};
    request.lease = clu_lease_id(r->lease); /* fails if it is gone: then the key may be another's */
    r->dirty = false;
    sl_status status = send_request(r, &rpc_method_etcd_kv_put, &request.base, on_put);
    sl_buf_fini(&value);
    if (!sl_is_ok(status)) {
        r->dirty = true;
        again_later(r);
    }
}

/* ---- verify: somebody may delete or replace the record while the lease lives ---- */

static void on_verified(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    clu_registration *r = context;
    r->request = NULL;
    const Etcdserverpb__TxnResponse *reply = (const void *)message;
    if (err->code == SL_OK && !reply->succeeded) {
        r->expected_revision = 0;
        claim(r); /* finds out what is there instead */
    } else if (r->dirty) {
        put(r);
    } else {
        verify_later(r);
    }
}

static void verify(clu_registration *r)
{
    Etcdserverpb__Compare compare = ETCDSERVERPB__COMPARE__INIT;
    compare.key = clu_bytes(r->key);
    compare.result = ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL;
    compare.target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__LEASE;
    compare.target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_LEASE;
    compare.lease = clu_lease_id(r->lease);
    Etcdserverpb__TxnRequest txn = ETCDSERVERPB__TXN_REQUEST__INIT;
    txn.n_compare = 1;
    txn.compare = &(Etcdserverpb__Compare *){&compare};
    if (!sl_is_ok(send_request(r, &rpc_method_etcd_kv_txn, &txn.base, on_verified)))
        verify_later(r);
}

sl_status clu_registration_update(clu_registration *r, const clu_member_info *info, sl_err *err)
{
    SL_TRY(clu_member_check(info, err));
    if (strcmp(info->name, r->info.name) != 0 || info->incarnation != r->info.incarnation)
        return sl_fail(err, SL_INVALID, "registration: name and incarnation cannot change");
    if (r->state >= STATE_TOMBSTONE)
        return sl_fail(err, SL_CONFLICT, "registration of %s: it has ended", r->info.name);
    r->info = *info;
    r->dirty = true;
    if (r->state == STATE_REGISTERED && !r->request)
        put(r);
    return sl_ok();
}

/* ---- stop ---- */

static void stopped(clu_registration *r)
{
    r->state = STATE_STOPPED;
    clu_request_drop(r->request);
    r->request = NULL;
    clu_lease_destroy(r->lease);
    r->lease = NULL;
    sl_timer_set(r->timer, SL_NEVER);
    if (r->on_stopped)
        r->on_stopped(r->stopped_context);
}

static void on_revoked(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    clu_registration *r = context;
    (void)message;
    r->request = NULL;
    bool no_answer = err->code == SL_UNAVAILABLE || err->code == SL_DEADLINE;
    if (no_answer && sl_now_ns() < r->stop_deadline)
        again_later(r);
    else
        stopped(r);
}

static void revoke(clu_registration *r)
{
    r->state = STATE_REVOKE;
    Etcdserverpb__LeaseRevokeRequest request = ETCDSERVERPB__LEASE_REVOKE_REQUEST__INIT;
    request.id = r->lease ? clu_lease_id(r->lease) : 0;
    if (!request.id ||
        !sl_is_ok(send_request(r, &rpc_method_etcd_lease_lease_revoke, &request.base, on_revoked)))
        sl_timer_set(r->timer, sl_now_ns()); /* nothing to revoke: stopped, from the loop */
}

void clu_registration_stop(clu_registration *r, void (*on_stopped)(void *context), void *context)
{
    r->on_stopped = on_stopped;
    r->stopped_context = context;
    if (r->state == STATE_TOMBSTONE || r->state == STATE_REVOKE)
        return;
    r->stop_deadline = sl_now_ns() + clu_etcd_timeout_ns(r->etcd);
    clu_request_drop(r->request);
    r->request = NULL;
    bool stands = r->state == STATE_REGISTERED || r->state == STATE_CLAIM;
    if (stands && r->lease && clu_lease_id(r->lease)) {
        /* The tombstone tells watchers that this is no lost lease. A claim that may still be on its
         * way is revoked with its lease. */
        bool registered_now = r->state == STATE_REGISTERED;
        r->state = STATE_TOMBSTONE;
        r->info.state = CLU_MEMBER_STATE_LEFT;
        if (registered_now) {
            put(r);
            return;
        }
    }
    revoke(r);
}

/* ---- lease, timer ---- */

static void on_granted(void *context, int64_t id)
{
    clu_registration *r = context;
    (void)id;
    if (r->state >= STATE_TOMBSTONE)
        return;
    clu_backoff_reset(&r->backoff);
    clu_request_drop(r->request);
    r->request = NULL;
    r->expected_revision = 0;
    r->state = STATE_CLAIM;
    claim(r);
}

static void on_lost(void *context)
{
    clu_registration *r = context;
    if (r->state >= STATE_TOMBSTONE)
        return;
    clu_request_drop(r->request);
    r->request = NULL;
    bool was_registered = r->state == STATE_REGISTERED;
    r->state = STATE_LEASE;
    sl_timer_set(r->timer, r->ever_registered ? SL_NEVER : r->start_deadline);
    if (was_registered && r->events.on_lost)
        r->events.on_lost(r->context);
}

static void unreachable(clu_registration *r)
{
    sl_err err;
    const char *last = clu_etcd_last_error(r->etcd);
    (void)sl_fail(&err, SL_UNAVAILABLE, "etcd %s: no answer within %.1f s%s%s",
                  clu_etcd_endpoints(r->etcd), (double)clu_etcd_timeout_ns(r->etcd) / 1e9,
                  *last ? ": " : "", last);
    fail(r, &err);
}

static void on_timer(void *context, sl_time_ns now)
{
    clu_registration *r = context;
    if (r->request)
        return;
    switch (r->state) {
    case STATE_LEASE:
        if (!r->ever_registered && now >= r->start_deadline)
            unreachable(r);
        return;
    case STATE_CLAIM:
    case STATE_RIVAL:
        if (!r->ever_registered && !clu_etcd_connected(r->etcd) && now >= r->start_deadline)
            unreachable(r);
        else
            claim(r);
        return;
    case STATE_REGISTERED:
        if (r->dirty)
            put(r);
        else
            verify(r);
        return;
    case STATE_REVOKE:
        if (now < r->stop_deadline && r->lease && clu_lease_id(r->lease))
            revoke(r);
        else
            stopped(r);
        return;
    case STATE_TOMBSTONE:
        revoke(r);
        return;
    case STATE_STOPPED:
    case STATE_FAILED:
        return;
    }
}

static sl_status check_name(const char *option, const char *name, sl_err *err)
{
    if (clu_name_valid(name))
        return sl_ok();
    return sl_fail(
        err, SL_INVALID,
        "%s \"%.80s\": want 1 to %d lower-case letters, digits, . _ -, the first a letter "
        "or digit",
        option, name, CLU_NAME_MAX - 1);
}

sl_status clu_settings_check(const clu_settings *settings, sl_err *err)
{
    static const rpc_tls SOME;
    clu_etcd_options etcd = {.endpoints = settings->etcd, .tls = settings->etcd_ca ? &SOME : NULL};
    if (settings->name)
        SL_TRY(check_name("--name", settings->name, err));
    SL_TRY(check_name("--cluster", settings->cluster, err));
    SL_TRY(sl_wrap(err, clu_etcd_check(&etcd, err), "--etcd"));
    if (settings->lease_ns < CLU_LEASE_NS_MIN || settings->lease_ns > CLU_LEASE_NS_MAX)
        return sl_fail(err, SL_INVALID, "--lease: want 1s to 60m");
    return sl_ok();
}

sl_status clu_registration_create(clu_etcd *etcd, const clu_registration_options *options,
                                  const clu_registration_events *events, void *context,
                                  clu_registration **out_registration, sl_err *err)
{
    static const clu_lease_events LEASE_EVENTS = {on_granted, on_lost};
    char key[CLU_KEY_MAX];
    SL_TRY(clu_member_check(options->info, err));
    SL_TRY(clu_member_key(options->cluster, options->info->name, key, err));
    clu_registration *r = sl_alloc(1, sizeof(*r), "registration");
    r->etcd = etcd;
    r->events = *events;
    r->context = context;
    r->info = *options->info;
    r->lease_ns = options->lease_ns ? options->lease_ns : CLU_LEASE_NS;
    r->start_deadline = sl_now_ns() + clu_etcd_timeout_ns(etcd);
    memcpy(r->key, key, sizeof(key));
    r->timer = sl_timer_create(rpc_runtime_loop(clu_etcd_runtime(etcd)), on_timer, r);
    sl_timer_set(r->timer, r->start_deadline);
    sl_status status = clu_lease_create(etcd, r->lease_ns, &LEASE_EVENTS, r, &r->lease, err);
    if (!sl_is_ok(status)) {
        clu_registration_destroy(r);
        return status;
    }
    *out_registration = r;
    return sl_ok();
}

bool clu_registration_registered(const clu_registration *r)
{
    return r->state == STATE_REGISTERED;
}

void clu_registration_destroy(clu_registration *r)
{
    if (!r)
        return;
    clu_request_drop(r->request);
    clu_lease_destroy(r->lease);
    sl_timer_destroy(r->timer);
    sl_free(r);
}
