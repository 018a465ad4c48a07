/* `sluicectl members`: the records in etcd, and what each node says of itself. */
#include <stdio.h>

#include "base/alloc.h"
#include "cli/commands.h"
#include "proto/sluice/v1/node.pb-c.h"

static const Sluice__V1__NodeStatus *status_of(const ctl_call *call)
{
    return (const Sluice__V1__NodeStatus *)call->reply;
}

static const char *state_of(const ctl_session *session, const clu_member_info *member,
                            const ctl_call *call)
{
    bool suspect;
    if (call->reply)
        return status_of(call)->state;
    if (ctl_member_is_node(member))
        return "no answer";
    if (ctl_session_has(session, member, &suspect) && suspect)
        return "suspect";
    return clu_member_state_name(member->state);
}

static void print_row(const ctl_session *session, const clu_member_info *member,
                      const ctl_call *call, sl_buf *out)
{
    sl_buf_printf(out, "%-20s %-8s %-10s %-22s %-8s", member->name, member->role,
                  state_of(session, member, call), member->control, member->version);
    const Sluice__V1__NodeStatus *status = status_of(call);
    if (status && status->load)
        sl_buf_printf(out, " %8u %8u %7u/%-7u", status->load->running, status->load->waiting,
                      status->load->pages_free, status->load->pages_total);
    sl_buf_putc(out, '\n');
}

static void write_member(const ctl_session *session, const clu_member_info *member,
                         const ctl_call *call, sl_buf *out)
{
    char incarnation[17];
    const Sluice__V1__NodeStatus *status = status_of(call);
    snprintf(incarnation, sizeof(incarnation), "%016llx", (unsigned long long)member->incarnation);
    ctl_json_open(out, NULL, '{');
    ctl_json_text(out, "name", member->name);
    ctl_json_text(out, "role", member->role);
    ctl_json_text(out, "state", state_of(session, member, call));
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
        ctl_json_number(out, "pages_total", load->pages_total);
        ctl_json_number(out, "transfers_open", status->transfers_open);
    } else if (ctl_member_is_node(member)) {
        ctl_json_text(out, "error", call->err.text);
    }
    sl_buf_putc(out, '}');
}

static void print(const ctl_session *session, const ctl_call *calls)
{
    const ctl_options *options = ctl_session_options(session);
    sl_buf out;
    sl_buf_init(&out, 0);
    if (options->json) {
        ctl_json_open(&out, NULL, '{');
        ctl_json_text(&out, "cluster", options->cluster);
        ctl_json_open(&out, "members", '[');
    } else {
        sl_buf_printf(&out, "%-20s %-8s %-10s %-22s %-8s %8s %8s %15s\n", "NAME", "ROLE", "STATE",
                      "CONTROL", "VERSION", "RUNNING", "WAITING", "PAGES FREE/ALL");
    }
    for (size_t i = 0; i < ctl_session_count(session); i++) {
        const clu_member_info *member = ctl_session_member(session, i);
        if (options->json)
            write_member(session, member, &calls[i], &out);
        else
            print_row(session, member, &calls[i], &out);
    }
    if (options->json)
        sl_buf_puts(&out, "]}\n");
    ctl_print(&out);
}

int ctl_members(ctl_session *session, const char *argument)
{
    static const Sluice__V1__NodeStatusRequest REQUEST = SLUICE__V1__NODE_STATUS_REQUEST__INIT;
    size_t count = ctl_session_count(session);
    ctl_call *calls = sl_alloc(count, sizeof(*calls), "sluicectl calls");
    for (size_t i = 0; i < count; i++)
        if (ctl_member_is_node(ctl_session_member(session, i)))
            ctl_call_start(session, &calls[i], ctl_session_member(session, i),
                           &rpc_method_node_get_status, &REQUEST.base);
    ctl_session_wait(session);
    print(session, calls);
    for (size_t i = 0; i < count; i++)
        ctl_call_fini(&calls[i]);
    sl_free(calls);
    return CTL_EXIT_OK;
}
