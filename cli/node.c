/* `sluicectl node` and `version`: what members say of themselves. */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "proto/sluice/v1/node.pb-c.h"

static const Sluice__V1__NodeStatus *status_of(const ctl_call *call)
{
    return (const Sluice__V1__NodeStatus *)call->reply;
}

/* ---- node ---- */

static void write_load(sl_buf *out, const Sluice__V1__Load *load)
{
    ctl_json_number(out, "running", load->running);
    ctl_json_number(out, "waiting", load->waiting);
    ctl_json_number(out, "queued_tokens", load->queued_tokens);
    ctl_json_number(out, "slots_free", load->slots_free);
    ctl_json_number(out, "slots_total", load->slots_total);
    ctl_json_number(out, "pages_free", load->pages_free);
    ctl_json_number(out, "pages_bound", load->pages_bound);
    ctl_json_number(out, "pages_total", load->pages_total);
}

static void write_node(sl_buf *out, const clu_member_info *member, const ctl_call *call)
{
    char incarnation[17];
    const Sluice__V1__NodeStatus *status = status_of(call);
    snprintf(incarnation, sizeof(incarnation), "%016llx", (unsigned long long)member->incarnation);
    ctl_json_open(out, NULL, '{');
    ctl_json_text(out, "name", member->name);
    ctl_json_text(out, "role", status ? status->role : member->role);
    ctl_json_text(out, "state", status ? status->state : clu_member_state_name(member->state));
    ctl_json_text(out, "control", member->control);
    ctl_json_text(out, "kv", member->kv);
    ctl_json_text(out, "metrics", member->metrics);
    ctl_json_text(out, "incarnation", incarnation);
    ctl_json_text(out, "version", member->version);
    ctl_json_text(out, "numerics_id", member->stamp.numerics_id);
    ctl_json_text(out, "model_hash", member->stamp.model_hash);
    ctl_json_text(out, "weights_version", member->stamp.weights_version);
    ctl_json_text(out, "cache_format", member->stamp.cache_format);
    ctl_json_number(out, "context_max", member->context_max);
    if (status && status->load)
        write_load(out, status->load);
    if (status) {
        ctl_json_number(out, "transfers_open", status->transfers_open);
        ctl_json_number(out, "peers_open", status->peers_open);
    }
    sl_buf_puts(out, "}\n");
}

static void print_node(sl_buf *out, const clu_member_info *member, const ctl_call *call)
{
    const Sluice__V1__NodeStatus *status = status_of(call);
    const char *texts[][2] = {
        {"role", status ? status->role : member->role},
        {"state", status ? status->state : clu_member_state_name(member->state)},
        {"control", member->control},
        {"kv", member->kv},
        {"metrics", member->metrics},
        {"version", member->version},
        {"numerics", member->stamp.numerics_id},
        {"model hash", member->stamp.model_hash},
        {"weights version", member->stamp.weights_version},
        {"cache format", member->stamp.cache_format},
    };
    sl_buf_printf(out, "%s\n", member->name);
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        if (*texts[i][1])
            sl_buf_printf(out, "  %-17s %s\n", texts[i][0], texts[i][1]);
    sl_buf_printf(out, "  %-17s %016llx\n", "incarnation", (unsigned long long)member->incarnation);
    if (!status || !status->load)
        return;
    const Sluice__V1__Load *load = status->load;
    sl_buf_printf(out, "  %-17s %u running, %u waiting, %llu tokens queued\n", "requests",
                  load->running, load->waiting, (unsigned long long)load->queued_tokens);
    sl_buf_printf(out, "  %-17s %u of %u free\n", "slots", load->slots_free, load->slots_total);
    sl_buf_printf(out, "  %-17s %u of %u used, %u may be promised\n", "pages", load->pages_bound,
                  load->pages_total, load->pages_free);
    sl_buf_printf(out, "  %-17s %u open, with %u peers\n", "transfers", status->transfers_open,
                  status->peers_open);
}

int ctl_node(ctl_session *session, const char *const *words)
{
    static const Sluice__V1__NodeStatusRequest REQUEST = SLUICE__V1__NODE_STATUS_REQUEST__INIT;
    const clu_member_info *member;
    ctl_call call = {0};
    sl_err err;
    sl_buf out;
    sl_status status = ctl_session_find(session, words[0], &member, &err);
    if (sl_is_ok(status) && ctl_member_is_node(member))
        status = ctl_ask(session, member, &rpc_method_node_get_status, &REQUEST.base, &call, &err);
    if (!sl_is_ok(status)) {
        ctl_call_fini(&call);
        return ctl_fail(&err);
    }
    sl_buf_init(&out, 0);
    if (ctl_session_options(session)->json)
        write_node(&out, member, &call);
    else
        print_node(&out, member, &call);
    ctl_print(&out);
    ctl_call_fini(&call);
    return CTL_EXIT_OK;
}

/* ---- version ---- */

int ctl_version(ctl_session *session, const char *const *words)
{
    bool json = ctl_session_options(session)->json;
    sl_buf out;
    sl_buf_init(&out, 0);
    if (json) {
        ctl_json_open(&out, NULL, '{');
        ctl_json_text(&out, "sluicectl", SL_VERSION);
        ctl_json_open(&out, "members", '[');
    } else {
        sl_buf_printf(&out, "%-20s %s\n", "sluicectl", SL_VERSION);
    }
    for (size_t i = 0; i < ctl_session_count(session); i++) {
        const clu_member_info *member = ctl_session_member(session, i);
        if (json) {
            ctl_json_open(&out, NULL, '{');
            ctl_json_text(&out, "name", member->name);
            ctl_json_text(&out, "version", member->version);
            ctl_json_text(&out, "weights_version", member->stamp.weights_version);
            sl_buf_putc(&out, '}');
        } else {
            sl_buf_printf(&out, "%-20s %s%s%s\n", member->name, member->version,
                          member->stamp.weights_version[0] ? ", weights " : "",
                          member->stamp.weights_version);
        }
    }
    if (json)
        sl_buf_puts(&out, "]}\n");
    ctl_print(&out);
    return CTL_EXIT_OK;
}
