/* See etcd.h. Speaks etcd's own messages over the simulated gRPC; does what cluster/ relies on. */
#include "tests/sim/etcd.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "cluster/member.h"
#include "proto/etcd/etcd.pb-c.h"
#include "rpc/rpc.h"

#define KEYS_MAX     64u
#define KEY_BYTES    128u
#define LEASES_MAX   256u
#define HISTORY_MAX  4096u
#define WATCHERS_MAX 32u
#define EXPIRY_NS    (500 * SL_MS_NS)

typedef struct record {
    bool used;
    char key[KEY_BYTES];
    char *value;
    size_t value_size;
    int64_t created, modified, version, lease;
} record;

typedef struct change {
    bool deleted;
    int64_t revision;
    char key[KEY_BYTES];
    char *value;
    size_t value_size;
    int64_t created, version, lease;
} change;

typedef struct lease {
    int64_t id;
    int64_t ttl_s;
    sl_time_ns expires; /* virtual time */
} lease;

struct sim_etcd_data {
    record records[KEYS_MAX];
    lease leases[LEASES_MAX];
    change history[HISTORY_MAX];
    uint32_t history_count;
    int64_t revision, compacted, next_lease;
};

typedef struct watcher {
    rpc_server_call *call;
    int64_t next_revision; /* 0: not created */
    char key[KEY_BYTES];
} watcher;

struct sim_etcd {
    sim_etcd_data *data;
    sl_loop *loop;
    rpc_runtime *runtime;
    rpc_server *server;
    sl_timer *timer;
    watcher watchers[WATCHERS_MAX];
};

/* ---- data */

sim_etcd_data *sim_etcd_data_create(void)
{
    sim_etcd_data *data = sl_alloc(1, sizeof(*data), "sim etcd data");
    data->revision = 1;
    data->next_lease = 1000;
    return data;
}

void sim_etcd_data_destroy(sim_etcd_data *data)
{
    if (!data)
        return;
    for (uint32_t i = 0; i < KEYS_MAX; i++)
        sl_free(data->records[i].value);
    for (uint32_t i = 0; i < data->history_count; i++)
        sl_free(data->history[i].value);
    sl_free(data);
}

void sim_etcd_compact(sim_etcd_data *data)
{
    data->compacted = data->revision;
}

void sim_etcd_lose_leases(sim_etcd_data *data)
{
    for (uint32_t i = 0; i < LEASES_MAX; i++)
        if (data->leases[i].id)
            data->leases[i].expires = sim.now;
}

uint32_t sim_etcd_key_count(const sim_etcd_data *data)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < KEYS_MAX; i++)
        count += data->records[i].used;
    return count;
}

static void key_of(ProtobufCBinaryData bytes, char out_key[KEY_BYTES])
{
    sl_assert(bytes.len < KEY_BYTES);
    memcpy(out_key, bytes.data, bytes.len);
    out_key[bytes.len] = 0;
}

static record *find(sim_etcd_data *data, const char *key)
{
    for (uint32_t i = 0; i < KEYS_MAX; i++)
        if (data->records[i].used && strcmp(data->records[i].key, key) == 0)
            return &data->records[i];
    return NULL;
}

static void remember(sim_etcd_data *data, const record *at, bool deleted)
{
    sl_assert(data->history_count < HISTORY_MAX);
    change *entry = &data->history[data->history_count++];
    *entry = (change){.deleted = deleted,
                      .revision = data->revision,
                      .created = at->created,
                      .version = at->version,
                      .lease = at->lease};
    memcpy(entry->key, at->key, KEY_BYTES);
    entry->value = sl_strndup(at->value, at->value_size, "sim etcd value");
    entry->value_size = at->value_size;
}

static lease *find_lease(sim_etcd_data *data, int64_t id)
{
    for (uint32_t i = 0; id && i < LEASES_MAX; i++)
        if (data->leases[i].id == id)
            return &data->leases[i];
    return NULL;
}

static void put(sim_etcd_data *data, const Etcdserverpb__PutRequest *request)
{
    char key[KEY_BYTES];
    key_of(request->key, key);
    record *at = find(data, key);
    for (uint32_t i = 0; !at && i < KEYS_MAX; i++)
        if (!data->records[i].used)
            at = &data->records[i];
    sl_assert(at);
    data->revision++;
    if (!at->used) {
        *at = (record){.used = true, .created = data->revision};
        memcpy(at->key, key, KEY_BYTES);
    }
    sl_free(at->value);
    at->value = sl_strndup((const char *)request->value.data, request->value.len, "sim etcd value");
    at->value_size = request->value.len;
    at->modified = data->revision;
    at->version++;
    at->lease = request->lease;
    remember(data, at, false);
}

static void delete_record(sim_etcd_data *data, record *at)
{
    data->revision++;
    at->modified = data->revision;
    remember(data, at, true);
    sl_free(at->value);
    *at = (record){0};
}

static void end_lease(sim_etcd_data *data, lease *ended)
{
    int64_t id = ended->id;
    *ended = (lease){0};
    for (uint32_t i = 0; i < KEYS_MAX; i++)
        if (data->records[i].used && data->records[i].lease == id)
            delete_record(data, &data->records[i]);
}

/* ---- watches */

static void fill_change(const change *from, Etcdserverpb__Event *event, Etcdserverpb__KeyValue *kv)
{
    etcdserverpb__event__init(event);
    etcdserverpb__key_value__init(kv);
    event->type = from->deleted ? ETCDSERVERPB__EVENT__EVENT_TYPE__DELETE
                                : ETCDSERVERPB__EVENT__EVENT_TYPE__PUT;
    event->kv = kv;
    kv->key = (ProtobufCBinaryData){strlen(from->key), (uint8_t *)from->key};
    kv->mod_revision = from->revision;
    if (from->deleted)
        return;
    kv->create_revision = from->created;
    kv->version = from->version;
    kv->lease = from->lease;
    kv->value = (ProtobufCBinaryData){from->value_size, (uint8_t *)from->value};
}

static void tell_watcher(sim_etcd *etcd, watcher *at)
{
    for (uint32_t i = 0; i < etcd->data->history_count; i++) {
        const change *entry = &etcd->data->history[i];
        if (!at->next_revision || entry->revision < at->next_revision ||
            strncmp(entry->key, at->key, strlen(at->key)) != 0)
            continue;
        Etcdserverpb__Event event, *events = &event;
        Etcdserverpb__KeyValue kv;
        Etcdserverpb__ResponseHeader header = ETCDSERVERPB__RESPONSE_HEADER__INIT;
        Etcdserverpb__WatchResponse response = ETCDSERVERPB__WATCH_RESPONSE__INIT;
        fill_change(entry, &event, &kv);
        header.revision = etcd->data->revision;
        response.header = &header;
        response.n_events = 1;
        response.events = &events;
        if (!sl_is_ok(rpc_server_call_write(at->call, &response.base)))
            return;
        at->next_revision = entry->revision + 1;
    }
}

static void tell_all(sim_etcd *etcd)
{
    for (uint32_t i = 0; i < WATCHERS_MAX; i++)
        if (etcd->watchers[i].call)
            tell_watcher(etcd, &etcd->watchers[i]);
}

static void on_watch_message(void *context, rpc_server_call *call, const ProtobufCMessage *base)
{
    sim_etcd *etcd = context;
    const Etcdserverpb__WatchRequest *request = (const void *)base;
    const Etcdserverpb__WatchCreateRequest *create = request->create_request;
    Etcdserverpb__ResponseHeader header = ETCDSERVERPB__RESPONSE_HEADER__INIT;
    Etcdserverpb__WatchResponse response = ETCDSERVERPB__WATCH_RESPONSE__INIT;
    header.revision = etcd->data->revision;
    response.header = &header;
    response.created = true;
    sl_status status = rpc_server_call_write(call, &response.base);
    (void)status;
    for (uint32_t i = 0; i < WATCHERS_MAX; i++) {
        watcher *at = &etcd->watchers[i];
        if (at->call != call)
            continue;
        if (create->start_revision <= etcd->data->compacted) {
            response.created = false;
            response.canceled = true;
            response.compact_revision = etcd->data->compacted;
            status = rpc_server_call_write(call, &response.base);
            return;
        }
        at->next_revision = create->start_revision;
        key_of(create->key, at->key);
        tell_watcher(etcd, at);
        return;
    }
}

static void on_watch_closed(void *context, rpc_server_call *call, bool cancelled)
{
    sim_etcd *etcd = context;
    for (uint32_t i = 0; i < WATCHERS_MAX; i++)
        if (etcd->watchers[i].call == call)
            etcd->watchers[i] = (watcher){0};
}

static void on_watch(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    static const rpc_server_call_events EVENTS = {.on_message = on_watch_message,
                                                  .on_closed = on_watch_closed};
    sim_etcd *etcd = context;
    for (uint32_t i = 0; i < WATCHERS_MAX; i++) {
        if (etcd->watchers[i].call)
            continue;
        etcd->watchers[i] = (watcher){.call = call};
        rpc_server_call_set(call, &EVENTS, etcd);
        return;
    }
    sl_assert(!"a place for a watcher");
}

/* ---- requests */

static void fill_record(const record *from, Etcdserverpb__KeyValue *kv)
{
    etcdserverpb__key_value__init(kv);
    kv->key = (ProtobufCBinaryData){strlen(from->key), (uint8_t *)from->key};
    kv->value = (ProtobufCBinaryData){from->value_size, (uint8_t *)from->value};
    kv->create_revision = from->created;
    kv->mod_revision = from->modified;
    kv->version = from->version;
    kv->lease = from->lease;
}

typedef struct range_reply {
    Etcdserverpb__ResponseHeader header;
    Etcdserverpb__RangeResponse response;
    Etcdserverpb__KeyValue kvs[KEYS_MAX];
    Etcdserverpb__KeyValue *pointers[KEYS_MAX];
} range_reply;

static void range(sim_etcd *etcd, const Etcdserverpb__RangeRequest *request, range_reply *out)
{
    char key[KEY_BYTES];
    bool prefix = request->range_end.len > 0;
    key_of(request->key, key);
    etcdserverpb__response_header__init(&out->header);
    etcdserverpb__range_response__init(&out->response);
    out->header.revision = etcd->data->revision;
    out->response.header = &out->header;
    out->response.kvs = out->pointers;
    for (uint32_t i = 0; i < KEYS_MAX; i++) {
        const record *at = &etcd->data->records[i];
        bool hit = at->used &&
                   (prefix ? strncmp(at->key, key, strlen(key)) == 0 : strcmp(at->key, key) == 0);
        if (!hit)
            continue;
        fill_record(at, &out->kvs[out->response.n_kvs]);
        out->pointers[out->response.n_kvs] = &out->kvs[out->response.n_kvs];
        out->response.n_kvs++;
    }
    out->response.count = (int64_t)out->response.n_kvs;
}

static void on_range(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    range_reply reply;
    range(context, (const void *)request, &reply);
    rpc_server_call_reply(call, &reply.response.base);
}

static void on_put(void *context, rpc_server_call *call, const ProtobufCMessage *base)
{
    sim_etcd *etcd = context;
    const Etcdserverpb__PutRequest *request = (const void *)base;
    if (request->lease && !find_lease(etcd->data, request->lease)) {
        rpc_server_call_finish(call, SL_NOT_FOUND, "requested lease not found");
        return;
    }
    put(etcd->data, request);
    Etcdserverpb__PutResponse response = ETCDSERVERPB__PUT_RESPONSE__INIT;
    rpc_server_call_reply(call, &response.base);
    tell_all(etcd);
}

static bool holds(sim_etcd *etcd, const Etcdserverpb__Compare *compare)
{
    char key[KEY_BYTES];
    key_of(compare->key, key);
    const record *at = find(etcd->data, key);
    if (compare->target == ETCDSERVERPB__COMPARE__COMPARE_TARGET__LEASE)
        return (at ? at->lease : 0) == compare->lease;
    sl_assert(compare->target == ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD);
    return (at ? at->modified : 0) == compare->mod_revision;
}

static void on_txn(void *context, rpc_server_call *call, const ProtobufCMessage *base)
{
    sim_etcd *etcd = context;
    const Etcdserverpb__TxnRequest *request = (const void *)base;
    Etcdserverpb__TxnResponse response = ETCDSERVERPB__TXN_RESPONSE__INIT;
    Etcdserverpb__ResponseOp op = ETCDSERVERPB__RESPONSE_OP__INIT, *ops = &op;
    range_reply reply;
    response.succeeded = true;
    for (size_t i = 0; i < request->n_compare; i++)
        response.succeeded = response.succeeded && holds(etcd, request->compare[i]);
    if (response.succeeded && request->n_success == 1) {
        const Etcdserverpb__PutRequest *wanted = request->success[0]->request_put;
        if (wanted->lease && !find_lease(etcd->data, wanted->lease)) {
            rpc_server_call_finish(call, SL_NOT_FOUND, "requested lease not found");
            return;
        }
        put(etcd->data, wanted);
    } else if (!response.succeeded && request->n_failure == 1) {
        range(etcd, request->failure[0]->request_range, &reply);
        op.response_case = ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_RANGE;
        op.response_range = &reply.response;
        response.n_responses = 1;
        response.responses = &ops;
    }
    rpc_server_call_reply(call, &response.base);
    tell_all(etcd);
}

static void on_grant(void *context, rpc_server_call *call, const ProtobufCMessage *base)
{
    sim_etcd *etcd = context;
    const Etcdserverpb__LeaseGrantRequest *request = (const void *)base;
    Etcdserverpb__LeaseGrantResponse response = ETCDSERVERPB__LEASE_GRANT_RESPONSE__INIT;
    for (uint32_t i = 0; i < LEASES_MAX; i++) {
        lease *at = &etcd->data->leases[i];
        if (at->id)
            continue;
        *at = (lease){etcd->data->next_lease++, request->ttl,
                      sim.now + (uint64_t)request->ttl * SL_S_NS};
        response.id = at->id;
        response.ttl = at->ttl_s;
        rpc_server_call_reply(call, &response.base);
        return;
    }
    rpc_server_call_finish(call, SL_FULL, "too many leases");
}

static void on_revoke(void *context, rpc_server_call *call, const ProtobufCMessage *base)
{
    sim_etcd *etcd = context;
    const Etcdserverpb__LeaseRevokeRequest *request = (const void *)base;
    lease *at = find_lease(etcd->data, request->id);
    Etcdserverpb__LeaseRevokeResponse response = ETCDSERVERPB__LEASE_REVOKE_RESPONSE__INIT;
    if (!at) {
        rpc_server_call_finish(call, SL_NOT_FOUND, "requested lease not found");
        return;
    }
    end_lease(etcd->data, at);
    rpc_server_call_reply(call, &response.base);
    tell_all(etcd);
}

static int64_t seconds_left(const lease *at)
{
    return at->expires > sim.now ? (int64_t)((at->expires - sim.now + SL_S_NS - 1) / SL_S_NS) : 0;
}

static void on_time_to_live(void *context, rpc_server_call *call, const ProtobufCMessage *base)
{
    sim_etcd *etcd = context;
    const Etcdserverpb__LeaseTimeToLiveRequest *request = (const void *)base;
    const lease *at = find_lease(etcd->data, request->id);
    Etcdserverpb__LeaseTimeToLiveResponse response =
        ETCDSERVERPB__LEASE_TIME_TO_LIVE_RESPONSE__INIT;
    response.id = request->id;
    response.ttl = at ? seconds_left(at) : -1;
    rpc_server_call_reply(call, &response.base);
}

static void on_keep_alive_message(void *context, rpc_server_call *call,
                                  const ProtobufCMessage *base)
{
    sim_etcd *etcd = context;
    const Etcdserverpb__LeaseKeepAliveRequest *request = (const void *)base;
    lease *at = find_lease(etcd->data, request->id);
    Etcdserverpb__LeaseKeepAliveResponse response = ETCDSERVERPB__LEASE_KEEP_ALIVE_RESPONSE__INIT;
    response.id = request->id;
    if (at) {
        at->expires = sim.now + (uint64_t)at->ttl_s * SL_S_NS;
        response.ttl = at->ttl_s;
    }
    sl_status status = rpc_server_call_write(call, &response.base);
    (void)status;
}

static void on_keep_alive(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    static const rpc_server_call_events EVENTS = {.on_message = on_keep_alive_message};
    rpc_server_call_set(call, &EVENTS, context);
}

/* ---- life */

static void on_expiry(void *context, sl_time_ns now)
{
    sim_etcd *etcd = context;
    for (uint32_t i = 0; i < LEASES_MAX; i++) {
        lease *at = &etcd->data->leases[i];
        if (at->id && at->expires <= sim.now)
            end_lease(etcd->data, at);
    }
    tell_all(etcd);
    sl_timer_set(etcd->timer, now + EXPIRY_NS);
}

sl_status sim_etcd_create(sim_etcd_data *data, const char *address, sim_etcd **out_etcd,
                          sl_err *err)
{
    sim_etcd *etcd = sl_alloc(1, sizeof(*etcd), "sim etcd");
    etcd->data = data;
    const rpc_handler handlers[] = {
        {&rpc_method_etcd_kv_range, on_range, etcd},
        {&rpc_method_etcd_kv_put, on_put, etcd},
        {&rpc_method_etcd_kv_txn, on_txn, etcd},
        {&rpc_method_etcd_lease_lease_grant, on_grant, etcd},
        {&rpc_method_etcd_lease_lease_revoke, on_revoke, etcd},
        {&rpc_method_etcd_lease_lease_time_to_live, on_time_to_live, etcd},
        {&rpc_method_etcd_lease_lease_keep_alive, on_keep_alive, etcd},
        {&rpc_method_etcd_watch_watch, on_watch, etcd},
    };
    SL_TRY(sl_loop_create(&etcd->loop, err));
    SL_TRY(rpc_runtime_create(etcd->loop, &etcd->runtime, err));
    rpc_server_options options = {.listen = address,
                                  .handlers = handlers,
                                  .handler_count = sizeof(handlers) / sizeof(handlers[0]),
                                  .write_messages_max = 1024};
    SL_TRY(rpc_server_create(etcd->runtime, &options, &etcd->server, err));
    etcd->timer = sl_timer_create(etcd->loop, on_expiry, etcd);
    sl_timer_set(etcd->timer, sl_loop_now(etcd->loop) + EXPIRY_NS);
    /* As a new leader does: everybody gets its whole time again. */
    for (uint32_t i = 0; i < LEASES_MAX; i++)
        if (data->leases[i].id)
            data->leases[i].expires = sim.now + (uint64_t)data->leases[i].ttl_s * SL_S_NS;
    *out_etcd = etcd;
    return sl_ok();
}

void sim_etcd_destroy(sim_etcd *etcd)
{
    if (!etcd)
        return;
    rpc_server_destroy(etcd->server);
    rpc_runtime_destroy(etcd->runtime);
    sl_timer_destroy(etcd->timer);
    sl_loop_destroy(etcd->loop);
    sl_free(etcd);
}
