/* A rank's record in etcd, and a look at those of the others: see ranks.h.
 *
 * Owns a lease, one request at a time and a timer. Every look reads all records of the instance and
 * then does the one next thing: writes its own, or tells the owner. Thread: the runtime's loop. */
#include "cluster/ranks.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/json.h"
#include "rpc/methods.h"

#define LOOK_NS        (200 * SL_MS_NS)
#define LEASE_NS       (10 * SL_S_NS)
#define RIVAL_GRACE_NS (3 * SL_S_NS) /* etcd deletes expired leases in batches */

struct clu_ranks {
    clu_etcd *etcd;
    clu_ranks_events events;
    void *context;
    char prefix[CLU_KEY_MAX];
    uint32_t rank;
    uint64_t lease_ns;
    clu_rank_record own;
    clu_lease *lease;
    clu_request *request;
    sl_timer *timer;
    bool met, failed;
    bool written;           /* the record of this lease says what `own` says */
    sl_time_ns rival_until; /* 0: no other node has this rank */
    bool there[CLU_RANKS_MAX];
    clu_rank_record records[CLU_RANKS_MAX]; /* of the last look */
    void (*on_left)(void *context);
    void *left_context;
};

/* ---- the record ---- */

void clu_rank_write_json(sl_buf *buf, const clu_rank_record *record)
{
    sl_buf_puts(buf, "{\"node\":");
    sl_json_write_string(buf, record->node, strlen(record->node));
    sl_buf_puts(buf, ",\"contact\":");
    sl_json_write_string(buf, record->contact, strlen(record->contact));
    sl_buf_printf(buf, ",\"size\":%u,\"leaving\":%s}", record->size,
                  record->leaving ? "true" : "false");
}

static sl_status get_text(const sl_json *root, const char *key, char *out_field, size_t field_size,
                          sl_err *err)
{
    size_t size;
    const char *text = sl_json_string(sl_json_get(root, key), &size);
    if (!text || size == 0 || size >= field_size || memchr(text, '\0', size))
        return sl_fail(err, SL_INVALID, "rank record: %s: want a text of 1 to %zu bytes", key,
                       field_size - 1);
    memcpy(out_field, text, size + 1);
    return sl_ok();
}

static sl_status parse_root(const sl_json *root, clu_rank_record *record, sl_err *err)
{
    int64_t size;
    SL_TRY(get_text(root, "node", record->node, sizeof(record->node), err));
    SL_TRY(get_text(root, "contact", record->contact, sizeof(record->contact), err));
    if (!clu_name_valid(record->node))
        return sl_fail(err, SL_INVALID, "rank record: node: no name of a node");
    if (!sl_json_i64(sl_json_get(root, "size"), &size) || size < 1 || size > CLU_RANKS_MAX)
        return sl_fail(err, SL_INVALID, "rank record: size: want 1 to %u", CLU_RANKS_MAX);
    if (!sl_json_bool(sl_json_get(root, "leaving"), &record->leaving))
        return sl_fail(err, SL_INVALID, "rank record: leaving: want true or false");
    record->size = (uint32_t)size;
    return sl_ok();
}

sl_status clu_rank_parse_json(const void *data, size_t size, clu_rank_record *out_record,
                              sl_err *err)
{
    static const sl_json_limits LIMITS = {CLU_RANK_JSON_MAX, 4};
    sl_json_doc *doc;
    if (size > CLU_RANK_JSON_MAX || !sl_is_ok(sl_json_parse(data, size, &LIMITS, &doc, err)))
        return sl_fail(err, SL_INVALID, "rank record: no JSON of at most %u bytes",
                       CLU_RANK_JSON_MAX);
    clu_rank_record record = {0};
    sl_status status = parse_root(sl_json_root(doc), &record, err);
    sl_json_doc_destroy(doc);
    if (sl_is_ok(status))
        *out_record = record;
    return status;
}

/* ---- looking ---- */

static void look(clu_ranks *ranks);

static void look_later(clu_ranks *ranks, uint64_t ns)
{
    sl_timer_set(ranks->timer, sl_now_ns() + ns);
}

static void fail(clu_ranks *ranks, const sl_err *err)
{
    sl_err copy = *err;
    ranks->failed = true;
    sl_timer_set(ranks->timer, SL_NEVER);
    ranks->events.on_failed(ranks->context, &copy);
}

static void send_request(clu_ranks *ranks, const rpc_method *method,
                         const ProtobufCMessage *request, rpc_done_fn fn)
{
    const clu_request_options options = {.idempotent = true, .timeout_ns = CLU_ETCD_ATTEMPT_NS};
    sl_assert(!ranks->request);
    if (!sl_is_ok(clu_etcd_request(ranks->etcd, method, request, &options, fn, ranks,
                                   &ranks->request, NULL)))
        look_later(ranks, LOOK_NS);
}

static void on_put(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    clu_ranks *ranks = context;
    ranks->request = NULL;
    ranks->written = err->code == SL_OK;
    look_later(ranks, LOOK_NS);
}

static void put(clu_ranks *ranks)
{
    char key[CLU_KEY_MAX + 16];
    sl_buf buf;
    snprintf(key, sizeof(key), "%s%u", ranks->prefix, ranks->rank);
    sl_buf_init(&buf, CLU_RANK_JSON_MAX);
    clu_rank_write_json(&buf, &ranks->own);
    Etcdserverpb__PutRequest request = ETCDSERVERPB__PUT_REQUEST__INIT;
    request.key = clu_bytes(key);
    request.value = (ProtobufCBinaryData){buf.size, (uint8_t *)buf.data};
    request.lease = clu_lease_id(ranks->lease);
    send_request(ranks, &rpc_method_etcd_kv_put, &request.base, on_put);
    sl_buf_fini(&buf);
}

static void take_records(clu_ranks *ranks, const Etcdserverpb__RangeResponse *reply)
{
    size_t prefix = strlen(ranks->prefix);
    memset(ranks->there, 0, sizeof(ranks->there));
    for (size_t i = 0; i < reply->n_kvs; i++) {
        const Etcdserverpb__KeyValue *kv = reply->kvs[i];
        char number[8] = "", *end;
        clu_rank_record record;
        if (kv->key.len <= prefix || kv->key.len - prefix >= sizeof(number))
            continue;
        memcpy(number, kv->key.data + prefix, kv->key.len - prefix);
        unsigned long rank = strtoul(number, &end, 10);
        if (*end != '\0' || rank >= ranks->own.size ||
            !sl_is_ok(clu_rank_parse_json(kv->value.data, kv->value.len, &record, NULL)))
            continue; /* not one of ours: it counts as missing */
        ranks->there[rank] = true;
        ranks->records[rank] = record;
    }
}

/* Another node has this rank: its process may have ended, then the record goes with its lease. */
static void meet_rival(clu_ranks *ranks, const clu_rank_record *record)
{
    sl_err err;
    sl_time_ns now = sl_now_ns();
    if (ranks->rival_until == 0)
        ranks->rival_until = now + ranks->lease_ns + RIVAL_GRACE_NS;
    if (now < ranks->rival_until) {
        look_later(ranks, LOOK_NS);
        return;
    }
    (void)sl_fail(&err, SL_EXISTS, "rank %u of the instance is taken by node %s", ranks->rank,
                  record->node);
    fail(ranks, &err);
}

static bool all_leave(const clu_ranks *ranks)
{
    for (uint32_t r = 0; r < ranks->own.size; r++)
        if (r != ranks->rank && ranks->there[r] && !ranks->records[r].leaving)
            return false;
    return true;
}

static void tell_complete(clu_ranks *ranks)
{
    const char *contacts[CLU_RANKS_MAX];
    sl_err err;
    for (uint32_t r = 0; r < ranks->own.size; r++) {
        contacts[r] = ranks->records[r].contact;
        if (ranks->there[r] && ranks->records[r].size != ranks->own.size) {
            (void)sl_fail(&err, SL_INVALID, "--ep-size: this rank says %u, rank %u (%s) says %u",
                          ranks->own.size, r, ranks->records[r].node, ranks->records[r].size);
            fail(ranks, &err);
            return;
        }
        if (!ranks->there[r] || ranks->records[r].leaving) {
            look_later(ranks, LOOK_NS);
            return;
        }
    }
    look_later(ranks, LOOK_NS);
    ranks->events.on_complete(ranks->context, contacts);
}

static void on_records(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    clu_ranks *ranks = context;
    ranks->request = NULL;
    if (err->code != SL_OK) {
        look_later(ranks, LOOK_NS);
        return;
    }
    take_records(ranks, (const void *)message);
    const clu_rank_record *mine = &ranks->records[ranks->rank];
    bool there = ranks->there[ranks->rank];
    if (there && strcmp(mine->node, ranks->own.node) != 0) {
        meet_rival(ranks, mine);
        return;
    }
    ranks->rival_until = 0;
    if (!there || !ranks->written || strcmp(mine->contact, ranks->own.contact) != 0) {
        if (clu_lease_id(ranks->lease) != 0)
            put(ranks);
        return; /* else when it is granted */
    }
    if (!ranks->on_left) {
        if (!ranks->met)
            tell_complete(ranks);
        return;
    }
    if (!all_leave(ranks)) {
        look_later(ranks, LOOK_NS);
        return;
    }
    void (*on_left)(void *context) = ranks->on_left;
    ranks->failed = true; /* nothing is left to do */
    on_left(ranks->left_context);
}

static void look(clu_ranks *ranks)
{
    char end[CLU_KEY_MAX];
    if (ranks->request || ranks->failed)
        return;
    Etcdserverpb__RangeRequest request = ETCDSERVERPB__RANGE_REQUEST__INIT;
    request.key = clu_bytes(ranks->prefix);
    request.range_end = clu_prefix_end(ranks->prefix, end, sizeof(end));
    send_request(ranks, &rpc_method_etcd_kv_range, &request.base, on_records);
}

static void on_timer(void *context, sl_time_ns now)
{
    look(context);
}

static void on_granted(void *context, int64_t id)
{
    clu_ranks *ranks = context;
    ranks->written = false;
    look_later(ranks, 0);
}

static void on_lost(void *context)
{
    clu_ranks *ranks = context;
    ranks->written = false;
}

/* ---- the owner's calls ---- */

sl_status clu_ranks_create(clu_etcd *etcd, const clu_ranks_options *options,
                           const clu_ranks_events *events, void *context, clu_ranks **out_ranks,
                           sl_err *err)
{
    static const clu_lease_events LEASE = {.on_granted = on_granted, .on_lost = on_lost};
    char members[CLU_KEY_MAX];
    SL_TRY(clu_member_key(options->cluster, "", members, err));
    if (!clu_name_valid(options->instance))
        return sl_fail(err, SL_INVALID, "--instance \"%s\": want lower-case letters, digits, . _ -",
                       options->instance);
    sl_assert(options->size >= 1 && options->size <= CLU_RANKS_MAX &&
              options->rank < options->size);
    clu_ranks *ranks = sl_alloc(1, sizeof(*ranks), "ranks' records");
    ranks->etcd = etcd;
    ranks->events = *events;
    ranks->context = context;
    ranks->rank = options->rank;
    ranks->lease_ns = options->lease_ns ? options->lease_ns : LEASE_NS;
    ranks->own.size = options->size;
    snprintf(ranks->prefix, sizeof(ranks->prefix), "/sluice/v1/%.63s/instances/%.63s/",
             options->cluster, options->instance);
    sl_status status =
        clu_text_set(ranks->own.node, sizeof(ranks->own.node), options->node, "--name", err);
    if (sl_is_ok(status))
        status = clu_text_set(ranks->own.contact, sizeof(ranks->own.contact), options->contact,
                              "contact", err);
    ranks->timer = sl_timer_create(rpc_runtime_loop(clu_etcd_runtime(etcd)), on_timer, ranks);
    if (sl_is_ok(status))
        status = clu_lease_create(etcd, ranks->lease_ns, &LEASE, ranks, &ranks->lease, err);
    if (!sl_is_ok(status)) {
        clu_ranks_destroy(ranks);
        return status;
    }
    *out_ranks = ranks;
    return sl_ok();
}

void clu_ranks_met(clu_ranks *ranks)
{
    ranks->met = true;
    sl_timer_set(ranks->timer, SL_NEVER);
}

void clu_ranks_missing(const clu_ranks *ranks, char *out_text, size_t size)
{
    size_t at = 0;
    out_text[0] = '\0';
    for (uint32_t r = 0; r < ranks->own.size && at < size; r++)
        if (!ranks->there[r])
            at += (size_t)snprintf(out_text + at, size - at, "%s%u", at ? ", " : "", r);
}

void clu_ranks_leave(clu_ranks *ranks, void (*on_left)(void *context), void *context)
{
    if (ranks->on_left)
        return;
    ranks->on_left = on_left;
    ranks->left_context = context;
    ranks->own.leaving = true;
    ranks->written = false;
    look_later(ranks, 0);
}

void clu_ranks_stay(clu_ranks *ranks)
{
    if (!ranks->on_left)
        return;
    ranks->on_left = NULL;
    ranks->own.leaving = false;
    ranks->written = false;
    look_later(ranks, 0);
}

void clu_ranks_destroy(clu_ranks *ranks)
{
    if (!ranks)
        return;
    clu_request_drop(ranks->request);
    clu_lease_destroy(ranks->lease);
    sl_timer_destroy(ranks->timer);
    sl_free(ranks);
}
