/* `sluicectl scale plan` and `apply`. */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "proto/sluice/v1/cluster.pb-c.h"

#define APPLY_NS (300 * SL_S_NS)
#define POLL_MS  300u

typedef Sluice__V1__GetScaleReply scale;

static sl_status ask(ctl_session *session, ctl_call *out_call, sl_err *err)
{
    static const Sluice__V1__GetScaleRequest REQUEST = SLUICE__V1__GET_SCALE_REQUEST__INIT;
    return ctl_ask_router(session, &rpc_method_cluster_get_scale, &REQUEST.base, out_call, err);
}

/* Only the leader plans: it is asked as well, if it can be. */
static void ask_leader(ctl_session *session, ctl_call *call)
{
    static const Sluice__V1__GetScaleRequest REQUEST = SLUICE__V1__GET_SCALE_REQUEST__INIT;
    const scale *first = (const scale *)call->reply;
    const clu_member_info *leader;
    ctl_call again;
    sl_err err;
    if (!*first->leader || strcmp(first->leader, first->router) == 0 ||
        !sl_is_ok(ctl_session_find(session, first->leader, &leader, &err)))
        return;
    if (!sl_is_ok(
            ctl_ask(session, leader, &rpc_method_cluster_get_scale, &REQUEST.base, &again, &err))) {
        fprintf(stderr, "sluicectl: %s\n", err.text);
        ctl_call_fini(&again);
        return;
    }
    ctl_call_fini(call);
    *call = again;
}

static bool reached(const scale *now)
{
    return now->prefill == now->prefill_wanted && now->decode == now->decode_wanted;
}

static void print(const ctl_session *session, const scale *now, bool dry_run)
{
    sl_buf out;
    sl_buf_init(&out, 0);
    if (ctl_session_options(session)->json) {
        ctl_json_open(&out, NULL, '{');
        ctl_json_number(&out, "prefill", now->prefill);
        ctl_json_number(&out, "decode", now->decode);
        ctl_json_number(&out, "hybrid", now->hybrid);
        ctl_json_bool(&out, "set", now->set);
        ctl_json_number(&out, "prefill_wanted", now->prefill_wanted);
        ctl_json_number(&out, "decode_wanted", now->decode_wanted);
        ctl_json_text(&out, "leader", now->leader);
        ctl_json_bool(&out, "hook", now->hook);
        ctl_json_text(&out, "last", now->last);
        ctl_json_text(&out, "plan", now->plan);
        ctl_json_number(&out, "prefill_advised", now->prefill_advised);
        ctl_json_number(&out, "decode_advised", now->decode_advised);
        ctl_json_text(&out, "prefill_reason", now->prefill_reason);
        ctl_json_text(&out, "decode_reason", now->decode_reason);
        ctl_json_bool(&out, "dry_run", dry_run);
        sl_buf_puts(&out, "}\n");
        ctl_print(&out);
        return;
    }
    sl_buf_printf(&out, "%s%-8s %6s %6s %7s  %s\n", dry_run ? "dry run\n" : "", "ROLE", "NODES",
                  "WANTED", "ADVISED", "WHY");
    sl_buf_printf(&out, "%-8s %6u %6u %7u  %s\n", "prefill", now->prefill, now->prefill_wanted,
                  now->prefill_advised, now->prefill_reason);
    sl_buf_printf(&out, "%-8s %6u %6u %7u  %s\n", "decode", now->decode, now->decode_wanted,
                  now->decode_advised, now->decode_reason);
    if (now->hybrid)
        sl_buf_printf(&out, "%-8s %6u %6s\n", "hybrid", now->hybrid, "-");
    sl_buf_printf(&out, "%s leads, %s, --plan %s%s%s\n", *now->leader ? now->leader : "nobody",
                  now->hook ? "with a hook" : "without --scale-hook: others must act on it",
                  now->plan, *now->last ? "; last: " : "", now->last);
    ctl_print(&out);
}

int ctl_scale_plan(ctl_session *session, const char *const *words)
{
    ctl_call call;
    sl_err err;
    sl_status status = ask(session, &call, &err);
    if (sl_is_ok(status)) {
        ask_leader(session, &call);
        print(session, (const scale *)call.reply, false);
    }
    ctl_call_fini(&call);
    return sl_is_ok(status) ? CTL_EXIT_OK : ctl_fail(&err);
}

/* Until the nodes are there, telling changes. */
static int wait_until(ctl_session *session, const scale *wanted)
{
    const ctl_options *options = ctl_session_options(session);
    sl_time_ns end = sl_now_ns() + (options->timeout_ns ? options->timeout_ns : APPLY_NS);
    uint32_t prefill = UINT32_MAX, decode = UINT32_MAX;
    bool seen = false;
    sl_err err;
    for (;;) {
        ctl_call call;
        sl_status status = ask(session, &call, &err);
        const scale *now = (const scale *)call.reply;
        if (now && (now->prefill != prefill || now->decode != decode)) {
            prefill = now->prefill;
            decode = now->decode;
            fprintf(stderr, "%u prefill, %u decode\n", prefill, decode);
        }
        bool ours = now && now->prefill_wanted == wanted->prefill_wanted &&
                    now->decode_wanted == wanted->decode_wanted;
        bool other = now && seen && !ours;
        bool done = ours && reached(now);
        seen = seen || ours; /* a router hears of it a moment later */
        if (done)
            print(session, now, false);
        if (other)
            (void)sl_fail(&err, SL_CONFLICT, "someone else wants other numbers meanwhile");
        else if (now)
            (void)sl_fail(&err, SL_DEADLINE, "not reached in time (%.100s): the wish stands",
                          *now->last ? now->last : "nothing has acted on it");
        ctl_call_fini(&call);
        if (done)
            return CTL_EXIT_OK;
        if (other || sl_now_ns() >= end || status.code == SL_DENIED)
            return ctl_fail(&err);
        ctl_session_pass(session, POLL_MS);
    }
}

int ctl_scale_apply(ctl_session *session, const char *const *words)
{
    const ctl_options *options = ctl_session_options(session);
    Sluice__V1__SetScaleRequest request = SLUICE__V1__SET_SCALE_REQUEST__INIT;
    ctl_call now, call;
    sl_err err;
    if (options->prefill < 0 && options->decode < 0) {
        fprintf(stderr, "sluicectl: scale apply needs --prefill N, --decode N or both\n");
        return CTL_EXIT_MISUSE;
    }
    sl_status status = ask(session, &now, &err);
    if (!sl_is_ok(status)) {
        ctl_call_fini(&now);
        return ctl_fail(&err);
    }
    const scale *before = (const scale *)now.reply;
    request.prefill = options->prefill < 0 ? before->prefill_wanted : (uint32_t)options->prefill;
    request.decode = options->decode < 0 ? before->decode_wanted : (uint32_t)options->decode;
    request.dry_run = options->dry_run;
    ctl_call_fini(&now);
    status = ctl_ask_router(session, &rpc_method_cluster_set_scale, &request.base, &call, &err);
    if (!sl_is_ok(status)) {
        ctl_call_fini(&call);
        return ctl_fail(&err);
    }
    const scale *wish = (const scale *)call.reply;
    int code = CTL_EXIT_OK;
    if (options->dry_run || !wish->hook)
        print(session, wish, options->dry_run);
    else
        code = wait_until(session, wish);
    ctl_call_fini(&call);
    return code;
}
