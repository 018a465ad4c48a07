/* The members and calls to them: see session.h. */
#include "cli/session.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"

struct ctl_session {
    const ctl_options *options;
    sl_loop *loop;
    rpc_runtime *runtime;
    clu_etcd *etcd;
    clu_view *view;
    bool ready;
    sl_err failure; /* code SL_OK: none */
    clu_member_info *members;
    rpc_channel **channels; /* [count], made when first used */
    size_t count;
    size_t calls_open;
};

static void on_ready(void *context)
{
    ctl_session *session = context;
    session->ready = true;
}

static void on_failed(void *context, const sl_err *err)
{
    ctl_session *session = context;
    session->failure = *err;
}

static int by_name(const void *a, const void *b)
{
    const clu_member_info *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static void copy_members(ctl_session *session)
{
    session->count = clu_view_count(session->view);
    session->members = sl_alloc(session->count, sizeof(*session->members), "sluicectl members");
    session->channels = sl_alloc(session->count, sizeof(rpc_channel *), "sluicectl members");
    for (size_t i = 0; i < session->count; i++)
        session->members[i] = clu_view_at(session->view, i)->info;
    if (session->count > 0)
        qsort(session->members, session->count, sizeof(*session->members), by_name);
}

static sl_status open_view(ctl_session *session, sl_err *err)
{
    static const clu_view_events EVENTS = {.on_ready = on_ready, .on_failed = on_failed};
    const ctl_options *options = session->options;
    SL_TRY(sl_loop_create(&session->loop, err));
    SL_TRY(rpc_runtime_create(session->loop, &session->runtime, err));
    clu_etcd_options etcd = {.endpoints = options->etcd, .timeout_ns = options->etcd_timeout_ns};
    SL_TRY(sl_wrap(err, clu_etcd_create(session->runtime, &etcd, &session->etcd, err), "--etcd"));
    clu_view_options view = {.cluster = options->cluster};
    SL_TRY(clu_view_create(session->etcd, &view, &EVENTS, session, &session->view, err));
    while (!session->ready && session->failure.code == SL_OK)
        sl_loop_run_once(session->loop, 100);
    if (!session->ready)
        return sl_fail(err, session->failure.code,
                       "%s\nis etcd running there? --etcd says where it is looked for",
                       session->failure.text);
    copy_members(session);
    if (session->count == 0)
        return sl_fail(err, SL_NOT_FOUND,
                       "etcd at %s knows no member of cluster \"%s\": is --cluster right, and has "
                       "a node been started?",
                       options->etcd, options->cluster);
    return sl_ok();
}

sl_status ctl_session_open(const ctl_options *options, ctl_session **out_session, sl_err *err)
{
    ctl_session *session = sl_alloc(1, sizeof(*session), "sluicectl session");
    session->options = options;
    sl_status status = open_view(session, err);
    if (!sl_is_ok(status)) {
        ctl_session_close(session);
        return status;
    }
    *out_session = session;
    return status;
}

void ctl_session_close(ctl_session *session)
{
    if (!session)
        return;
    for (size_t i = 0; i < session->count; i++)
        rpc_channel_destroy(session->channels[i]);
    clu_view_destroy(session->view);
    if (session->etcd)
        clu_etcd_destroy(session->etcd);
    if (session->runtime)
        rpc_runtime_destroy(session->runtime);
    if (session->loop)
        sl_loop_destroy(session->loop);
    sl_free(session->members);
    sl_free(session->channels);
    sl_free(session);
}

const ctl_options *ctl_session_options(const ctl_session *session)
{
    return session->options;
}

size_t ctl_session_count(const ctl_session *session)
{
    return session->count;
}

const clu_member_info *ctl_session_member(const ctl_session *session, size_t index)
{
    return &session->members[index];
}

sl_status ctl_session_find(const ctl_session *session, const char *name,
                           const clu_member_info **out_member, sl_err *err)
{
    sl_buf names;
    for (size_t i = 0; i < session->count; i++) {
        if (strcmp(session->members[i].name, name) == 0) {
            *out_member = &session->members[i];
            return sl_ok();
        }
    }
    sl_buf_init(&names, 300);
    for (size_t i = 0; i < session->count; i++)
        sl_buf_printf(&names, "%s%s", i ? ", " : "", session->members[i].name);
    sl_status status =
        sl_fail(err, SL_NOT_FOUND, "no member %s in cluster \"%s\": there are %s%s", name,
                session->options->cluster, names.data, names.overflow ? " .." : "");
    sl_buf_fini(&names);
    return status;
}

bool ctl_session_has(const ctl_session *session, const clu_member_info *member, bool *out_suspect)
{
    const clu_view_member *now = clu_view_find(session->view, member->name);
    if (!now || now->info.incarnation != member->incarnation)
        return false;
    *out_suspect = now->suspect;
    return true;
}

bool ctl_member_is_node(const clu_member_info *member)
{
    return strcmp(member->role, "router") != 0;
}

/* ---- calls ---- */

static sl_status channel_of(ctl_session *session, const clu_member_info *member,
                            rpc_channel **out_channel, sl_err *err)
{
    rpc_channel **channel = &session->channels[member - session->members];
    if (!*channel)
        SL_TRY(rpc_channel_create(session->runtime, member->control, NULL, channel, err));
    *out_channel = *channel;
    return sl_ok();
}

/* Says whose failure it is, and what to look at if it does not answer. */
static void advise(sl_err *err, const clu_member_info *member)
{
    char text[SL_ERR_TEXT_MAX];
    memcpy(text, err->text, sizeof(text));
    if (err->code != SL_UNAVAILABLE && err->code != SL_DEADLINE) {
        (void)sl_fail(err, err->code, "%s: %.400s", member->name, text);
        return;
    }
    (void)sl_fail(err, err->code,
                  "%s at %s does not answer (%.200s)\nis its process alive, and %s reachable from "
                  "here?",
                  member->name, member->control, text, member->control);
}

static void on_done(void *context, const ProtobufCMessage *reply, const sl_err *err)
{
    ctl_call *call = context;
    call->done = true;
    call->err = *err;
    if (reply) {
        rpc_message_take(reply);
        call->reply = (ProtobufCMessage *)reply;
    } else {
        advise(&call->err, call->member);
    }
    call->session->calls_open--;
}

static rpc_call_options call_options(const ctl_session *session)
{
    return (rpc_call_options){.deadline = sl_now_ns() + session->options->call_timeout_ns};
}

void ctl_call_start(ctl_session *session, ctl_call *call, const clu_member_info *member,
                    const rpc_method *method, const ProtobufCMessage *request)
{
    rpc_channel *channel;
    rpc_call_options options = call_options(session);
    *call = (ctl_call){.session = session, .member = member};
    sl_status status = channel_of(session, member, &channel, &call->err);
    if (sl_is_ok(status))
        status = rpc_unary(channel, method, request, &options, on_done, call, NULL, &call->err);
    if (sl_is_ok(status))
        session->calls_open++;
    else
        call->done = true;
}

void ctl_call_fini(ctl_call *call)
{
    rpc_message_free(call->reply);
    *call = (ctl_call){0};
}

void ctl_session_wait(ctl_session *session)
{
    while (session->calls_open > 0)
        sl_loop_run_once(session->loop, 100);
}

void ctl_session_pass(ctl_session *session, uint32_t ms)
{
    sl_time_ns end = sl_now_ns() + ms * SL_MS_NS;
    for (sl_time_ns now = sl_now_ns(); now < end; now = sl_now_ns())
        sl_loop_run_once(session->loop, (int)((end - now) / SL_MS_NS) + 1);
}

typedef struct reading {
    rpc_call *call;
    sl_status (*on_message)(void *context, const ProtobufCMessage *message, sl_err *err);
    void *context;
    bool done;
    sl_err err;     /* of the stream */
    sl_err refusal; /* of on_message */
} reading;

static void on_message(void *context, const ProtobufCMessage *message)
{
    reading *r = context;
    if (r->refusal.code == SL_OK && !sl_is_ok(r->on_message(r->context, message, &r->refusal)))
        rpc_call_cancel(r->call);
}

static void on_end(void *context, const sl_err *err)
{
    reading *r = context;
    r->err = *err;
    r->done = true;
}

sl_status ctl_session_read(ctl_session *session, const clu_member_info *member,
                           const rpc_method *method, const ProtobufCMessage *request,
                           sl_status (*fn)(void *context, const ProtobufCMessage *message,
                                           sl_err *err),
                           void *context, sl_err *err)
{
    static const rpc_stream_events EVENTS = {.on_message = on_message, .on_end = on_end};
    reading r = {.on_message = fn, .context = context};
    rpc_channel *channel;
    rpc_call_options options = call_options(session);
    SL_TRY(channel_of(session, member, &channel, err));
    SL_TRY(rpc_stream_open(channel, method, request, &options, &EVENTS, &r, &r.call, err));
    while (!r.done)
        sl_loop_run_once(session->loop, 100);
    if (r.refusal.code != SL_OK)
        return sl_fail(err, r.refusal.code, "%s: %s", member->name, r.refusal.text);
    if (r.err.code == SL_OK)
        return sl_ok();
    advise(&r.err, member);
    return sl_fail(err, r.err.code, "%s", r.err.text);
}
