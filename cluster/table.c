/* See table.h. Owns the list request and the watch. */
#include "cluster/table.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "cluster/internal.h"
#include "rpc/methods.h"

struct clu_table {
    clu_etcd *etcd;
    clu_table_events events;
    void *context;
    char prefix[CLU_KEY_MAX];
    clu_request *list;
    clu_watch *watch;
    clu_backoff backoff;
    sl_timer *timer; /* list again */
    int64_t seen;
    bool ready;
};

static void list(clu_table *table);

/* What follows the prefix; false: it is not one of ours to tell. */
static bool name_of(const clu_table *table, const Etcdserverpb__KeyValue *kv,
                    char out_name[CLU_KEY_MAX])
{
    size_t prefix = strlen(table->prefix);
    if (kv->key.len < prefix || kv->key.len - prefix >= CLU_KEY_MAX ||
        memchr(kv->key.data, 0, kv->key.len))
        return false;
    memcpy(out_name, kv->key.data + prefix, kv->key.len - prefix);
    out_name[kv->key.len - prefix] = 0;
    return true;
}

static void tell_put(clu_table *table, const Etcdserverpb__KeyValue *kv)
{
    char name[CLU_KEY_MAX];
    if (!name_of(table, kv, name))
        return;
    char *value = sl_strndup(kv->value.data ? (const char *)kv->value.data : "", kv->value.len,
                             "table value");
    table->events.on_put(table->context, name, value, kv);
    sl_free(value);
}

static void saw(clu_table *table, int64_t revision)
{
    table->seen = revision;
    if (table->events.on_seen)
        table->events.on_seen(table->context);
}

static void on_events(void *context, Etcdserverpb__Event *const *events, size_t count,
                      int64_t revision)
{
    clu_table *table = context;
    char name[CLU_KEY_MAX];
    for (size_t i = 0; i < count; i++) {
        if (events[i]->type != ETCDSERVERPB__EVENT__EVENT_TYPE__DELETE)
            tell_put(table, events[i]->kv);
        else if (name_of(table, events[i]->kv, name))
            table->events.on_delete(table->context, name);
    }
    saw(table, revision);
}

static void on_compacted(void *context)
{
    list(context);
}

static void on_listed(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    static const clu_watch_events EVENTS = {on_events, on_compacted};
    clu_table *table = context;
    const Etcdserverpb__RangeResponse *reply = (const void *)message;
    table->list = NULL;
    if (err->code != SL_OK || !reply->header || reply->header->revision <= 0) {
        sl_timer_set(table->timer, sl_now_ns() + clu_backoff_next(&table->backoff));
        return;
    }
    clu_backoff_reset(&table->backoff);
    table->events.on_list(table->context);
    for (size_t i = 0; i < reply->n_kvs; i++)
        tell_put(table, reply->kvs[i]);
    int64_t next = reply->header->revision + 1;
    if (table->watch) {
        clu_watch_restart(table->watch, next);
    } else {
        sl_err watch_err;
        sl_status status = clu_watch_create(table->etcd, table->prefix, next, &EVENTS, table,
                                            &table->watch, &watch_err);
        sl_assert(sl_is_ok(status)); /* prefix and revision were checked */
    }
    table->ready = true;
    table->events.on_listed(table->context);
    saw(table, next - 1);
}

static void list(clu_table *table)
{
    char end[CLU_KEY_MAX];
    sl_err err;
    if (table->list)
        return;
    Etcdserverpb__RangeRequest request = ETCDSERVERPB__RANGE_REQUEST__INIT;
    request.key = clu_bytes(table->prefix);
    request.range_end = clu_prefix_end(table->prefix, end, sizeof(end));
    request.limit = CLU_TABLE_KEYS_MAX;
    clu_request_options options = {.idempotent = true};
    if (!sl_is_ok(clu_etcd_request(table->etcd, &rpc_method_etcd_kv_range, &request.base, &options,
                                   on_listed, table, &table->list, &err)))
        sl_timer_set(table->timer, sl_now_ns() + clu_backoff_next(&table->backoff));
}

static void on_timer(void *context, sl_time_ns now)
{
    list(context);
}

sl_status clu_table_create(clu_etcd *etcd, const char *prefix, const clu_table_events *events,
                           void *context, clu_table **out_table, sl_err *err)
{
    size_t length = strlen(prefix);
    if (length == 0 || length >= CLU_KEY_MAX)
        return sl_fail(err, SL_INVALID, "etcd prefix of %zu bytes", length);
    clu_table *table = sl_alloc(1, sizeof(*table), "etcd table");
    table->etcd = etcd;
    table->events = *events;
    table->context = context;
    memcpy(table->prefix, prefix, length + 1);
    table->timer = sl_timer_create(rpc_runtime_loop(clu_etcd_runtime(etcd)), on_timer, table);
    list(table);
    *out_table = table;
    return sl_ok();
}

int64_t clu_table_seen(const clu_table *table)
{
    return table->seen;
}

bool clu_table_ready(const clu_table *table)
{
    return table->ready;
}

void clu_table_destroy(clu_table *table)
{
    if (!table)
        return;
    clu_request_drop(table->list);
    clu_watch_destroy(table->watch);
    sl_timer_destroy(table->timer);
    sl_free(table);
}
