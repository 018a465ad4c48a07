/* `sluicectl drain` and `resume`. */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "proto/sluice/v1/node.pb-c.h"

#define POLL_MS   200u
#define MARGIN_NS (15 * SL_S_NS) /* beyond the node's own deadline: leaving takes a moment */

typedef struct watching {
    uint32_t left;   /* requests, when last heard */
    bool heard;      /* since the drain began */
    bool taken_back; /* someone resumed the node */
    sl_time_ns due;  /* the node leaves then, whatever is left */
} watching;

/* Asks what the node still has, and tells changes. */
static void look(ctl_session *session, const clu_member_info *member, watching *w)
{
    static const Sluice__V1__NodeStatusRequest REQUEST = SLUICE__V1__NODE_STATUS_REQUEST__INIT;
    ctl_call call;
    sl_err err;
    if (!sl_is_ok(
            ctl_ask(session, member, &rpc_method_node_get_status, &REQUEST.base, &call, &err))) {
        ctl_call_fini(&call);
        return; /* it may be gone: its record says so, or time does */
    }
    const Sluice__V1__NodeStatus *status = (const Sluice__V1__NodeStatus *)call.reply;
    uint32_t left = status->load ? status->load->running + status->load->waiting : 0;
    if (!w->heard || left != w->left)
        fprintf(stderr, "%s is %s: %u requests left\n", member->name, status->state, left);
    w->heard = true;
    w->taken_back = strcmp(status->state, "draining") != 0 && strcmp(status->state, "leaving") != 0;
    w->left = left;
    ctl_call_fini(&call);
}

/* Until the node's record is gone. */
static sl_status watch(ctl_session *session, const clu_member_info *member, watching *w,
                       sl_err *err)
{
    bool suspect = false;
    while (ctl_session_has(session, member, &suspect) && !suspect) {
        if (sl_now_ns() > w->due + MARGIN_NS)
            return sl_fail(err, SL_DEADLINE, "%s has not left, with %u requests: see its log",
                           member->name, w->left);
        look(session, member, w);
        if (w->taken_back)
            return sl_fail(err, SL_CONFLICT, "the drain of %s was taken back", member->name);
        ctl_session_pass(session, POLL_MS);
    }
    if (sl_now_ns() < w->due)
        w->left = 0; /* before its time it leaves only when nothing is left */
    return sl_ok();
}

static int report(const ctl_session *session, const clu_member_info *member, const watching *w)
{
    sl_buf out;
    sl_buf_init(&out, 0);
    if (ctl_session_options(session)->json) {
        ctl_json_open(&out, NULL, '{');
        ctl_json_text(&out, "node", member->name);
        ctl_json_text(&out, "state", "left");
        ctl_json_number(&out, "unfinished", w->left);
        sl_buf_puts(&out, "}\n");
    } else if (w->left > 0) {
        sl_buf_printf(&out, "%s has left; %u requests had not finished: routers go on elsewhere\n",
                      member->name, w->left);
    } else {
        sl_buf_printf(&out, "%s has left\n", member->name);
    }
    ctl_print(&out);
    return w->left > 0 ? CTL_EXIT_FAILURE : CTL_EXIT_OK;
}

/* ---- drain ---- */

/* Nodes that could do its work: of its role or hybrid, ready, with room for something new. */
static uint32_t others_of(const ctl_session *session, const clu_member_info *member,
                          const ctl_call *calls)
{
    uint32_t count = 0;
    for (size_t i = 0; i < ctl_session_count(session); i++) {
        const clu_member_info *other = ctl_session_member(session, i);
        const Sluice__V1__NodeStatus *status = (const Sluice__V1__NodeStatus *)calls[i].reply;
        bool alike = strcmp(other->role, member->role) == 0 || strcmp(other->role, "hybrid") == 0;
        count += other != member && alike && status && strcmp(status->state, "ready") == 0;
    }
    return count;
}

/* What it would do, told from what the nodes say now. */
static int plan(ctl_session *session, const clu_member_info *member)
{
    const ctl_options *options = ctl_session_options(session);
    ctl_call *calls = ctl_ask_all_statuses(session);
    const ctl_call *own = &calls[member - ctl_session_member(session, 0)];
    const Sluice__V1__NodeStatus *status = (const Sluice__V1__NodeStatus *)own->reply;
    if (!status) {
        sl_err err = own->err;
        ctl_calls_free(session, calls);
        return ctl_fail(&err);
    }
    uint32_t others = others_of(session, member, calls);
    uint32_t left = status->load ? status->load->running + status->load->waiting : 0;
    sl_buf out;
    sl_buf_init(&out, 0);
    if (options->json) {
        ctl_json_open(&out, NULL, '{');
        ctl_json_text(&out, "node", member->name);
        ctl_json_bool(&out, "dry_run", true);
        ctl_json_text(&out, "state", status->state);
        ctl_json_number(&out, "requests", left);
        ctl_json_number(&out, "timeout_ms", options->timeout_ns / SL_MS_NS);
        ctl_json_number(&out, "others", others);
        sl_buf_puts(&out, "}\n");
    } else {
        sl_buf_printf(
            &out,
            "would drain %s: %u requests could finish within its time, then it leaves; %u "
            "other nodes can do its work%s\n",
            member->name, left, others, others ? "" : ": new requests would wait");
    }
    ctl_print(&out);
    ctl_calls_free(session, calls);
    return CTL_EXIT_OK;
}

int ctl_drain(ctl_session *session, const char *const *words)
{
    const clu_member_info *member;
    sl_err err;
    ctl_call call;
    uint64_t timeout_ns = ctl_session_options(session)->timeout_ns;
    Sluice__V1__DrainRequest request = SLUICE__V1__DRAIN_REQUEST__INIT;
    request.deadline_ms = (uint32_t)(timeout_ns / SL_MS_NS);
    if (!sl_is_ok(ctl_session_find_node(session, words[0], &member, &err)))
        return ctl_fail(&err);
    if (ctl_session_options(session)->dry_run)
        return plan(session, member);
    sl_status status = ctl_ask(session, member, &rpc_method_node_drain, &request.base, &call, &err);
    if (!sl_is_ok(status)) {
        ctl_call_fini(&call);
        return ctl_fail(&err);
    }
    const Sluice__V1__DrainReply *reply = (const Sluice__V1__DrainReply *)call.reply;
    watching w = {.left = reply->running};
    w.due = sl_now_ns() + (uint64_t)reply->deadline_ms * SL_MS_NS;
    ctl_call_fini(&call);
    status = watch(session, member, &w, &err);
    return sl_is_ok(status) ? report(session, member, &w) : ctl_fail(&err);
}

int ctl_resume(ctl_session *session, const char *const *words)
{
    static const Sluice__V1__ResumeRequest REQUEST = SLUICE__V1__RESUME_REQUEST__INIT;
    const clu_member_info *member;
    sl_err err;
    ctl_call call = {0};
    sl_buf out;
    sl_status status = ctl_session_find_node(session, words[0], &member, &err);
    if (sl_is_ok(status))
        status = ctl_ask(session, member, &rpc_method_node_resume, &REQUEST.base, &call, &err);
    if (!sl_is_ok(status)) {
        ctl_call_fini(&call);
        return ctl_fail(&err);
    }
    const char *state = ((const Sluice__V1__ResumeReply *)call.reply)->state;
    sl_buf_init(&out, 0);
    if (ctl_session_options(session)->json) {
        ctl_json_open(&out, NULL, '{');
        ctl_json_text(&out, "node", member->name);
        ctl_json_text(&out, "state", state);
        sl_buf_puts(&out, "}\n");
    } else {
        sl_buf_printf(&out, "%s is %s\n", member->name, state);
    }
    ctl_print(&out);
    ctl_call_fini(&call);
    return CTL_EXIT_OK;
}
