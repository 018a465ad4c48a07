/* `sluicectl cordon` and `uncordon`. */
#include <stdio.h>

#include "cli/commands.h"
#include "proto/sluice/v1/cluster.pb-c.h"

static void report(const ctl_session *session, const char *node, bool cordoned,
                   const Sluice__V1__CordonReply *reply)
{
    const ctl_options *options = ctl_session_options(session);
    sl_buf out;
    sl_buf_init(&out, 0);
    if (options->json) {
        ctl_json_open(&out, NULL, '{');
        ctl_json_text(&out, "node", node);
        ctl_json_bool(&out, "cordoned", cordoned);
        ctl_json_bool(&out, "changed", reply->changed);
        ctl_json_bool(&out, "dry_run", options->dry_run);
        ctl_json_text(&out, "reason", reply->reason);
        ctl_json_number(&out, "running", reply->running);
        ctl_json_number(&out, "left", reply->left);
        sl_buf_puts(&out, "}\n");
    } else if (!reply->changed) {
        sl_buf_printf(&out, "%s is %s\n", node, cordoned ? "cordoned already" : "not cordoned");
    } else if (cordoned) {
        sl_buf_printf(&out,
                      "%s%s is cordoned: it finishes its %u requests and gets no more; %u usable "
                      "nodes can do its work%s\n",
                      options->dry_run ? "dry run: " : "", node, reply->running, reply->left,
                      reply->left ? "" : ": new requests wait");
    } else {
        sl_buf_printf(&out, "%s%s gets requests again\n", options->dry_run ? "dry run: " : "",
                      node);
    }
    ctl_print(&out);
}

static int set(ctl_session *session, const char *node, bool cordoned)
{
    const ctl_options *options = ctl_session_options(session);
    Sluice__V1__CordonRequest request = SLUICE__V1__CORDON_REQUEST__INIT;
    ctl_call call;
    sl_err err;
    request.node = (char *)node;
    request.cordoned = cordoned;
    request.reason = (char *)options->reason;
    request.dry_run = options->dry_run;
    sl_status status =
        ctl_ask_router(session, &rpc_method_cluster_cordon, &request.base, &call, &err);
    if (sl_is_ok(status))
        report(session, node, cordoned, (const Sluice__V1__CordonReply *)call.reply);
    ctl_call_fini(&call);
    return sl_is_ok(status) ? CTL_EXIT_OK : ctl_fail(&err);
}

int ctl_cordon(ctl_session *session, const char *const *words)
{
    return set(session, words[0], true);
}

int ctl_uncordon(ctl_session *session, const char *const *words)
{
    return set(session, words[0], false);
}
