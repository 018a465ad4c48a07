/* `sluicectl role`: another role for a node, in the same process. */
#include <stdio.h>

#include "cli/commands.h"
#include "proto/sluice/v1/node.pb-c.h"

#define MARGIN_NS  (15 * SL_S_NS)  /* beyond the node's own deadline */
#define DEFAULT_NS (600 * SL_S_NS) /* its --drain-timeout is its own affair */

static void report(const ctl_session *session, const char *node, const char *before,
                   const Sluice__V1__SetRoleReply *reply)
{
    sl_buf out;
    sl_buf_init(&out, 0);
    if (ctl_session_options(session)->json) {
        ctl_json_open(&out, NULL, '{');
        ctl_json_text(&out, "node", node);
        ctl_json_text(&out, "before", before);
        ctl_json_text(&out, "role", reply->role);
        ctl_json_number(&out, "wait_us", reply->wait_us);
        sl_buf_puts(&out, "}\n");
    } else {
        sl_buf_printf(&out, "%s was %s, is %s after %.2f s\n", node, before, reply->role,
                      (double)reply->wait_us / 1e6);
    }
    ctl_print(&out);
}

int ctl_role(ctl_session *session, const char *const *words)
{
    const ctl_options *options = ctl_session_options(session);
    Sluice__V1__SetRoleRequest request = SLUICE__V1__SET_ROLE_REQUEST__INIT;
    const clu_member_info *member;
    ctl_call call;
    sl_err err;
    if (!sl_is_ok(ctl_session_find_node(session, words[0], &member, &err)))
        return ctl_fail(&err);
    request.role = (char *)words[1];
    request.deadline_ms = (uint32_t)(options->timeout_ns / SL_MS_NS);
    uint64_t timeout_ns = options->timeout_ns ? options->timeout_ns + MARGIN_NS : DEFAULT_NS;
    ctl_call_start_within(session, &call, member, &rpc_method_node_set_role, &request.base,
                          timeout_ns);
    ctl_session_wait(session);
    sl_status status = {call.err.code};
    if (sl_is_ok(status))
        report(session, member->name, member->role, (const Sluice__V1__SetRoleReply *)call.reply);
    else
        (void)sl_fail(&err, call.err.code, "%s", call.err.text);
    ctl_call_fini(&call);
    return sl_is_ok(status) ? CTL_EXIT_OK : ctl_fail(&err);
}
