/* See action.h. Owns one request at a time. */
#include "cluster/action.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/json.h"
#include "cluster/fields.h"
#include "cluster/internal.h"
#include "cluster/table.h"
#include "cluster/txn.h"
#include "rpc/methods.h"

#define ATTEMPTS_MAX 32u /* others act at the same time */

struct clu_action_run {
    clu_etcd *etcd;
    clu_audit_record record;
    char *keys[CLU_ACTION_CHANGES_MAX], *values[CLU_ACTION_CHANGES_MAX];
    clu_change changes[CLU_ACTION_CHANGES_MAX];
    size_t change_count;
    char counter_key[CLU_KEY_MAX], leader_key[CLU_KEY_MAX], audit_prefix[CLU_KEY_MAX];
    int64_t counter_revision;
    clu_request *request;
    sl_timer *timer; /* pause before the next attempt */
    clu_backoff backoff;
    uint32_t attempts;
    clu_action_fn fn;
    void *context;
};

static void attempt(clu_action_run *run);

void clu_action_drop(clu_action_run *run)
{
    if (!run)
        return;
    clu_request_drop(run->request);
    sl_timer_destroy(run->timer);
    for (size_t i = 0; i < run->change_count; i++) {
        sl_free(run->keys[i]);
        sl_free(run->values[i]);
    }
    sl_free(run);
}

static void end(clu_action_run *run, int64_t revision, const sl_err *err)
{
    clu_action_fn fn = run->fn;
    void *context = run->context;
    sl_err copy = *err;
    clu_action_drop(run);
    if (fn)
        fn(context, revision, &copy);
}

static void fail(clu_action_run *run, sl_code code, const char *what, const char *name)
{
    sl_err err;
    (void)sl_fail(&err, code, "%s%s", name, what);
    end(run, 0, &err);
}

static void take_counter(clu_action_run *run, const Etcdserverpb__KeyValue *kv)
{
    char text[24] = "";
    if (kv && kv->value.len < sizeof(text))
        memcpy(text, kv->value.data, kv->value.len);
    run->record.sequence = strtoull(text, NULL, 10);
    run->counter_revision = kv ? kv->mod_revision : 0;
}

/* Compares stand in this order: the counter, the leader, what the changes expect. */
static void on_refused(clu_action_run *run, const Etcdserverpb__TxnResponse *reply)
{
    size_t index = 1;
    if (run->record.fence) {
        const Etcdserverpb__KeyValue *kv = clu_txn_found(reply, index++);
        if ((kv ? kv->create_revision : 0) != run->record.fence) {
            fail(run, SL_CONFLICT, "no longer the leader: nothing was done", "");
            return;
        }
    }
    for (size_t i = 0; i < run->change_count; i++) {
        if (!run->changes[i].expects)
            continue;
        const Etcdserverpb__KeyValue *kv = clu_txn_found(reply, index++);
        if ((kv ? kv->mod_revision : 0) != run->changes[i].revision) {
            fail(run, SL_CONFLICT, " was changed by someone else meanwhile: nothing was done",
                 run->keys[i]);
            return;
        }
    }
    take_counter(run, clu_txn_found(reply, 0));
    if (++run->attempts == ATTEMPTS_MAX)
        fail(run, SL_CONFLICT, "too many act at the same time: nothing was done", "");
    else
        sl_timer_set(run->timer, sl_now_ns() + clu_jitter(clu_backoff_next(&run->backoff)));
}

static void on_txn(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    clu_action_run *run = context;
    const Etcdserverpb__TxnResponse *reply = (const void *)message;
    run->request = NULL;
    if (err->code != SL_OK)
        end(run, 0, err);
    else if (!reply->succeeded)
        on_refused(run, reply);
    else
        end(run, reply->header ? reply->header->revision : 0, err);
}

static void attempt(clu_action_run *run)
{
    char entry_key[CLU_KEY_MAX + 8], next[24];
    clu_txn txn;
    sl_buf record;
    sl_err err;
    snprintf(entry_key, sizeof(entry_key), "%s%03u", run->audit_prefix,
             (unsigned)(run->record.sequence % CLU_AUDIT_MAX));
    snprintf(next, sizeof(next), "%llu", (unsigned long long)run->record.sequence + 1);
    sl_buf_init(&record, CLU_AUDIT_JSON_MAX);
    clu_audit_write_json(&record, &run->record);
    sl_buf_putc(&record, '\0');
    sl_assert(!record.overflow);
    clu_txn_init(&txn);
    clu_txn_compare_mod(&txn, run->counter_key, run->counter_revision);
    if (run->record.fence)
        clu_txn_compare_create(&txn, run->leader_key, run->record.fence);
    for (size_t i = 0; i < run->change_count; i++)
        if (run->changes[i].expects)
            clu_txn_compare_mod(&txn, run->keys[i], run->changes[i].revision);
    clu_txn_put(&txn, run->counter_key, next, 0);
    clu_txn_put(&txn, entry_key, record.data, 0);
    for (size_t i = 0; i < run->change_count; i++) {
        if (run->values[i])
            clu_txn_put(&txn, run->keys[i], run->values[i], 0);
        else
            clu_txn_delete(&txn, run->keys[i]);
    }
    sl_status status = clu_txn_send(run->etcd, &txn, NULL, on_txn, run, &run->request, &err);
    sl_buf_fini(&record);
    if (!sl_is_ok(status)) /* too many calls: until etcd's own bound */
        sl_timer_set(run->timer, sl_now_ns() + clu_backoff_next(&run->backoff));
}

static void on_timer(void *context, sl_time_ns now)
{
    attempt(context);
}

static void set_text(char *field, size_t size, const char *text)
{
    size_t length = text ? strlen(text) : 0;
    if (length >= size)
        for (length = size - 1; length > 0 && ((unsigned char)text[length] & 0xc0) == 0x80;)
            length--; /* not within a character */
    memcpy(field, text ? text : "", length);
    field[length] = 0;
}

static void take_action(clu_action_run *run, const clu_action *action)
{
    set_text(run->record.actor, sizeof(run->record.actor), action->actor);
    set_text(run->record.verb, sizeof(run->record.verb), action->verb);
    set_text(run->record.target, sizeof(run->record.target), action->target);
    set_text(run->record.detail, sizeof(run->record.detail), action->detail);
    run->record.fence = action->fence;
    run->record.time_us = sl_wall_ns() / 1000;
    run->change_count = action->change_count;
    for (size_t i = 0; i < action->change_count; i++) {
        const clu_change *change = &action->changes[i];
        run->changes[i] = *change;
        run->keys[i] = sl_strdup(change->key, "action key");
        run->values[i] = change->value ? sl_strdup(change->value, "action value") : NULL;
    }
}

sl_status clu_action_start(clu_etcd *etcd, const char *cluster, const clu_action *action,
                           clu_action_fn fn, void *context, clu_action_run **out_run, sl_err *err)
{
    sl_assert(action->change_count <= CLU_ACTION_CHANGES_MAX);
    clu_action_run *run = sl_alloc(1, sizeof(*run), "action");
    sl_status status = clu_key(cluster, "audit/", run->audit_prefix, err);
    if (sl_is_ok(status))
        status = clu_key(cluster, "audit/next", run->counter_key, err);
    if (sl_is_ok(status))
        status = clu_key(cluster, "leader", run->leader_key, err);
    if (!sl_is_ok(status)) {
        sl_free(run);
        return status;
    }
    run->etcd = etcd;
    run->fn = fn;
    run->context = context;
    run->timer = sl_timer_create(rpc_runtime_loop(clu_etcd_runtime(etcd)), on_timer, run);
    take_action(run, action);
    /* The first attempt compares with an absent counter: what is there comes back with its refusal.
     */
    attempt(run);
    if (out_run)
        *out_run = run;
    return sl_ok();
}

/* ---- records ---- */

void clu_audit_write_json(sl_buf *buf, const clu_audit_record *record)
{
    static const char *const NAMES[] = {"actor", "action", "target", "detail"};
    const char *texts[] = {record->actor, record->verb, record->target, record->detail};
    sl_buf_printf(buf, "{\"sequence\":%llu,\"time_us\":%llu", (unsigned long long)record->sequence,
                  (unsigned long long)record->time_us);
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        sl_buf_printf(buf, ",\"%s\":", NAMES[i]);
        sl_json_write_string(buf, texts[i], strlen(texts[i]));
    }
    if (record->fence)
        sl_buf_printf(buf, ",\"fence\":%lld", (long long)record->fence);
    sl_buf_putc(buf, '}');
}

static sl_status parse_root(const sl_json *root, clu_audit_record *record, sl_err *err)
{
    int64_t sequence = 0, time_us = 0;
    SL_TRY(clu_field_number(root, "sequence", true, 0, INT64_MAX, &sequence, err));
    SL_TRY(clu_field_number(root, "time_us", true, 0, INT64_MAX, &time_us, err));
    SL_TRY(clu_field_number(root, "fence", false, 0, INT64_MAX, &record->fence, err));
    SL_TRY(clu_field_text(root, "actor", true, record->actor, sizeof(record->actor), err));
    SL_TRY(clu_field_text(root, "action", true, record->verb, sizeof(record->verb), err));
    SL_TRY(clu_field_text(root, "target", true, record->target, sizeof(record->target), err));
    SL_TRY(clu_field_text(root, "detail", true, record->detail, sizeof(record->detail), err));
    record->sequence = (uint64_t)sequence;
    record->time_us = (uint64_t)time_us;
    return sl_ok();
}

sl_status clu_audit_parse_json(const void *data, size_t size, clu_audit_record *out_record,
                               sl_err *err)
{
    sl_json_doc *doc;
    clu_audit_record record;
    memset(&record, 0, sizeof(record));
    sl_status status = clu_fields_open(data, size, CLU_AUDIT_JSON_MAX, &doc, err);
    if (sl_is_ok(status)) {
        status = parse_root(sl_json_root(doc), &record, err);
        sl_json_doc_destroy(doc);
    }
    if (!sl_is_ok(status))
        return sl_wrap(err, status, "audit record");
    *out_record = record;
    return status;
}
