/* `sluicectl members`: the records in etcd, and what each node says of itself. */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "proto/sluice/v1/cluster.pb-c.h"
#include "proto/sluice/v1/node.pb-c.h"

static const Sluice__V1__NodeStatus *status_of(const ctl_call *call)
{
    return (const Sluice__V1__NodeStatus *)call->reply;
}

/* As a router sees it: that a node is cordoned it does not know itself. */
static bool is_cordoned(const ctl_call *view, const clu_member_info *member)
{
    const Sluice__V1__ListMembersReply *reply = (const Sluice__V1__ListMembersReply *)view->reply;
    for (size_t i = 0; reply && i < reply->n_members; i++)
        if (strcmp(reply->members[i]->name, member->name) == 0)
            return strcmp(reply->members[i]->state, "cordoned") == 0;
    return false;
}

static const char *state_of(const clu_member_info *member, const ctl_call *call,
                            const ctl_call *view)
{
    if (!call->reply)
        return ctl_member_is_node(member) ? "no answer" : clu_member_state_name(member->state);
    const char *state = status_of(call)->state;
    return strcmp(state, "ready") == 0 && is_cordoned(view, member) ? "cordoned" : state;
}

static void print_row(const clu_member_info *member, const ctl_call *call, const ctl_call *view,
                      sl_buf *out)
{
    const char *weights = member->stamp.weights_version;
    sl_buf_printf(out, "%-20s %-8s %-10s %-22s %-8s %7s", member->name, member->role,
                  state_of(member, call, view), member->control, member->version,
                  *weights ? weights : "-");
    const Sluice__V1__NodeStatus *status = status_of(call);
    if (status && status->load)
        sl_buf_printf(out, " %8u %8u %7u/%-7u", status->load->running, status->load->waiting,
                      status->load->pages_bound, status->load->pages_total);
    sl_buf_putc(out, '\n');
}

static void write_member(const clu_member_info *member, const ctl_call *call, const ctl_call *view,
                         sl_buf *out)
{
    char incarnation[17];
    const Sluice__V1__NodeStatus *status = status_of(call);
    snprintf(incarnation, sizeof(incarnation), "%016llx", (unsigned long long)member->incarnation);
    ctl_json_open(out, NULL, '{');
    ctl_json_text(out, "name", member->name);
    ctl_json_text(out, "role", member->role);
    ctl_json_text(out, "state", state_of(member, call, view));
    ctl_json_text(out, "control", member->control);
    ctl_json_text(out, "kv", member->kv);
    ctl_json_text(out, "metrics", member->metrics);
    ctl_json_text(out, "incarnation", incarnation);
    ctl_json_text(out, "version", member->version);
    ctl_json_text(out, "numerics_id", member->stamp.numerics_id);
    ctl_json_text(out, "weights_version", member->stamp.weights_version);
    if (status && status->load) {
        const Sluice__V1__Load *load = status->load;
        ctl_json_number(out, "running", load->running);
        ctl_json_number(out, "waiting", load->waiting);
        ctl_json_number(out, "slots_free", load->slots_free);
        ctl_json_number(out, "slots_total", load->slots_total);
        ctl_json_number(out, "pages_free", load->pages_free);
        ctl_json_number(out, "pages_bound", load->pages_bound);
        ctl_json_number(out, "pages_total", load->pages_total);
        ctl_json_number(out, "transfers_open", status->transfers_open);
    } else if (ctl_member_is_node(member)) {
        ctl_json_text(out, "error", call->err.text);
    }
    sl_buf_putc(out, '}');
}

static void print(const ctl_session *session, const ctl_call *calls, const ctl_call *view)
{
    const ctl_options *options = ctl_session_options(session);
    sl_buf out;
    sl_buf_init(&out, 0);
    if (options->json) {
        ctl_json_open(&out, NULL, '{');
        ctl_json_text(&out, "cluster", options->cluster);
        ctl_json_open(&out, "members", '[');
    } else {
        sl_buf_printf(&out, "%-20s %-8s %-10s %-22s %-8s %7s %8s %8s %15s\n", "NAME", "ROLE",
                      "STATE", "CONTROL", "VERSION", "WEIGHTS", "RUNNING", "WAITING",
                      "PAGES USED/ALL");
    }
    for (size_t i = 0; i < ctl_session_count(session); i++) {
        const clu_member_info *member = ctl_session_member(session, i);
        if (options->json)
            write_member(member, &calls[i], view, &out);
        else
            print_row(member, &calls[i], view, &out);
    }
    if (options->json)
        sl_buf_puts(&out, "]}\n");
    ctl_print(&out);
}

int ctl_members(ctl_session *session, const char *const *words)
{
    static const Sluice__V1__ListMembersRequest REQUEST = SLUICE__V1__LIST_MEMBERS_REQUEST__INIT;
    ctl_call *calls = ctl_ask_all_statuses(session), view;
    sl_err err;
    /* Without a router the table lacks who is cordoned, no more. */
    (void)!sl_is_ok(
        ctl_ask_router(session, &rpc_method_cluster_list_members, &REQUEST.base, &view, &err));
    print(session, calls, &view);
    ctl_calls_free(session, calls);
    ctl_call_fini(&view);
    return CTL_EXIT_OK;
}
