/* A watch on a prefix that resumes by itself.
 *
 * Owns one stream at a time. Thread: the runtime's loop. Knows the next revision that nobody saw: a
 * new stream starts there, so nothing is lost or doubled over reconnects. Never lists: after
 * compaction its owner does. */
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "cluster/internal.h"
#include "rpc/methods.h"

struct clu_watch {
    clu_etcd *etcd;
    char *prefix;
    clu_watch_events events;
    void *context;
    rpc_call *stream;
    bool created;   /* etcd confirmed this stream's watch */
    bool compacted; /* waits for clu_watch_restart */
    int64_t next_revision;
    sl_timer *timer; /* no stream: open one; stream: confirmation overdue */
    clu_backoff backoff;
};

static void retry_later(clu_watch *watch)
{
    sl_timer_set(watch->timer, sl_now_ns() + clu_backoff_next(&watch->backoff));
}

static void drop_stream(clu_watch *watch)
{
    rpc_call_drop(watch->stream);
    watch->stream = NULL;
}

static void note(clu_watch *watch, sl_code code, const char *text)
{
    sl_err err;
    err.code = code;
    err.text[0] = 0;
    if (code != SL_OK)
        (void)sl_fail(&err, code, "etcd watch: %s", text);
    clu_etcd_note(watch->etcd, &err);
}

static void on_canceled(clu_watch *watch, const Etcdserverpb__WatchResponse *reply)
{
    drop_stream(watch);
    if (reply->compact_revision) {
        watch->compacted = true;
        sl_timer_set(watch->timer, SL_NEVER);
        watch->events.on_compacted(watch->context);
        return;
    }
    if (strstr(reply->cancel_reason, "permission denied") || strstr(reply->cancel_reason, "token"))
        clu_etcd_forget_token(watch->etcd);
    note(watch, SL_UNAVAILABLE, reply->cancel_reason);
    retry_later(watch);
}

static void on_message(void *context, const ProtobufCMessage *message)
{
    clu_watch *watch = context;
    const Etcdserverpb__WatchResponse *reply = (const void *)message;
    if (reply->canceled) {
        on_canceled(watch, reply);
        return;
    }
    note(watch, SL_OK, NULL);
    if (reply->created) {
        watch->created = true;
        clu_backoff_reset(&watch->backoff);
        sl_timer_set(watch->timer, SL_NEVER);
    }
    if (!reply->n_events)
        return;
    int64_t last = 0;
    for (size_t i = 0; i < reply->n_events; i++) {
        const Etcdserverpb__KeyValue *kv = reply->events[i]->kv;
        if (!kv) { /* never by etcd: do not believe the rest either */
            note(watch, SL_UNAVAILABLE, "an event without a key");
            drop_stream(watch);
            retry_later(watch);
            return;
        }
        if (kv->mod_revision > last)
            last = kv->mod_revision;
    }
    if (last < watch->next_revision)
        return; /* seen before */
    watch->next_revision = last + 1;
    watch->events.on_events(watch->context, reply->events, reply->n_events, last);
}

static void on_end(void *context, const sl_err *err)
{
    clu_watch *watch = context;
    watch->stream = NULL;
    /* etcd never ends it well: a good end is an endpoint that goes away. */
    note(watch, err->code == SL_OK ? SL_UNAVAILABLE : err->code, err->text);
    retry_later(watch);
}

static void open_stream(clu_watch *watch)
{
    static const rpc_stream_events EVENTS = {.on_message = on_message, .on_end = on_end};
    /* An endpoint that lost its majority ends the stream instead of going on in silence. */
    rpc_metadata metadata[2] = {{"hasleader", "true"}};
    rpc_call_options options;
    sl_err err;
    watch->created = false;
    if (!clu_etcd_stream_options(watch->etcd, &options, &metadata[1])) {
        retry_later(watch);
        return;
    }
    options.metadata = metadata;
    options.metadata_count++;
    sl_status status = rpc_stream_open(clu_etcd_channel(watch->etcd), &rpc_method_etcd_watch_watch,
                                       NULL, &options, &EVENTS, watch, &watch->stream, &err);
    if (!sl_is_ok(status)) {
        retry_later(watch);
        return;
    }
    char end[CLU_PREFIX_MAX];
    Etcdserverpb__WatchCreateRequest create = ETCDSERVERPB__WATCH_CREATE_REQUEST__INIT;
    create.key = clu_bytes(watch->prefix);
    create.range_end = clu_prefix_end(watch->prefix, end, sizeof(end));
    create.start_revision = watch->next_revision;
    Etcdserverpb__WatchRequest request = ETCDSERVERPB__WATCH_REQUEST__INIT;
    request.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST;
    request.create_request = &create;
    status = rpc_stream_write(watch->stream, &request.base);
    sl_assert(sl_is_ok(status)); /* the queue of a new stream is empty */
    sl_timer_set(watch->timer, sl_now_ns() + CLU_ETCD_ATTEMPT_NS);
}

static void on_timer(void *context, sl_time_ns now)
{
    clu_watch *watch = context;
    (void)now;
    if (watch->compacted)
        return;
    if (watch->stream && !watch->created) {
        drop_stream(watch);
        note(watch, SL_DEADLINE, "not confirmed in time");
    }
    if (!watch->stream)
        open_stream(watch);
}

sl_status clu_watch_create(clu_etcd *etcd, const char *prefix, int64_t start_revision,
                           const clu_watch_events *events, void *context, clu_watch **out_watch,
                           sl_err *err)
{
    if (!*prefix || strlen(prefix) >= CLU_PREFIX_MAX || start_revision <= 0)
        return sl_fail(err, SL_INVALID, "etcd watch of \"%.100s\" from %lld", prefix,
                       (long long)start_revision);
    clu_watch *watch = sl_alloc(1, sizeof(*watch), "etcd watch");
    watch->etcd = etcd;
    watch->prefix = sl_strdup(prefix, "etcd watch");
    watch->events = *events;
    watch->context = context;
    watch->next_revision = start_revision;
    watch->timer = sl_timer_create(rpc_runtime_loop(clu_etcd_runtime(etcd)), on_timer, watch);
    open_stream(watch);
    *out_watch = watch;
    return sl_ok();
}

void clu_watch_restart(clu_watch *watch, int64_t start_revision)
{
    drop_stream(watch);
    watch->compacted = false;
    watch->next_revision = start_revision;
    open_stream(watch);
}

void clu_watch_destroy(clu_watch *watch)
{
    if (!watch)
        return;
    drop_stream(watch);
    sl_timer_destroy(watch->timer);
    sl_free(watch->prefix);
    sl_free(watch);
}
