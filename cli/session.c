/* The members and calls to them: see session.h. */
#include "cli/session.h"

#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "proto/sluice/v1/cluster.pb-c.h"
#include "proto/sluice/v1/node.pb-c.h"
#include "rpc/server.h"

struct ctl_session {
    const ctl_options *options;
    sl_loop *loop;
    rpc_runtime *runtime;
    clu_trust *trust;
    clu_etcd *etcd; /* NULL: a router tells */
    clu_view *view; /* the same */
    bool ready;
    sl_err failure; /* code SL_OK: none */
    /* [count], then the router that --router names, whatever its record says. */
    clu_member_info *members;
    rpc_channel **channels; /* made when first used */
    size_t count;
    size_t calls_open;
    char actor[RPC_ACTOR_MAX];
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

static void make_room(ctl_session *session, size_t count)
{
    session->count = count;
    session->members = sl_alloc(count + 1, sizeof(*session->members), "sluicectl members");
    session->channels = sl_alloc(count + 1, sizeof(rpc_channel *), "sluicectl members");
}

/* ---- members by etcd ---- */

static const char *etcd_hint(const ctl_session *session)
{
    const char *tls = rpc_tls_hint(session->failure.text, session->options->trust.etcd_ca != NULL);
    if (*tls)
        return tls;
    return session->failure.code == SL_DENIED
               ? "who etcd knows is its administrator's to say"
               : "is etcd running there? --etcd says where it is looked for";
}

static sl_status open_view(ctl_session *session, sl_err *err)
{
    static const clu_view_events EVENTS = {.on_ready = on_ready, .on_failed = on_failed};
    const ctl_options *options = session->options;
    clu_etcd_options etcd = {.endpoints = options->etcd, .timeout_ns = options->etcd_timeout_ns};
    clu_trust_etcd(session->trust, &etcd);
    SL_TRY(sl_wrap(err, clu_etcd_create(session->runtime, &etcd, &session->etcd, err), "--etcd"));
    clu_view_options view = {.cluster = options->cluster};
    SL_TRY(clu_view_create(session->etcd, &view, &EVENTS, session, &session->view, err));
    while (!session->ready && session->failure.code == SL_OK)
        sl_loop_run_once(session->loop, 100);
    if (!session->ready)
        return sl_fail(err, session->failure.code, "%.400s\n%s", session->failure.text,
                       etcd_hint(session));
    make_room(session, clu_view_count(session->view));
    for (size_t i = 0; i < session->count; i++)
        session->members[i] = clu_view_at(session->view, i)->info;
    if (session->count == 0)
        return sl_fail(err, SL_NOT_FOUND,
                       "etcd at %s knows no member of cluster \"%s\": is --cluster right, and has "
                       "a node been started?",
                       options->etcd, options->cluster);
    return sl_ok();
}

/* ---- members by a router ---- */

static void copy_text(char *field, size_t size, const char *text)
{
    snprintf(field, size, "%s", text);
}

/* What a router tells is as good as what etcd holds, but for members that left just now. */
static void copy_member(const Sluice__V1__Member *from, clu_member_info *to)
{
    memset(to, 0, sizeof(*to));
    copy_text(to->name, sizeof(to->name), from->name);
    copy_text(to->role, sizeof(to->role), from->role);
    copy_text(to->control, sizeof(to->control), from->control);
    copy_text(to->kv, sizeof(to->kv), from->kv);
    copy_text(to->metrics, sizeof(to->metrics), from->metrics);
    copy_text(to->version, sizeof(to->version), from->version);
    copy_text(to->secret_mark, sizeof(to->secret_mark), from->secret_mark);
    to->incarnation = from->incarnation;
    to->slots = from->slots;
    to->pages = from->pages;
    to->context_max = from->context_max;
    to->state = strcmp(from->state, "draining") == 0   ? CLU_MEMBER_STATE_DRAINING
                : strcmp(from->state, "cordoned") == 0 ? CLU_MEMBER_STATE_CORDONED
                                                       : CLU_MEMBER_STATE_READY;
    if (!from->stamp)
        return;
    copy_text(to->stamp.numerics_id, sizeof(to->stamp.numerics_id), from->stamp->numerics_id);
    copy_text(to->stamp.model_hash, sizeof(to->stamp.model_hash), from->stamp->model_hash);
    copy_text(to->stamp.weights_version, sizeof(to->stamp.weights_version),
              from->stamp->weights_version);
    copy_text(to->stamp.cache_format, sizeof(to->stamp.cache_format), from->stamp->cache_format);
}

static sl_status list_members(ctl_session *session, ctl_call *out_call, sl_err *err)
{
    static const Sluice__V1__ListMembersRequest REQUEST = SLUICE__V1__LIST_MEMBERS_REQUEST__INIT;
    return ctl_ask(session, &session->members[session->count], &rpc_method_cluster_list_members,
                   &REQUEST.base, out_call, err);
}

/* Its channel stays that of the last member: the list is made anew around it. */
static sl_status open_router(ctl_session *session, sl_err *err)
{
    ctl_call call = {0};
    make_room(session, 0);
    copy_text(session->members[0].name, sizeof(session->members[0].name), "the router");
    copy_text(session->members[0].role, sizeof(session->members[0].role), "router");
    if (strlen(session->options->router) >= sizeof(session->members[0].control))
        return sl_fail(err, SL_INVALID, "--router: want host:port");
    copy_text(session->members[0].control, sizeof(session->members[0].control),
              session->options->router);
    sl_status status = list_members(session, &call, err);
    if (!sl_is_ok(status)) {
        ctl_call_fini(&call);
        return sl_wrap(err, status, "--router");
    }
    const Sluice__V1__ListMembersReply *reply = (const Sluice__V1__ListMembersReply *)call.reply;
    clu_member_info *router = session->members;
    rpc_channel **channel = session->channels;
    make_room(session, reply->n_members);
    for (size_t i = 0; i < reply->n_members; i++)
        copy_member(reply->members[i], &session->members[i]);
    session->members[session->count] = *router;
    session->channels[session->count] = *channel;
    sl_free(router);
    sl_free(channel);
    ctl_call_fini(&call);
    return sl_ok();
}

/* Who acts, as long as no certificate says it. */
static void set_actor(ctl_session *session)
{
    char host[64] = "";
    char number[16];
    const struct passwd *known = getpwuid(geteuid());
    const char *user = getenv("SUDO_USER");
    snprintf(number, sizeof(number), "uid %u", (unsigned)geteuid());
    user = user ? user : known ? known->pw_name : number;
    if (gethostname(host, sizeof(host) - 1) != 0)
        host[0] = '\0';
    snprintf(session->actor, sizeof(session->actor), "%.60s@%.60s", user, host);
}

static sl_status open_session(ctl_session *session, sl_err *err)
{
    SL_TRY(clu_trust_open(&session->options->trust, &session->trust, err));
    SL_TRY(sl_loop_create(&session->loop, err));
    SL_TRY(rpc_runtime_create(session->loop, &session->runtime, err));
    set_actor(session);
    if (session->options->router && session->options->router[0])
        SL_TRY(open_router(session, err));
    else
        SL_TRY(open_view(session, err));
    if (session->count > 0)
        qsort(session->members, session->count, sizeof(*session->members), by_name);
    return sl_ok();
}

sl_status ctl_session_open(const ctl_options *options, ctl_session **out_session, sl_err *err)
{
    ctl_session *session = sl_alloc(1, sizeof(*session), "sluicectl session");
    session->options = options;
    sl_status status = open_session(session, err);
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
    for (size_t i = 0; session->channels && i <= session->count; i++)
        rpc_channel_destroy(session->channels[i]);
    clu_view_destroy(session->view);
    if (session->etcd)
        clu_etcd_destroy(session->etcd);
    if (session->runtime)
        rpc_runtime_destroy(session->runtime);
    if (session->loop)
        sl_loop_destroy(session->loop);
    clu_trust_close(session->trust);
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

static bool router_has(ctl_session *session, const clu_member_info *member, bool *out_suspect)
{
    ctl_call call = {0};
    sl_err err;
    bool found = false;
    *out_suspect = false;
    if (!sl_is_ok(list_members(session, &call, &err))) {
        ctl_call_fini(&call);
        return true; /* it does not say otherwise */
    }
    const Sluice__V1__ListMembersReply *reply = (const Sluice__V1__ListMembersReply *)call.reply;
    for (size_t i = 0; i < reply->n_members; i++) {
        const Sluice__V1__Member *at = reply->members[i];
        if (strcmp(at->name, member->name) != 0 || at->incarnation != member->incarnation)
            continue;
        found = true;
        *out_suspect = strcmp(at->state, "suspect") == 0;
    }
    ctl_call_fini(&call);
    return found;
}

bool ctl_session_has(ctl_session *session, const clu_member_info *member, bool *out_suspect)
{
    if (!session->view)
        return router_has(session, member, out_suspect);
    const clu_view_member *now = clu_view_find(session->view, member->name);
    if (!now || now->info.incarnation != member->incarnation)
        return false;
    *out_suspect = now->suspect;
    return true;
}

clu_etcd *ctl_session_etcd(ctl_session *session)
{
    return session->etcd;
}

sl_loop *ctl_session_loop(ctl_session *session)
{
    return session->loop;
}

sl_status ctl_session_find_node(const ctl_session *session, const char *name,
                                const clu_member_info **out_member, sl_err *err)
{
    const clu_member_info *member;
    SL_TRY(ctl_session_find(session, name, &member, err));
    if (!ctl_member_is_node(member))
        return sl_fail(err, SL_UNSUPPORTED,
                       "%s is a router: end it with SIGTERM, which lets its requests finish", name);
    *out_member = member;
    return sl_ok();
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
    rpc_channel_options options = {.tls = clu_trust_tls(session->trust)};
    if (!*channel)
        SL_TRY(rpc_channel_create(session->runtime, member->control, &options, channel, err));
    *out_channel = *channel;
    return sl_ok();
}

/* Says whose failure it is, and what to look at if it does not answer. */
static void advise(sl_err *err, const clu_member_info *member, bool answered, bool by_tls)
{
    char text[SL_ERR_TEXT_MAX];
    memcpy(text, err->text, sizeof(text));
    if (answered || (err->code != SL_UNAVAILABLE && err->code != SL_DEADLINE)) {
        (void)sl_fail(err, err->code, "%s: %.400s", member->name, text);
        return;
    }
    const char *hint = rpc_tls_hint(text, by_tls);
    (void)sl_fail(err, err->code, "%s at %s does not answer (%.220s)\n%s%s%s", member->name,
                  member->control, text, *hint ? hint : "is its process alive, and ",
                  *hint ? "" : member->control, *hint ? "" : " reachable from here?");
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
        advise(&call->err, call->member, rpc_call_answered(call->call),
               clu_trust_tls(call->session->trust) != NULL);
    }
    call->session->calls_open--;
}

typedef struct options_of_call {
    rpc_metadata actor;
    rpc_call_options options;
} options_of_call;

static const rpc_call_options *call_options(const ctl_session *session, uint64_t timeout_ns,
                                            options_of_call *out)
{
    out->actor = (rpc_metadata){RPC_ACTOR_KEY, session->actor};
    out->options = (rpc_call_options){
        .deadline = sl_now_ns() + timeout_ns, .metadata = &out->actor, .metadata_count = 1};
    return &out->options;
}

void ctl_call_start_within(ctl_session *session, ctl_call *call, const clu_member_info *member,
                           const rpc_method *method, const ProtobufCMessage *request,
                           uint64_t timeout_ns)
{
    rpc_channel *channel;
    options_of_call options;
    *call = (ctl_call){.session = session, .member = member};
    sl_status status = channel_of(session, member, &channel, &call->err);
    if (sl_is_ok(status))
        status = rpc_unary(channel, method, request, call_options(session, timeout_ns, &options),
                           on_done, call, &call->call, &call->err);
    if (sl_is_ok(status))
        session->calls_open++;
    else
        call->done = true;
}

void ctl_call_start(ctl_session *session, ctl_call *call, const clu_member_info *member,
                    const rpc_method *method, const ProtobufCMessage *request)
{
    ctl_call_start_within(session, call, member, method, request,
                          session->options->call_timeout_ns);
}

sl_status ctl_ask(ctl_session *session, const clu_member_info *member, const rpc_method *method,
                  const ProtobufCMessage *request, ctl_call *out_call, sl_err *err)
{
    ctl_call_start(session, out_call, member, method, request);
    ctl_session_wait(session);
    if (out_call->err.code == SL_OK)
        return sl_ok();
    return sl_fail(err, out_call->err.code, "%s", out_call->err.text);
}

sl_status ctl_ask_router(ctl_session *session, const rpc_method *method,
                         const ProtobufCMessage *request, ctl_call *out_call, sl_err *err)
{
    sl_status status =
        sl_fail(err, SL_NOT_FOUND, "no router is a member of this cluster: this command needs one");
    *out_call = (ctl_call){0};
    if (!session->view)
        return ctl_ask(session, &session->members[session->count], method, request, out_call, err);
    for (size_t i = 0; i < session->count; i++) {
        if (ctl_member_is_node(&session->members[i]))
            continue;
        ctl_call_fini(out_call);
        status = ctl_ask(session, &session->members[i], method, request, out_call, err);
        if (status.code != SL_UNAVAILABLE && status.code != SL_DEADLINE)
            break;
    }
    return status;
}

static ctl_call *ask_all(ctl_session *session, bool nodes, const rpc_method *method,
                         const ProtobufCMessage *request)
{
    ctl_call *calls = sl_alloc(session->count, sizeof(*calls), "sluicectl calls");
    for (size_t i = 0; i < session->count; i++)
        if (ctl_member_is_node(&session->members[i]) == nodes)
            ctl_call_start(session, &calls[i], &session->members[i], method, request);
    ctl_session_wait(session);
    return calls;
}

ctl_call *ctl_ask_all_nodes(ctl_session *session, const rpc_method *method,
                            const ProtobufCMessage *request)
{
    return ask_all(session, true, method, request);
}

ctl_call *ctl_ask_all_statuses(ctl_session *session)
{
    static const Sluice__V1__NodeStatusRequest REQUEST = SLUICE__V1__NODE_STATUS_REQUEST__INIT;
    return ctl_ask_all_nodes(session, &rpc_method_node_get_status, &REQUEST.base);
}

ctl_call *ctl_ask_all_routers(ctl_session *session, const rpc_method *method,
                              const ProtobufCMessage *request)
{
    return ask_all(session, false, method, request);
}

void ctl_calls_free(ctl_session *session, ctl_call *calls)
{
    for (size_t i = 0; i < session->count; i++)
        ctl_call_fini(&calls[i]);
    sl_free(calls);
}

void ctl_pass(uint64_t ns)
{
    sl_loop *loop;
    sl_time_ns end = sl_now_ns() + ns;
    if (!sl_is_ok(sl_loop_create(&loop, NULL)))
        return;
    for (sl_time_ns now = sl_now_ns(); now < end; now = sl_now_ns())
        sl_loop_run_once(loop, (int)((end - now) / SL_MS_NS) + 1);
    sl_loop_destroy(loop);
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
    bool done, answered;
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
    r->answered = rpc_call_answered(r->call);
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
    options_of_call options;
    SL_TRY(channel_of(session, member, &channel, err));
    SL_TRY(rpc_stream_open(channel, method, request,
                           call_options(session, session->options->call_timeout_ns, &options),
                           &EVENTS, &r, &r.call, err));
    while (!r.done)
        sl_loop_run_once(session->loop, 100);
    if (r.refusal.code != SL_OK)
        return sl_fail(err, r.refusal.code, "%s: %s", member->name, r.refusal.text);
    if (r.err.code == SL_OK)
        return sl_ok();
    advise(&r.err, member, r.answered, clu_trust_tls(session->trust) != NULL);
    return sl_fail(err, r.err.code, "%s", r.err.text);
}
