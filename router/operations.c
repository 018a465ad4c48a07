/* See operations.h. Owns two tables of etcd, the ring of events, and the calls that wait. */
#include "router/operations_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"
#include "proto/sluice/v1/cluster.pb-c.h"
#include "router/settings.h"
#include "rpc/methods.h"

#define EVENTS_REPLY_MAX (RTR_EVENTS_MAX + CLU_AUDIT_MAX)

rtr_events_ring *rtr_operations_events(rtr_operations *operations)
{
    return &operations->events;
}

/* ---- calls that wait for etcd ---- */

static void deed_end(rtr_deed *deed)
{
    rtr_operations *operations = deed->operations;
    clu_action_drop(deed->run);
    clu_request_drop(deed->request);
    rpc_message_free(deed->reply);
    if (deed->prev)
        deed->prev->next = deed->next;
    else
        operations->deeds = deed->next;
    if (deed->next)
        deed->next->prev = deed->prev;
    operations->deed_count--;
    sl_free(deed);
}

static void on_deed_closed(void *context, rpc_server_call *call, bool cancelled)
{
    rtr_deed *deed = context;
    deed->call = NULL;
}

/* NULL: too many at once; the call has its answer. */
static rtr_deed *deed_begin(rtr_operations *operations, rpc_server_call *call)
{
    static const rpc_server_call_events EVENTS = {.on_closed = on_deed_closed};
    if (operations->deed_count == RTR_DEEDS_MAX) {
        rpc_server_call_finish(call, SL_FULL, "too many operators ask at once; try again");
        return NULL;
    }
    rtr_deed *deed = sl_alloc(1, sizeof *deed, "router deed");
    deed->operations = operations;
    deed->call = call;
    deed->next = operations->deeds;
    if (deed->next)
        deed->next->prev = deed;
    operations->deeds = deed;
    operations->deed_count++;
    rpc_server_call_set(call, &EVENTS, deed);
    return deed;
}

static void deed_fail(rtr_deed *deed, sl_code code, const char *text)
{
    if (deed->call) {
        rpc_server_call_set(deed->call, &(rpc_server_call_events){0}, NULL);
        rpc_server_call_finish(deed->call, code, text);
    }
    deed_end(deed);
}

/* Answers if it took place and is known here. */
static void deed_settle(rtr_deed *deed)
{
    if (deed->revision == 0 || (deed->shows && clu_table_seen(deed->shows) < deed->revision))
        return;
    if (deed->call) {
        rpc_server_call_set(deed->call, &(rpc_server_call_events){0}, NULL);
        rpc_server_call_reply(deed->call, deed->reply);
    }
    deed_end(deed);
}

static void on_acted(void *context, int64_t revision, const sl_err *err)
{
    rtr_deed *deed = context;
    deed->run = NULL;
    if (err->code != SL_OK) {
        deed_fail(deed, err->code, err->text);
        return;
    }
    deed->revision = revision;
    deed_settle(deed);
}

static void on_table_seen(void *context)
{
    rtr_operations *operations = context;
    for (rtr_deed *deed = operations->deeds, *next; deed; deed = next) {
        next = deed->next;
        deed_settle(deed);
    }
}

/* Keeps the reply for when it took place. */
static sl_status keep_reply(rtr_deed *deed, const ProtobufCMessage *reply, sl_err *err)
{
    size_t size = protobuf_c_message_get_packed_size(reply);
    uint8_t *bytes = sl_alloc(1, size + 1, "router deed");
    protobuf_c_message_pack(reply, bytes);
    sl_status status = rpc_message_unpack(reply->descriptor, bytes, size, &deed->reply, err);
    sl_free(bytes);
    return status;
}

/* What an operator writes into a key of etcd, over what this router last saw there. */
typedef struct wish {
    const char *path;                   /* of the key */
    const char *verb, *target, *detail; /* for the audit */
    const sl_buf *value;                /* JSON; NULL: the key goes */
    int64_t revision;                   /* the key's; 0: it is absent */
    const clu_table *shows;             /* answered once this shows it */
} wish;

static void write_wish(rtr_operations *operations, rpc_server_call *call, const wish *w,
                       const ProtobufCMessage *reply)
{
    const rtr_operations_options *options = &operations->options;
    char key[CLU_KEY_MAX], actor[RPC_ACTOR_MAX];
    sl_err err;
    rtr_deed *deed = deed_begin(operations, call);
    if (!deed)
        return;
    deed->shows = w->shows;
    rpc_server_call_actor(call, actor, sizeof actor);
    clu_action action = {
        .actor = actor,
        .verb = w->verb,
        .target = w->target,
        .detail = w->detail,
        .changes = {{.key = key,
                     .value = w->value ? w->value->data : NULL,
                     .expects = true,
                     .revision = w->revision}},
        .change_count = 1,
    };
    sl_status status = clu_key(options->cluster, w->path, key, &err);
    if (sl_is_ok(status))
        status = keep_reply(deed, reply, &err);
    if (sl_is_ok(status))
        status = clu_action_start(options->etcd, options->cluster, &action, on_acted, deed,
                                  &deed->run, &err);
    if (!sl_is_ok(status))
        deed_fail(deed, status.code, err.text);
}

/* ---- desired state of nodes ---- */

static rtr_desired *desired_find(const rtr_operations *operations, const char *node)
{
    for (uint32_t i = 0; i < operations->desired_count; i++)
        if (strcmp(operations->desired[i].node, node) == 0)
            return &operations->desired[i];
    return NULL;
}

bool rtr_operations_cordoned(const rtr_operations *operations, const char *node)
{
    const rtr_desired *desired = desired_find(operations, node);
    return desired && desired->record.cordoned;
}

static void tell_cordon(rtr_operations *operations, const char *node, const clu_desired *record)
{
    sl_info("node %s is %s%s%s", node, record->cordoned ? "cordoned" : "uncordoned",
            record->reason[0] ? ": " : "", record->reason);
    rtr_events_add(&operations->events, "member", node, "%s%s%.120s",
                   record->cordoned ? "cordoned" : "uncordoned", record->reason[0] ? ": " : "",
                   record->reason);
    operations->options.on_cordon(operations->options.context, node);
}

static void desired_set(rtr_operations *operations, const char *node, const clu_desired *record,
                        int64_t revision)
{
    rtr_desired *at = desired_find(operations, node);
    if (!at) {
        if (operations->desired_count == RTR_DESIRED_MAX) {
            sl_warn("desired record of %s is ignored: more than %u", node, RTR_DESIRED_MAX);
            return;
        }
        at = &operations->desired[operations->desired_count++];
        *at = (rtr_desired){0};
        snprintf(at->node, sizeof at->node, "%s", node);
    }
    bool news = at->record.cordoned != record->cordoned ||
                (record->cordoned && strcmp(at->record.reason, record->reason) != 0);
    at->record = *record;
    at->revision = revision;
    at->listed = true;
    if (news)
        tell_cordon(operations, node, record);
}

static void desired_remove(rtr_operations *operations, rtr_desired *at)
{
    static const clu_desired NOTHING;
    char node[CLU_NAME_MAX];
    bool cordoned = at->record.cordoned;
    memcpy(node, at->node, sizeof node);
    *at = operations->desired[--operations->desired_count];
    if (cordoned)
        tell_cordon(operations, node, &NOTHING);
}

static void on_desired_list(void *context)
{
    rtr_operations *operations = context;
    for (uint32_t i = 0; i < operations->desired_count; i++)
        operations->desired[i].listed = false;
}

static void on_desired_put(void *context, const char *name, const char *value,
                           const Etcdserverpb__KeyValue *kv)
{
    rtr_operations *operations = context;
    clu_desired record;
    sl_err err;
    if (!clu_name_valid(name) ||
        !sl_is_ok(clu_desired_parse_json(value, strlen(value), &record, &err))) {
        sl_warn("desired record of %.80s is ignored: it cannot be read", name);
        return;
    }
    desired_set(operations, name, &record, kv->mod_revision);
}

static void on_desired_delete(void *context, const char *name)
{
    rtr_desired *at = desired_find(context, name);
    if (at)
        desired_remove(context, at);
}

static void on_desired_listed(void *context)
{
    rtr_operations *operations = context;
    for (uint32_t i = 0; i < operations->desired_count;) {
        if (operations->desired[i].listed)
            i++;
        else
            desired_remove(operations, &operations->desired[i]);
    }
}

/* ---- cordon ---- */

/* What it has, and who is left to do its work. */
typedef struct impact {
    const char *node, *role;
    uint32_t running, left;
} impact;

static void count_node(void *context, const rtr_node_status *status)
{
    impact *i = context;
    bool alike =
        strcmp(status->info->role, i->role) == 0 || strcmp(status->info->role, "hybrid") == 0;
    if (strcmp(status->info->name, i->node) == 0)
        i->running = status->load->running + status->load->waiting;
    else
        i->left += status->usable && alike;
}

static void write_cordon(rtr_operations *operations, rpc_server_call *call, const char *node,
                         const clu_desired *record, const Sluice__V1__CordonReply *reply)
{
    char path[CLU_NAME_MAX + 16];
    const rtr_desired *known = desired_find(operations, node);
    sl_buf value;
    snprintf(path, sizeof path, "desired/%s", node);
    sl_buf_init(&value, CLU_DESIRED_JSON_MAX);
    clu_desired_write_json(&value, record);
    const wish w = {.path = path,
                    .verb = record->cordoned ? "cordon" : "uncordon",
                    .target = node,
                    .detail = record->reason,
                    .value = record->cordoned ? &value : NULL,
                    .revision = known ? known->revision : 0,
                    .shows = operations->desired_table};
    write_wish(operations, call, &w, &reply->base);
    sl_buf_fini(&value);
}

/* Terminals show it. */
static bool is_plain_text(const char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < ' ' || *text == 0x7f)
            return false;
    return true;
}

static void on_cordon(rtr_operations *operations, rpc_server_call *call,
                      const ProtobufCMessage *base)
{
    const Sluice__V1__CordonRequest *request = (const void *)base;
    const clu_view_member *member = clu_view_find(operations->options.view, request->node);
    const rtr_desired *known = desired_find(operations, request->node);
    char text[200];
    if (!member && !known) {
        snprintf(text, sizeof text, "no node %.80s in this cluster", request->node);
        rpc_server_call_finish(call, SL_NOT_FOUND, text);
        return;
    }
    if (member && strcmp(member->info.role, "router") == 0) {
        rpc_server_call_finish(call, SL_UNSUPPORTED,
                               "it is a router: routers are chosen by whatever stands before them");
        return;
    }
    if (strlen(request->reason) >= CLU_REASON_MAX) {
        rpc_server_call_finish(call, SL_TOO_LARGE, "reason: at most 255 bytes");
        return;
    }
    if (!is_plain_text(request->reason)) {
        rpc_server_call_finish(call, SL_INVALID, "reason: one line without control characters");
        return;
    }
    clu_desired record = known ? known->record : (clu_desired){0};
    Sluice__V1__CordonReply reply = SLUICE__V1__CORDON_REPLY__INIT;
    const bool reason = request->cordoned && *request->reason;
    reply.changed = record.cordoned != request->cordoned ||
                    (reason && strcmp(record.reason, request->reason) != 0);
    record.cordoned = request->cordoned;
    if (reason)
        snprintf(record.reason, sizeof record.reason, "%s", request->reason);
    reply.reason = record.reason;
    impact found = {.node = request->node, .role = member ? member->info.role : ""};
    rtr_nodes_visit(rtr_front_nodes(operations->options.loops[0].front), count_node, &found);
    reply.running = found.running;
    reply.left = found.left;
    if (request->dry_run || !reply.changed)
        rpc_server_call_reply(call, &reply.base);
    else
        write_cordon(operations, call, request->node, &record, &reply);
}

/* ---- settings ---- */

typedef struct tune_note {
    rtr_front *front;
    rtr_tuning tuning;
} tune_note;

static void tune_posted(void *context)
{
    tune_note *note = context;
    rtr_front_tune(note->front, &note->tuning);
    sl_free(note);
}

static void tune(rtr_operations *operations)
{
    rtr_tuning tuning;
    rtr_live_settings_apply(&operations->settings, operations->options.own, &operations->tuned);
    rtr_tuning_fill(&operations->tuned, &tuning);
    sl_log_set_level((sl_log_level)operations->tuned.log_level);
    for (uint32_t i = 0; i < operations->options.loop_count; i++) {
        tune_note *note = sl_alloc(1, sizeof *note, "router note");
        note->front = operations->options.loops[i].front;
        note->tuning = tuning;
        bool posted = sl_loop_post(operations->options.loops[i].loop, tune_posted, note);
        sl_assert(posted);
    }
}

static void settings_take(rtr_operations *operations, const char *json, int64_t revision)
{
    sl_buf trouble;
    sl_buf_init(&trouble, 0);
    rtr_live_settings_parse(json, &operations->settings, &trouble);
    if (trouble.size > 0)
        sl_warn("%.*s", (int)trouble.size - 1, trouble.data);
    sl_buf_fini(&trouble);
    operations->settings_revision = revision;
    sl_info("cluster settings: %s", json);
    rtr_events_add(&operations->events, "settings", "", "%s", json);
    tune(operations);
}

/* The table's prefix is "settings": only that very key is meant. */
static void on_settings_put(void *context, const char *name, const char *value,
                            const Etcdserverpb__KeyValue *kv)
{
    rtr_operations *operations = context;
    if (*name)
        return;
    operations->settings_listed = true;
    if (kv->mod_revision != operations->settings_revision)
        settings_take(operations, value, kv->mod_revision);
}

static void on_settings_delete(void *context, const char *name)
{
    rtr_operations *operations = context;
    if (!*name && operations->settings_revision != 0)
        settings_take(operations, "{}", 0);
}

static void on_settings_list(void *context)
{
    rtr_operations *operations = context;
    operations->settings_listed = false;
}

static void on_settings_listed(void *context)
{
    rtr_operations *operations = context;
    if (!operations->settings_listed)
        on_settings_delete(context, "");
}

static void on_get_settings(rtr_operations *operations, rpc_server_call *call,
                            const ProtobufCMessage *request)
{
    Sluice__V1__Setting settings[RTR_SETTINGS_MAX], *pointers[RTR_SETTINGS_MAX];
    char values[RTR_SETTINGS_MAX][RTR_SETTING_TEXT_MAX],
        own[RTR_SETTINGS_MAX][RTR_SETTING_TEXT_MAX];
    Sluice__V1__GetSettingsReply reply = SLUICE__V1__GET_SETTINGS_REPLY__INIT;
    const sl_option *option;
    for (uint32_t i = 0; (option = rtr_live_setting(i)); i++) {
        sluice__v1__setting__init(&settings[i]);
        sl_config_text(option, &operations->tuned, values[i], sizeof values[i]);
        sl_config_text(option, operations->options.own, own[i], sizeof own[i]);
        settings[i].name = (char *)option->name;
        settings[i].help = (char *)option->help;
        settings[i].value = values[i];
        settings[i].own = own[i];
        settings[i].set = operations->settings.values[i][0] != 0;
        pointers[i] = &settings[i];
        reply.n_settings++;
    }
    reply.settings = pointers;
    reply.revision = operations->settings_revision;
    rpc_server_call_reply(call, &reply.base);
}

static void on_set_setting(rtr_operations *operations, rpc_server_call *call,
                           const ProtobufCMessage *base)
{
    const Sluice__V1__SetSettingRequest *request = (const void *)base;
    rtr_live_settings wanted = operations->settings;
    rtr_options after;
    char before[RTR_SETTING_TEXT_MAX], now[RTR_SETTING_TEXT_MAX];
    uint32_t index;
    sl_err err;
    sl_status status = rtr_live_settings_set(&wanted, request->name, request->value, &index, &err);
    if (!sl_is_ok(status)) {
        rpc_server_call_finish(call, status.code, err.text);
        return;
    }
    Sluice__V1__SetSettingReply reply = SLUICE__V1__SET_SETTING_REPLY__INIT;
    rtr_live_settings_apply(&wanted, operations->options.own, &after);
    sl_config_text(rtr_live_setting(index), &operations->tuned, before, sizeof before);
    sl_config_text(rtr_live_setting(index), &after, now, sizeof now);
    reply.before = before;
    reply.after = now;
    reply.changed = strcmp(wanted.values[index], operations->settings.values[index]) != 0;
    if (request->dry_run || !reply.changed) {
        rpc_server_call_reply(call, &reply.base);
        return;
    }
    char detail[200];
    sl_buf value;
    snprintf(detail, sizeof detail, "%s -> %s", before, now);
    sl_buf_init(&value, RTR_SETTINGS_JSON);
    rtr_live_settings_write(&value, &wanted);
    const wish w = {.path = "settings",
                    .verb = "settings set",
                    .target = request->name,
                    .detail = detail,
                    .value = &value,
                    .revision = operations->settings_revision,
                    .shows = operations->settings_table};
    write_wish(operations, call, &w, &reply.base);
    sl_buf_fini(&value);
}

/* ---- events ---- */

typedef struct event_list {
    Sluice__V1__Event events[EVENTS_REPLY_MAX], *pointers[EVENTS_REPLY_MAX];
    clu_audit_record audit[CLU_AUDIT_MAX];
    size_t count, audit_count;
} event_list;

static Sluice__V1__Event *event_add(event_list *list)
{
    Sluice__V1__Event *event = &list->events[list->count];
    sluice__v1__event__init(event);
    list->pointers[list->count++] = event;
    return event;
}

static void add_happening(event_list *list, const rtr_happening *item)
{
    Sluice__V1__Event *event = event_add(list);
    event->time_us = item->time_us;
    event->kind = (char *)item->kind;
    event->subject = (char *)item->subject;
    event->text = (char *)item->text;
}

static void add_audit(event_list *list, const Etcdserverpb__KeyValue *kv)
{
    clu_audit_record *record = &list->audit[list->audit_count];
    sl_err err;
    if (list->audit_count == CLU_AUDIT_MAX ||
        !sl_is_ok(clu_audit_parse_json(kv->value.data, kv->value.len, record, &err)))
        return; /* the counter, or something of another version */
    list->audit_count++;
    Sluice__V1__Event *event = event_add(list);
    event->time_us = record->time_us;
    event->kind = record->verb;
    event->subject = record->target;
    event->text = record->detail;
    event->actor = record->actor;
}

static int by_time(const void *a, const void *b)
{
    const Sluice__V1__Event *x = *(Sluice__V1__Event *const *)a;
    const Sluice__V1__Event *y = *(Sluice__V1__Event *const *)b;
    return x->time_us < y->time_us ? -1 : x->time_us > y->time_us;
}

static void reply_events(rtr_deed *deed, const Etcdserverpb__RangeResponse *audit)
{
    Sluice__V1__ListEventsReply reply = SLUICE__V1__LIST_EVENTS_REPLY__INIT;
    const Sluice__V1__ListEventsRequest *request = (const void *)deed->reply;
    event_list *list = sl_alloc(1, sizeof *list, "router events");
    const rtr_happening *item;
    for (uint32_t i = 0; (item = rtr_events_at(&deed->operations->events, i)); i++)
        add_happening(list, item);
    for (size_t i = 0; i < audit->n_kvs; i++)
        add_audit(list, audit->kvs[i]);
    qsort(list->pointers, list->count, sizeof list->pointers[0], by_time);
    size_t limit = request->limit && request->limit < list->count ? request->limit : list->count;
    reply.router = (char *)deed->operations->options.router;
    reply.events = list->pointers + (list->count - limit);
    reply.n_events = limit;
    rpc_server_call_set(deed->call, &(rpc_server_call_events){0}, NULL);
    rpc_server_call_reply(deed->call, &reply.base);
    sl_free(list);
}

static void on_audit(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    rtr_deed *deed = context;
    deed->request = NULL;
    if (err->code != SL_OK) {
        deed_fail(deed, err->code, err->text);
        return;
    }
    if (deed->call)
        reply_events(deed, (const void *)message);
    deed_end(deed);
}

static void on_list_events(rtr_operations *operations, rpc_server_call *call,
                           const ProtobufCMessage *base)
{
    char prefix[CLU_KEY_MAX], end[CLU_KEY_MAX];
    sl_err err;
    rtr_deed *deed = deed_begin(operations, call);
    if (!deed)
        return;
    sl_status status = keep_reply(deed, base, &err); /* the request: its limit is needed later */
    if (sl_is_ok(status))
        status = clu_key(operations->options.cluster, "audit/", prefix, &err);
    if (sl_is_ok(status)) {
        Etcdserverpb__RangeRequest range = ETCDSERVERPB__RANGE_REQUEST__INIT;
        clu_request_options options = {.idempotent = true};
        range.key = clu_bytes(prefix);
        range.range_end = clu_prefix_end(prefix, end, sizeof end);
        range.limit = CLU_AUDIT_MAX + 1;
        status = clu_etcd_request(operations->options.etcd, &rpc_method_etcd_kv_range, &range.base,
                                  &options, on_audit, deed, &deed->request, &err);
    }
    if (!sl_is_ok(status))
        deed_fail(deed, status.code, err.text);
}

/* ---- scale ---- */

static void fill_advice(const rtr_scale_status *status, Sluice__V1__GetScaleReply *out)
{
    const rtr_plan_advice *prefill = &status->advice[RTR_PLAN_ROLE_PREFILL],
                          *decode = &status->advice[RTR_PLAN_ROLE_DECODE];
    out->prefill_advised = (uint32_t)((int32_t)out->prefill_wanted + prefill->more);
    out->decode_advised = (uint32_t)((int32_t)out->decode_wanted + decode->more);
    out->prefill_reason = (char *)prefill->reason;
    out->decode_reason = (char *)decode->reason;
}

static void fill_own(const rtr_metrics *m, Sluice__V1__RouterLoad *out)
{
    sluice__v1__router_load__init(out);
    out->waiting = (uint32_t)sl_metric_get(m->waiting, NULL);
    out->ttft_kept = (uint64_t)sl_metric_get(m->targets, RTR_METRIC_TTFT_KEPT);
    out->ttft_missed = (uint64_t)sl_metric_get(m->targets, RTR_METRIC_TTFT_MISSED);
    out->tpot_kept = (uint64_t)sl_metric_get(m->targets, RTR_METRIC_TPOT_KEPT);
    out->tpot_missed = (uint64_t)sl_metric_get(m->targets, RTR_METRIC_TPOT_MISSED);
}

static void fill_scale(const rtr_operations *operations, const rtr_scale_status *status,
                       Sluice__V1__GetScaleReply *out)
{
    sluice__v1__get_scale_reply__init(out);
    out->set = status->set;
    out->prefill_wanted = status->set ? status->wanted.prefill : status->prefill;
    out->decode_wanted = status->set ? status->wanted.decode : status->decode;
    out->prefill = status->prefill;
    out->decode = status->decode;
    out->hybrid = status->hybrid;
    out->leader = (char *)status->leader;
    out->hook = status->hook;
    out->last = (char *)status->last;
    out->router = (char *)operations->options.router;
    out->plan = (char *)sl_config_option(&RTR_CONFIG_SPEC, "plan")->choices[status->mode];
    out->prefill_advised = out->prefill_wanted;
    out->decode_advised = out->decode_wanted;
    if (status->advice)
        fill_advice(status, out);
}

static void on_get_scale(rtr_operations *operations, rpc_server_call *call,
                         const ProtobufCMessage *request)
{
    Sluice__V1__GetScaleReply reply;
    Sluice__V1__RouterLoad own;
    rtr_scale_status status;
    rtr_controller_status(operations->controller, &status);
    fill_scale(operations, &status, &reply);
    fill_own(operations->options.metrics, &own);
    reply.own = &own;
    rpc_server_call_reply(call, &reply.base);
}

static void write_scale(rtr_operations *operations, rpc_server_call *call,
                        const rtr_scale_status *status, const ProtobufCMessage *reply)
{
    char detail[120];
    sl_buf value;
    snprintf(detail, sizeof detail, "prefill %u, decode %u wanted; there are %u and %u",
             status->wanted.prefill, status->wanted.decode, status->prefill, status->decode);
    sl_buf_init(&value, CLU_DESIRED_JSON_MAX);
    clu_scale_write_json(&value, &status->wanted);
    const wish w = {.path = "scale",
                    .verb = "scale apply",
                    .target = "",
                    .detail = detail,
                    .value = &value,
                    .revision = status->revision,
                    .shows = rtr_controller_wish(operations->controller)};
    write_wish(operations, call, &w, reply);
    sl_buf_fini(&value);
}

static void on_set_scale(rtr_operations *operations, rpc_server_call *call,
                         const ProtobufCMessage *base)
{
    const Sluice__V1__SetScaleRequest *request = (const void *)base;
    Sluice__V1__GetScaleReply reply;
    rtr_scale_status status;
    sl_err err;
    rtr_controller_status(operations->controller, &status);
    status.set = true;
    status.wanted = (clu_scale){request->prefill, request->decode};
    if (!sl_is_ok(clu_scale_check(&status.wanted, &err))) {
        rpc_server_call_finish(call, err.code, err.text);
        return;
    }
    fill_scale(operations, &status, &reply);
    if (request->dry_run)
        rpc_server_call_reply(call, &reply.base);
    else
        write_scale(operations, call, &status, &reply.base);
}

/* ---- balance ---- */

static void fill_balance(const rtr_rebalance *state, const char *name,
                         Sluice__V1__InstanceBalance *out)
{
    sluice__v1__instance_balance__init(out);
    out->instance = (char *)name;
    out->placement_version = state->begun ? state->placement : 0;
    out->imbalance = state->imbalance;
    out->advised = state->advised;
    out->planned_before = state->plan.before;
    out->planned_after = state->plan.after;
    out->moves = state->plan.moves;
    out->bytes = state->plan.bytes;
    out->reason = (char *)state->reason;
    out->roll_out_us = state->took_ns / 1000;
    out->placement_late = state->late;
}

static void on_get_balance(rtr_operations *operations, rpc_server_call *call,
                           const ProtobufCMessage *request)
{
    const rtr_rebalancer *rebalancer = rtr_controller_rebalancer(operations->controller);
    Sluice__V1__GetBalanceReply reply = SLUICE__V1__GET_BALANCE_REPLY__INIT;
    Sluice__V1__InstanceBalance list[RTR_INSTANCES_MAX], *pointers[RTR_INSTANCES_MAX];
    rtr_scale_status status;
    const rtr_rebalance *state;
    const char *name;
    rtr_controller_status(operations->controller, &status);
    reply.router = (char *)operations->options.router;
    reply.leader = (char *)status.leader;
    reply.rebalance = (char *)sl_config_option(&RTR_CONFIG_SPEC, "rebalance")
                          ->choices[operations->tuned.rebalance];
    reply.instances = pointers;
    while ((state = rtr_rebalancer_at(rebalancer, (uint32_t)reply.n_instances, &name))) {
        pointers[reply.n_instances] = &list[reply.n_instances];
        fill_balance(state, name, &list[reply.n_instances++]);
    }
    rpc_server_call_reply(call, &reply.base);
}

/* ---- life ---- */

const rtr_operation RTR_OPERATION_TABLE[RTR_OPERATIONS] = {
    {&rpc_method_cluster_list_requests, rtr_on_list_requests},
    {&rpc_method_cluster_cancel_request, rtr_on_cancel_request},
    {&rpc_method_cluster_trace, rtr_on_trace},
    {&rpc_method_cluster_cordon, on_cordon},
    {&rpc_method_cluster_get_settings, on_get_settings},
    {&rpc_method_cluster_set_setting, on_set_setting},
    {&rpc_method_cluster_list_events, on_list_events},
    {&rpc_method_cluster_get_scale, on_get_scale},
    {&rpc_method_cluster_set_scale, on_set_scale},
    {&rpc_method_cluster_get_balance, on_get_balance},
};

static sl_status open_tables(rtr_operations *operations, sl_err *err)
{
    static const clu_table_events DESIRED = {on_desired_list, on_desired_put, on_desired_delete,
                                             on_desired_listed, on_table_seen};
    static const clu_table_events SETTINGS = {on_settings_list, on_settings_put, on_settings_delete,
                                              on_settings_listed, on_table_seen};
    const rtr_operations_options *options = &operations->options;
    char key[CLU_KEY_MAX];
    SL_TRY(clu_key(options->cluster, "desired/", key, err));
    SL_TRY(clu_table_create(options->etcd, key, &DESIRED, operations, &operations->desired_table,
                            err));
    SL_TRY(clu_key(options->cluster, "settings", key, err));
    SL_TRY(clu_table_create(options->etcd, key, &SETTINGS, operations, &operations->settings_table,
                            err));
    rtr_controller_options controller = {
        .etcd = options->etcd,
        .view = options->view,
        .cluster = options->cluster,
        .router = options->router,
        .lease_ns = options->own->lease_ns,
        .hook = options->own->scale_hook,
        .tuned = &operations->tuned,
        .tls = options->tls,
        .events = &operations->events,
        .metrics = options->metrics,
        .on_wish_seen = on_table_seen,
        .context = operations,
    };
    return rtr_controller_create(&controller, &operations->controller, err);
}

sl_status rtr_operations_create(const rtr_operations_options *options,
                                rtr_operations **out_operations, sl_err *err)
{
    rtr_operations *operations = sl_alloc(1, sizeof *operations, "router operations");
    operations->options = *options;
    operations->desired =
        sl_alloc(RTR_DESIRED_MAX, sizeof *operations->desired, "router operations");
    operations->tuned = *options->own;
    sl_status status = open_tables(operations, err);
    if (!sl_is_ok(status)) {
        rtr_operations_destroy(operations);
        return status;
    }
    *out_operations = operations;
    return status;
}

void rtr_operations_destroy(rtr_operations *operations)
{
    if (!operations)
        return;
    while (operations->deeds)
        deed_end(operations->deeds);
    rtr_gathers_destroy(operations);
    rtr_controller_destroy(operations->controller);
    clu_table_destroy(operations->desired_table);
    clu_table_destroy(operations->settings_table);
    sl_free(operations->desired);
    sl_free(operations);
}
