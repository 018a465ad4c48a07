/* A rank's record in etcd, and a look at everything of its instance: see ranks.h.
 *
 * Owns a lease, two watches, one request at a time and a timer. Watches only say that something
 * has changed; a look then reads all of it at one revision, and does the one next thing: writes
 * this rank's record, proposes, or tells the owner. Thread: the runtime's loop. */
#include "cluster/ranks.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"
#include "cluster/txn.h"
#include "rpc/methods.h"

#define LOOK_NS        (200 * SL_MS_NS) /* after a request that failed */
#define LOOK_SLOW_NS   (5 * SL_S_NS)    /* whatever the watches say */
#define LEASE_NS       (10 * SL_S_NS)
#define RIVAL_GRACE_NS (3 * SL_S_NS) /* etcd deletes expired leases in batches */
#define TABLES_KEPT    4u            /* a formation may name one that is not the newest any more */

struct clu_ranks {
    clu_etcd *etcd;
    clu_ranks_events events;
    void *context;
    char prefix[CLU_KEY_MAX], formation_key[CLU_KEY_MAX + 16], table_key[CLU_KEY_MAX];
    clu_place_shape shape;
    uint64_t lease_ns;
    clu_form form;
    clu_lease *lease;
    clu_request *request;
    clu_watch *records_watch, *table_watch;
    sl_timer *timer;
    bool entered, failed;
    bool again;             /* something changed while a request was under way */
    bool written;           /* the record of this lease says what form.own says */
    sl_time_ns rival_until; /* 0: no other node has this rank */
    bool there[CLU_RANKS_MAX];
    clu_rank_record records[CLU_RANKS_MAX]; /* of the last look */
    clu_formation newest;
    int64_t formation_revision, table_revision, revision;
    clu_placement *tables[TABLES_KEPT]; /* newest first */
    void (*on_left)(void *context);
    void *left_context;
};

static void look(clu_ranks *ranks);

static void look_at(clu_ranks *ranks, sl_time_ns at)
{
    sl_timer_set(ranks->timer, at);
}

static void look_later(clu_ranks *ranks, uint64_t ns)
{
    look_at(ranks, sl_now_ns() + ns);
}

static void fail(clu_ranks *ranks, const sl_err *err)
{
    sl_err copy = *err;
    ranks->failed = true;
    sl_timer_set(ranks->timer, SL_NEVER);
    ranks->events.on_failed(ranks->context, &copy);
}

/* ---- requests ---- */

static const clu_request_options REQUEST_OPTIONS = {.idempotent = true,
                                                    .timeout_ns = CLU_ETCD_ATTEMPT_NS};

static void send_request(clu_ranks *ranks, const rpc_method *method,
                         const ProtobufCMessage *request, rpc_done_fn fn)
{
    sl_assert(!ranks->request);
    if (!sl_is_ok(clu_etcd_request(ranks->etcd, method, request, &REQUEST_OPTIONS, fn, ranks,
                                   &ranks->request, NULL)))
        look_later(ranks, LOOK_NS);
}

static void on_put(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    clu_ranks *ranks = context;
    ranks->request = NULL;
    if (err->code != SL_OK)
        ranks->written = false;
    look_later(ranks, err->code == SL_OK ? 0 : LOOK_NS);
}

static void put(clu_ranks *ranks)
{
    char key[CLU_KEY_MAX + 16];
    sl_buf buf;
    snprintf(key, sizeof(key), "%s%u", ranks->prefix, ranks->form.rank);
    sl_buf_init(&buf, CLU_RANK_JSON_MAX);
    clu_rank_write_json(&buf, &ranks->form.own);
    Etcdserverpb__PutRequest request = ETCDSERVERPB__PUT_REQUEST__INIT;
    request.key = clu_bytes(key);
    request.value = (ProtobufCBinaryData){buf.size, (uint8_t *)buf.data};
    request.lease = clu_lease_id(ranks->lease);
    send_request(ranks, &rpc_method_etcd_kv_put, &request.base, on_put);
    ranks->written = ranks->request != NULL;
    sl_buf_fini(&buf);
}

static void on_changed(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    clu_ranks *ranks = context;
    ranks->request = NULL;
    look_later(ranks, err->code == SL_OK ? 0 : LOOK_NS); /* done, or another one was first */
}

/* If nobody has changed the key since the last look. */
static void change(clu_ranks *ranks, const char *key, int64_t revision, const sl_buf *value)
{
    clu_txn txn;
    clu_txn_init(&txn);
    clu_txn_compare_mod(&txn, key, revision);
    clu_txn_put(&txn, key, value->data, 0);
    sl_assert(!ranks->request);
    if (!sl_is_ok(clu_txn_send(ranks->etcd, &txn, &REQUEST_OPTIONS, on_changed, ranks,
                               &ranks->request, NULL)))
        look_later(ranks, LOOK_NS);
}

static void propose(clu_ranks *ranks, const clu_form_action *action)
{
    static clu_formation next; /* large */
    sl_buf buf;
    memset(&next, 0, sizeof(next));
    next.number = ranks->newest.number + 1;
    next.ranks = action->ranks;
    next.placement = action->placement;
    for (uint32_t r = 0; r < ranks->form.size; r++)
        if (action->ranks >> r & 1)
            memcpy(next.contacts[r], ranks->records[r].contact, sizeof(next.contacts[r]));
    sl_debug("proposing formation %" PRIu64, next.number);
    sl_buf_init(&buf, CLU_FORMATION_JSON_MAX);
    clu_formation_write_json(&buf, &next);
    change(ranks, ranks->formation_key, ranks->formation_revision, &buf);
    sl_buf_fini(&buf);
}

static void write_table(clu_ranks *ranks, uint64_t version)
{
    clu_placement *table;
    sl_buf buf;
    sl_err err;
    if (!sl_is_ok(clu_placement_create(&ranks->shape, version, &table, &err))) {
        fail(ranks, &err);
        return;
    }
    sl_buf_init(&buf, CLU_PLACEMENT_JSON_MAX);
    clu_placement_write_json(&buf, table);
    clu_placement_destroy(table);
    change(ranks, ranks->table_key, ranks->table_revision, &buf);
    sl_buf_fini(&buf);
}

/* ---- what a look brings ---- */

static void take_record(clu_ranks *ranks, const char *suffix, const Etcdserverpb__KeyValue *kv)
{
    char *end;
    clu_rank_record record;
    unsigned long rank = strtoul(suffix, &end, 10);
    if (*suffix == '\0' || *end != '\0' || rank >= ranks->form.size ||
        !sl_is_ok(clu_rank_parse_json(kv->value.data, kv->value.len, &record, NULL)))
        return; /* not one of ours: it counts as missing */
    ranks->there[rank] = true;
    ranks->records[rank] = record;
}

static void take_records(clu_ranks *ranks, const Etcdserverpb__RangeResponse *reply)
{
    size_t prefix = strlen(ranks->prefix);
    memset(ranks->there, 0, sizeof(ranks->there));
    ranks->formation_revision = 0;
    for (size_t i = 0; i < reply->n_kvs; i++) {
        const Etcdserverpb__KeyValue *kv = reply->kvs[i];
        char suffix[16] = "";
        sl_err err;
        if (kv->key.len <= prefix || kv->key.len - prefix >= sizeof(suffix))
            continue;
        memcpy(suffix, kv->key.data + prefix, kv->key.len - prefix);
        if (strcmp(suffix, "formation") != 0) {
            take_record(ranks, suffix, kv);
            continue;
        }
        ranks->formation_revision = kv->mod_revision;
        if (!sl_is_ok(
                clu_formation_parse_json(kv->value.data, kv->value.len, &ranks->newest, &err)))
            sl_debug("%s: %s", ranks->formation_key, err.text);
    }
}

/* Another form than this instance's is of a former life of it; then rank 0 writes a new one. */
static sl_status table_check(const clu_ranks *ranks, const clu_placement *table, sl_err *err)
{
    const clu_place_shape *is = &table->shape, *want = &ranks->shape;
    uint64_t known = ranks->tables[0] ? ranks->tables[0]->version : 0;
    if (!clu_placement_fits(table, want))
        return sl_fail(err, SL_INVALID,
                       "placement %" PRIu64 " is for %u layers of %u experts on %u ranks of %u "
                       "slots, not %u, %u, %u, %u",
                       table->version, is->layers, is->experts, is->ranks, is->slots, want->layers,
                       want->experts, want->ranks, want->slots);
    if (table->version <= known)
        return sl_fail(err, SL_INVALID, "placement %" PRIu64 " is not newer than %" PRIu64,
                       table->version, known);
    return sl_ok();
}

static void take_table(clu_ranks *ranks, const Etcdserverpb__RangeResponse *reply)
{
    clu_placement *table;
    sl_err err;
    ranks->table_revision = reply->n_kvs ? reply->kvs[0]->mod_revision : 0;
    if (reply->n_kvs == 0)
        return;
    const ProtobufCBinaryData *value = &reply->kvs[0]->value;
    sl_status status = clu_placement_parse_json(value->data, value->len, &table, &err);
    if (sl_is_ok(status)) {
        status = table_check(ranks, table, &err);
        if (!sl_is_ok(status))
            clu_placement_destroy(table);
    }
    if (!sl_is_ok(status)) {
        ranks->events.on_refused(ranks->context, &err);
        return;
    }
    clu_placement_destroy(ranks->tables[TABLES_KEPT - 1]);
    memmove(ranks->tables + 1, ranks->tables, (TABLES_KEPT - 1) * sizeof(ranks->tables[0]));
    ranks->tables[0] = table;
}

static const clu_placement *find_table(const clu_ranks *ranks, uint64_t version)
{
    for (uint32_t i = 0; i < TABLES_KEPT; i++)
        if (ranks->tables[i] && ranks->tables[i]->version == version)
            return ranks->tables[i];
    return NULL;
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
    (void)sl_fail(&err, SL_EXISTS, "rank %u of the instance is taken by node %s", ranks->form.rank,
                  record->node);
    fail(ranks, &err);
}

static bool all_leave(const clu_ranks *ranks)
{
    for (uint32_t r = 0; r < ranks->form.size; r++)
        if (r != ranks->form.rank && ranks->there[r] && !ranks->records[r].leaving)
            return false;
    return true;
}

static bool counted_alike(clu_ranks *ranks)
{
    sl_err err;
    for (uint32_t r = 0; r < ranks->form.size; r++) {
        if (!ranks->there[r] || ranks->records[r].size == ranks->form.size)
            continue;
        (void)sl_fail(&err, SL_INVALID, "--ep-size: this rank says %u, rank %u (%s) says %u",
                      ranks->form.size, r, ranks->records[r].node, ranks->records[r].size);
        fail(ranks, &err);
        return false;
    }
    return true;
}

/* ---- what to do ---- */

static void try_newest(clu_ranks *ranks)
{
    const clu_placement *table = find_table(ranks, ranks->newest.placement);
    ranks->form.forming = ranks->newest.number;
    look_later(ranks, LOOK_SLOW_NS);
    if (table)
        ranks->events.on_join(ranks->context, &ranks->newest, table);
    else /* older than all that this rank has seen */
        clu_ranks_tried(ranks, ranks->newest.number, false, ranks->form.own.contact);
}

static void decide(clu_ranks *ranks)
{
    const clu_form_seen seen = {
        .newest = &ranks->newest,
        .there = ranks->there,
        .records = ranks->records,
        .placement = ranks->tables[0] ? ranks->tables[0]->version : 0,
    };
    sl_err err;
    sl_time_ns now = sl_now_ns(), slow = now + LOOK_SLOW_NS;
    clu_form_action action = clu_form_decide(&ranks->form, &seen, now);
    switch (action.what) {
    case CLU_FORM_WAIT:
        look_at(ranks, action.again_at < slow ? action.again_at : slow);
        break;
    case CLU_FORM_JOIN:
        try_newest(ranks);
        break;
    case CLU_FORM_PROPOSE:
        propose(ranks, &action);
        break;
    case CLU_FORM_OUT:
        (void)sl_fail(&err, SL_CONFLICT, "the instance goes on without this rank");
        fail(ranks, &err);
        break;
    case CLU_FORM_DOOMED:
        (void)sl_fail(&err, SL_UNAVAILABLE, "no formation can follow the one that failed");
        fail(ranks, &err);
        break;
    }
}

static void leave_if_all_do(clu_ranks *ranks)
{
    if (!all_leave(ranks)) {
        look_later(ranks, LOOK_NS);
        return;
    }
    ranks->failed = true; /* nothing is left to do */
    ranks->on_left(ranks->left_context);
}

/* None is there that fits: rank 0 writes one, but not over that of ranks that run. */
static void need_table(clu_ranks *ranks)
{
    sl_err err;
    bool alive = false;
    for (uint32_t r = 0; r < ranks->form.size; r++)
        alive = alive || (ranks->there[r] && ranks->records[r].formation > 0);
    if (ranks->form.rank != 0) {
        look_later(ranks, LOOK_NS);
    } else if (alive && ranks->table_revision > 0) {
        (void)sl_fail(&err, SL_INVALID,
                      "ranks of the instance run with a placement of another form: --ep-slots and "
                      "--model must be theirs");
        fail(ranks, &err);
    } else {
        write_table(ranks, 1);
    }
}

static void react(clu_ranks *ranks)
{
    if (!ranks->tables[0]) {
        need_table(ranks);
        return;
    }
    if (!ranks->entered) {
        look_later(ranks, LOOK_SLOW_NS);
        return;
    }
    const clu_rank_record *mine = &ranks->records[ranks->form.rank];
    bool there = ranks->there[ranks->form.rank];
    if (there && strcmp(mine->node, ranks->form.own.node) != 0) {
        meet_rival(ranks, mine);
        return;
    }
    ranks->rival_until = 0;
    if (!there || !ranks->written) {
        if (clu_lease_id(ranks->lease) != 0)
            put(ranks);
        return; /* else when it is granted */
    }
    if (ranks->on_left)
        leave_if_all_do(ranks);
    else if (counted_alike(ranks))
        decide(ranks);
}

/* ---- looking ---- */

static void on_events(void *context, Etcdserverpb__Event *const *events, size_t count,
                      int64_t revision)
{
    look_later(context, 0);
}

static void on_compacted(void *context)
{
    clu_ranks *ranks = context;
    clu_watch_restart(ranks->records_watch, ranks->revision + 1);
    clu_watch_restart(ranks->table_watch, ranks->revision + 1);
    look_later(ranks, 0);
}

static void watch(clu_ranks *ranks)
{
    static const clu_watch_events EVENTS = {.on_events = on_events, .on_compacted = on_compacted};
    int64_t from = ranks->revision + 1;
    if (!ranks->records_watch &&
        !sl_is_ok(clu_watch_create(ranks->etcd, ranks->prefix, from, &EVENTS, ranks,
                                   &ranks->records_watch, NULL)))
        ranks->records_watch = NULL;
    if (!ranks->table_watch &&
        !sl_is_ok(clu_watch_create(ranks->etcd, ranks->table_key, from, &EVENTS, ranks,
                                   &ranks->table_watch, NULL)))
        ranks->table_watch = NULL;
}

static const Etcdserverpb__RangeResponse *range_of(const Etcdserverpb__TxnResponse *reply, size_t i)
{
    return reply->n_responses > i && reply->responses[i]->response_case ==
                                         ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_RANGE
               ? reply->responses[i]->response_range
               : NULL;
}

static void on_look(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    clu_ranks *ranks = context;
    const Etcdserverpb__TxnResponse *reply = (const void *)message;
    ranks->request = NULL;
    if (err->code != SL_OK || !range_of(reply, 0)) {
        look_later(ranks, LOOK_NS);
        return;
    }
    ranks->revision = reply->header ? reply->header->revision : ranks->revision;
    take_records(ranks, range_of(reply, 0));
    if (range_of(reply, 1))
        take_table(ranks, range_of(reply, 1));
    watch(ranks);
    react(ranks);
    if (ranks->again && !ranks->failed && !ranks->request)
        look_later(ranks, 0);
    ranks->again = false;
}

/* All at one revision; the table, which is large, only if it has changed. */
static void look(clu_ranks *ranks)
{
    char end[CLU_KEY_MAX];
    if (ranks->failed)
        return;
    ranks->again = ranks->request != NULL;
    if (ranks->request)
        return;
    Etcdserverpb__Compare compare = ETCDSERVERPB__COMPARE__INIT;
    compare.key = clu_bytes(ranks->table_key);
    compare.result = ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL;
    compare.target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD;
    compare.target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_MOD_REVISION;
    compare.mod_revision = ranks->table_revision; /* 0: the key is absent */
    Etcdserverpb__RangeRequest records = ETCDSERVERPB__RANGE_REQUEST__INIT;
    records.key = clu_bytes(ranks->prefix);
    records.range_end = clu_prefix_end(ranks->prefix, end, sizeof(end));
    Etcdserverpb__RangeRequest table = ETCDSERVERPB__RANGE_REQUEST__INIT;
    table.key = clu_bytes(ranks->table_key);
    Etcdserverpb__RequestOp ops[2] = {ETCDSERVERPB__REQUEST_OP__INIT,
                                      ETCDSERVERPB__REQUEST_OP__INIT};
    ops[0].request_case = ops[1].request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE;
    ops[0].request_range = &records;
    ops[1].request_range = &table;
    Etcdserverpb__TxnRequest txn = ETCDSERVERPB__TXN_REQUEST__INIT;
    txn.n_compare = txn.n_success = 1;
    txn.n_failure = 2;
    txn.compare = &(Etcdserverpb__Compare *){&compare};
    txn.success = txn.failure = (Etcdserverpb__RequestOp *[]){&ops[0], &ops[1]};
    send_request(ranks, &rpc_method_etcd_kv_txn, &txn.base, on_look);
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

static void on_lease_lost(void *context)
{
    clu_ranks *ranks = context;
    ranks->written = false;
}

/* ---- the owner's calls ---- */

sl_status clu_ranks_create(clu_etcd *etcd, const clu_ranks_options *options,
                           const clu_ranks_events *events, void *context, clu_ranks **out_ranks,
                           sl_err *err)
{
    char path[sizeof("instances//") + CLU_NAME_MAX], prefix[CLU_KEY_MAX];
    if (!clu_name_valid(options->instance))
        return sl_fail(err, SL_INVALID, "--instance \"%s\": want lower-case letters, digits, . _ -",
                       options->instance);
    snprintf(path, sizeof(path), "instances/%s/", options->instance);
    SL_TRY(clu_key(options->cluster, path, prefix, err));
    SL_TRY(clu_place_check_shape(&options->shape, err));
    sl_assert(options->size >= 1 && options->size <= CLU_RANKS_MAX &&
              options->rank < options->size && options->shape.ranks == options->size);
    clu_ranks *ranks = sl_alloc(1, sizeof(*ranks), "ranks' records");
    ranks->etcd = etcd;
    ranks->events = *events;
    ranks->context = context;
    ranks->shape = options->shape;
    ranks->lease_ns = options->lease_ns ? options->lease_ns : LEASE_NS;
    ranks->form = (clu_form){
        .rank = options->rank,
        .size = options->size,
        .ranks_needed = (options->shape.experts + options->shape.slots - 1) / options->shape.slots,
        .reform_ns = options->reform_ns,
        .own.size = options->size,
    };
    ranks->table_revision = -1; /* of no key: the first look brings it */
    memcpy(ranks->prefix, prefix, sizeof(prefix));
    snprintf(ranks->formation_key, sizeof(ranks->formation_key), "%sformation", ranks->prefix);
    sl_status status =
        clu_placement_key(options->cluster, options->instance, ranks->table_key, err);
    if (sl_is_ok(status))
        status = clu_text_set(ranks->form.own.node, sizeof(ranks->form.own.node), options->node,
                              "--name", err);
    ranks->timer = sl_timer_create(rpc_runtime_loop(clu_etcd_runtime(etcd)), on_timer, ranks);
    if (!sl_is_ok(status)) {
        clu_ranks_destroy(ranks);
        return status;
    }
    look_later(ranks, 0);
    *out_ranks = ranks;
    return sl_ok();
}

const clu_placement *clu_ranks_table(const clu_ranks *ranks)
{
    return ranks->tables[0];
}

static void tell(clu_ranks *ranks)
{
    ranks->written = false;
    look_later(ranks, 0);
}

void clu_ranks_enter(clu_ranks *ranks, const char *contact)
{
    static const clu_lease_events LEASE = {.on_granted = on_granted, .on_lost = on_lease_lost};
    sl_assert(!ranks->entered);
    snprintf(ranks->form.own.contact, sizeof(ranks->form.own.contact), "%s", contact);
    ranks->entered = true;
    sl_status status =
        clu_lease_create(ranks->etcd, ranks->lease_ns, &LEASE, ranks, &ranks->lease, NULL);
    sl_assert(sl_is_ok(status)); /* fails for times out of range, which options refuse */
    tell(ranks);
}

void clu_ranks_tried(clu_ranks *ranks, uint64_t number, bool ready, const char *contact)
{
    clu_rank_record *own = &ranks->form.own;
    if (ranks->form.forming == number)
        ranks->form.forming = 0;
    own->tried = number > own->tried ? number : own->tried;
    own->ready = ready ? number : own->ready;
    if (!ready)
        ranks->form.retry_at = sl_now_ns() + CLU_FORM_RETRY_NS;
    snprintf(own->contact, sizeof(own->contact), "%s", contact);
    tell(ranks);
}

void clu_ranks_used(clu_ranks *ranks, uint64_t number, uint64_t mask, uint64_t placement)
{
    ranks->form.own.formation = number;
    ranks->form.own.failed = false;
    ranks->form.own.lost = 0;
    ranks->form.used_ranks = mask;
    ranks->form.used_placement = placement;
    tell(ranks);
}

void clu_ranks_lost(clu_ranks *ranks, uint64_t lost)
{
    ranks->form.own.failed = true;
    ranks->form.own.lost = lost;
    ranks->form.failed_at = sl_now_ns();
    tell(ranks);
}

void clu_ranks_missing(const clu_ranks *ranks, char *out_text, size_t size)
{
    size_t at = 0;
    out_text[0] = '\0';
    for (uint32_t r = 0; r < ranks->form.size && at < size; r++)
        if (!ranks->there[r])
            at += (size_t)snprintf(out_text + at, size - at, "%s%u", at ? ", " : "", r);
}

void clu_ranks_leave(clu_ranks *ranks, void (*on_left)(void *context), void *context)
{
    if (ranks->on_left)
        return;
    ranks->on_left = on_left;
    ranks->left_context = context;
    ranks->form.own.leaving = true;
    tell(ranks);
}

void clu_ranks_stay(clu_ranks *ranks)
{
    if (!ranks->on_left)
        return;
    ranks->on_left = NULL;
    ranks->form.own.leaving = false;
    tell(ranks);
}

void clu_ranks_destroy(clu_ranks *ranks)
{
    if (!ranks)
        return;
    clu_watch_destroy(ranks->records_watch);
    clu_watch_destroy(ranks->table_watch);
    clu_request_drop(ranks->request);
    clu_lease_destroy(ranks->lease);
    sl_timer_destroy(ranks->timer);
    for (uint32_t i = 0; i < TABLES_KEPT; i++)
        clu_placement_destroy(ranks->tables[i]);
    sl_free(ranks);
}
