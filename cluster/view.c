/* The members of a cluster, kept from a list and a watch.
 *
 * Owns the member objects, the watch and the list request. Thread: the runtime's loop. Never drops
 * a member because etcd is away. */
#include "cluster/view.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"
#include "cluster/internal.h"
#include "rpc/methods.h"

#define FROZEN_PART 5 /* more than a fifth */
#define FROZEN_MIN  2

typedef struct entry {
    clu_view_member member; /* first: what callers see */
    sl_time_ns suspect_since;
    bool listed; /* by the list that is being taken in */
    bool news;   /* on_changed is owed */
} entry;

struct clu_view {
    clu_etcd *etcd;
    clu_view_events events;
    void *context;
    char prefix[CLU_KEY_MAX];
    uint64_t suspect_keep_ns;
    entry **entries;
    size_t count, capacity;
    size_t suspects;
    uint64_t bad_records;
    bool ready, failed;
    clu_request *list;
    clu_watch *watch;
    clu_backoff backoff;
    sl_timer *list_timer;    /* list again */
    sl_timer *suspect_timer; /* look at suspects */
    sl_timer *start_timer;   /* the first list is overdue */
};

static void list(clu_view *view);

/* ---- entries ---- */

static entry *find(const clu_view *view, const char *name, size_t *out_index)
{
    for (size_t i = 0; i < view->count; i++) {
        if (strcmp(view->entries[i]->member.info.name, name) == 0) {
            if (out_index)
                *out_index = i;
            return view->entries[i];
        }
    }
    return NULL;
}

static void look_soon(clu_view *view)
{
    sl_timer_set(view->suspect_timer, sl_now_ns() + view->suspect_keep_ns / 8 + SL_MS_NS);
}

static void set_suspect(clu_view *view, entry *e, bool suspect)
{
    if (e->member.suspect == suspect)
        return;
    e->member.suspect = suspect;
    e->suspect_since = suspect ? sl_now_ns() : 0;
    view->suspects += suspect ? 1 : (size_t)-1;
    if (suspect)
        look_soon(view);
}

static void remove_at(clu_view *view, size_t index)
{
    entry *e = view->entries[index];
    set_suspect(view, e, false);
    view->entries[index] = view->entries[--view->count];
    if (view->events.on_removed)
        view->events.on_removed(view->context, &e->member);
    sl_free(e);
}

static void add(clu_view *view, const clu_member_info *info, int64_t revision)
{
    if (view->count == CLU_MEMBERS_MAX) {
        view->bad_records++;
        return;
    }
    if (view->count == view->capacity) {
        view->capacity = view->capacity ? view->capacity * 2 : 16;
        view->entries = sl_realloc(view->entries, view->capacity, sizeof(*view->entries), "view");
    }
    entry *e = sl_alloc(1, sizeof(*e), "view member");
    e->member.info = *info;
    e->member.revision = revision;
    e->listed = true;
    view->entries[view->count++] = e;
    if (view->events.on_added)
        view->events.on_added(view->context, &e->member);
}

static void changed(clu_view *view, entry *e)
{
    if (view->events.on_changed)
        view->events.on_changed(view->context, &e->member);
}

/* ---- what etcd says; callbacks may forget members, so no entry is touched after one ---- */

static void take_record(clu_view *view, const Etcdserverpb__KeyValue *kv)
{
    clu_member_info info;
    sl_err err;
    size_t prefix = strlen(view->prefix);
    bool good = sl_is_ok(clu_member_parse_json(kv->value.data, kv->value.len, &info, &err));
    if (!good || kv->key.len != prefix + strlen(info.name) ||
        memcmp(kv->key.data + prefix, info.name, kv->key.len - prefix) != 0) {
        view->bad_records++;
        sl_debug("cluster view: bad record %.*s: %s", (int)kv->key.len, (const char *)kv->key.data,
                 good ? "its name is not its key's" : err.text);
        return;
    }
    size_t index = 0;
    entry *e = find(view, info.name, &index);
    if (e &&
        (info.state == CLU_MEMBER_STATE_LEFT || e->member.info.incarnation != info.incarnation)) {
        remove_at(view, index);
        e = NULL;
    }
    if (info.state == CLU_MEMBER_STATE_LEFT)
        return;
    if (!e) {
        add(view, &info, kv->mod_revision);
    } else {
        bool news = e->member.suspect || !clu_member_equal(&e->member.info, &info);
        e->member.info = info;
        e->member.revision = kv->mod_revision;
        e->listed = true;
        set_suspect(view, e, false);
        if (news)
            changed(view, e);
    }
}

static void take_delete(clu_view *view, const Etcdserverpb__KeyValue *kv)
{
    char name[CLU_NAME_MAX];
    size_t prefix = strlen(view->prefix);
    if (kv->key.len <= prefix || kv->key.len - prefix >= sizeof(name))
        return;
    memcpy(name, kv->key.data + prefix, kv->key.len - prefix);
    name[kv->key.len - prefix] = 0;
    entry *e = find(view, name, NULL);
    if (!e || e->member.suspect)
        return;
    set_suspect(view, e, true);
    changed(view, e);
}

static void on_events(void *context, Etcdserverpb__Event *const *events, size_t count,
                      int64_t revision)
{
    clu_view *view = context;
    (void)revision;
    for (size_t i = 0; i < count; i++) {
        if (events[i]->type == ETCDSERVERPB__EVENT__EVENT_TYPE__DELETE)
            take_delete(view, events[i]->kv);
        else
            take_record(view, events[i]->kv);
    }
}

static void on_compacted(void *context)
{
    clu_view *view = context;
    list(view);
}

/* ---- list ---- */

static void list_later(clu_view *view)
{
    sl_timer_set(view->list_timer, sl_now_ns() + clu_backoff_next(&view->backoff));
}

static void take_list(clu_view *view, const Etcdserverpb__RangeResponse *reply)
{
    for (size_t i = 0; i < view->count; i++)
        view->entries[i]->listed = false;
    for (size_t i = 0; i < reply->n_kvs; i++)
        take_record(view, reply->kvs[i]);
    for (size_t i = 0; i < view->count; i++) {
        entry *e = view->entries[i];
        if (e->listed || e->member.suspect)
            continue;
        set_suspect(view, e, true);
        e->news = true;
    }
    for (size_t i = 0; i < view->count;) {
        entry *e = view->entries[i];
        bool news = e->news;
        e->news = false;
        if (news)
            changed(view, e);
        i = news ? 0 : i + 1; /* the callback may have moved others */
    }
}

/* At the start only. */
static void give_up(clu_view *view, const sl_err *err)
{
    sl_err copy = *err;
    view->failed = true;
    clu_request_drop(view->list);
    view->list = NULL;
    sl_timer_set(view->list_timer, SL_NEVER);
    sl_timer_set(view->start_timer, SL_NEVER);
    if (view->events.on_failed)
        view->events.on_failed(view->context, &copy);
}

static void on_listed(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    clu_view *view = context;
    view->list = NULL;
    if (err->code == SL_DENIED && !view->ready) {
        give_up(view, err);
        return;
    }
    if (err->code != SL_OK) {
        list_later(view);
        return;
    }
    const Etcdserverpb__RangeResponse *reply = (const void *)message;
    if (!reply->header || reply->header->revision <= 0) {
        list_later(view);
        return;
    }
    clu_backoff_reset(&view->backoff);
    int64_t next = reply->header->revision + 1;
    take_list(view, reply);
    static const clu_watch_events EVENTS = {on_events, on_compacted};
    sl_err watch_err;
    if (view->watch) {
        clu_watch_restart(view->watch, next);
    } else {
        sl_status status = clu_watch_create(view->etcd, view->prefix, next, &EVENTS, view,
                                            &view->watch, &watch_err);
        sl_assert(sl_is_ok(status)); /* prefix and revision were checked */
    }
    if (view->ready)
        return;
    view->ready = true;
    sl_timer_set(view->start_timer, SL_NEVER);
    if (view->events.on_ready)
        view->events.on_ready(view->context);
}

static void list(clu_view *view)
{
    if (view->list || view->failed)
        return;
    char end[CLU_KEY_MAX];
    Etcdserverpb__RangeRequest request = ETCDSERVERPB__RANGE_REQUEST__INIT;
    request.key = clu_bytes(view->prefix);
    request.range_end = clu_prefix_end(view->prefix, end, sizeof(end));
    request.limit = CLU_MEMBERS_MAX;
    clu_request_options options = {.idempotent = true};
    sl_err err;
    if (!sl_is_ok(clu_etcd_request(view->etcd, &rpc_method_etcd_kv_range, &request.base, &options,
                                   on_listed, view, &view->list, &err)))
        list_later(view);
}

/* ---- timers ---- */

static void on_list_timer(void *context, sl_time_ns now)
{
    (void)now;
    list(context);
}

static void on_start_timer(void *context, sl_time_ns now)
{
    clu_view *view = context;
    (void)now;
    sl_err err;
    const char *last = clu_etcd_last_error(view->etcd);
    (void)sl_fail(&err, SL_UNAVAILABLE, "etcd %s: no answer within %.1f s%s%s",
                  clu_etcd_endpoints(view->etcd), (double)clu_etcd_timeout_ns(view->etcd) / 1e9,
                  *last ? ": " : "", last);
    give_up(view, &err);
}

static void on_suspect_timer(void *context, sl_time_ns now)
{
    clu_view *view = context;
    if (view->suspects)
        look_soon(view);
    /* While etcd is away nobody can come back: that is no time to give up on members. */
    if (clu_view_frozen(view) || !clu_etcd_connected(view->etcd))
        return;
    for (size_t i = 0; i < view->count;) {
        const entry *e = view->entries[i];
        if (e->member.suspect && now >= e->suspect_since + view->suspect_keep_ns)
            remove_at(view, i);
        else
            i++;
    }
}

static void on_connected(void *context, bool connected)
{
    clu_view *view = context;
    /* Whoever lost a lease meanwhile gets the full time to come back. */
    for (size_t i = 0; connected && i < view->count; i++)
        view->entries[i]->suspect_since = sl_now_ns();
    if (view->events.on_connected)
        view->events.on_connected(view->context, connected);
}

/* ---- public ---- */

sl_status clu_view_create(clu_etcd *etcd, const clu_view_options *options,
                          const clu_view_events *events, void *context, clu_view **out_view,
                          sl_err *err)
{
    char prefix[CLU_KEY_MAX];
    SL_TRY(clu_member_key(options->cluster, "", prefix, err));
    clu_view *view = sl_alloc(1, sizeof(*view), "view");
    sl_status status = clu_etcd_listen(etcd, on_connected, view, err);
    if (!sl_is_ok(status)) {
        sl_free(view);
        return status;
    }
    sl_loop *loop = rpc_runtime_loop(clu_etcd_runtime(etcd));
    view->etcd = etcd;
    view->events = *events;
    view->context = context;
    memcpy(view->prefix, prefix, sizeof(prefix));
    view->suspect_keep_ns =
        options->suspect_keep_ns ? options->suspect_keep_ns : CLU_SUSPECT_KEEP_NS;
    view->list_timer = sl_timer_create(loop, on_list_timer, view);
    view->suspect_timer = sl_timer_create(loop, on_suspect_timer, view);
    view->start_timer = sl_timer_create(loop, on_start_timer, view);
    sl_timer_set(view->start_timer, sl_now_ns() + clu_etcd_timeout_ns(etcd));
    list(view);
    *out_view = view;
    return sl_ok();
}

void clu_view_destroy(clu_view *view)
{
    if (!view)
        return;
    clu_etcd_unlisten(view->etcd, on_connected, view);
    clu_request_drop(view->list);
    clu_watch_destroy(view->watch);
    sl_timer_destroy(view->list_timer);
    sl_timer_destroy(view->suspect_timer);
    sl_timer_destroy(view->start_timer);
    for (size_t i = 0; i < view->count; i++)
        sl_free(view->entries[i]);
    sl_free(view->entries);
    sl_free(view);
}

bool clu_view_ready(const clu_view *view)
{
    return view->ready;
}

bool clu_view_connected(const clu_view *view)
{
    return clu_etcd_connected(view->etcd);
}

bool clu_view_frozen(const clu_view *view)
{
    return view->suspects >= FROZEN_MIN && view->suspects * FROZEN_PART > view->count;
}

size_t clu_view_count(const clu_view *view)
{
    return view->count;
}

clu_view_member *clu_view_at(const clu_view *view, size_t index)
{
    sl_assert(index < view->count);
    return &view->entries[index]->member;
}

clu_view_member *clu_view_find(const clu_view *view, const char *name)
{
    entry *e = find(view, name, NULL);
    return e ? &e->member : NULL;
}

uint64_t clu_view_bad_records(const clu_view *view)
{
    return view->bad_records;
}

bool clu_view_forget(clu_view *view, const char *name, uint64_t incarnation)
{
    size_t index;
    entry *e = find(view, name, &index);
    if (!e || !e->member.suspect || e->member.info.incarnation != incarnation)
        return false;
    remove_at(view, index);
    return true;
}
