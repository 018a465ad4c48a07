/* `sluicectl requests` and `cancel`. */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "proto/sluice/v1/cluster.pb-c.h"

typedef Sluice__V1__RequestInfo info;

static void print_row(sl_buf *out, const info *at, const char *router)
{
    char age[32];
    ctl_age_text(at->age_ms, age, sizeof(age));
    sl_buf_printf(out, "%-20s %-10s %-10s %8s %8u %8u/%-8u %-14s %-14s %s\n", at->id, at->kind,
                  at->state, age, at->prompt_tokens, at->generated_tokens, at->max_tokens,
                  *at->decode ? at->decode : "-", *at->prefill ? at->prefill : "-", router);
}

static void write_row(sl_buf *out, const info *at, const char *router)
{
    ctl_json_open(out, NULL, '{');
    ctl_json_text(out, "id", at->id);
    ctl_json_text(out, "kind", at->kind);
    ctl_json_text(out, "state", at->state);
    ctl_json_number(out, "age_ms", at->age_ms);
    ctl_json_number(out, "prompt_tokens", at->prompt_tokens);
    ctl_json_number(out, "generated_tokens", at->generated_tokens);
    ctl_json_number(out, "max_tokens", at->max_tokens);
    ctl_json_number(out, "choices", at->choices);
    ctl_json_text(out, "decode", at->decode);
    ctl_json_text(out, "prefill", at->prefill);
    ctl_json_text(out, "router", router);
    sl_buf_putc(out, '}');
}

static uint64_t add_rows(sl_buf *out, bool json, const Sluice__V1__ListRequestsReply *reply)
{
    for (size_t i = 0; i < reply->n_requests; i++) {
        if (json)
            write_row(out, reply->requests[i], reply->router);
        else
            print_row(out, reply->requests[i], reply->router);
    }
    return reply->total;
}

int ctl_requests(ctl_session *session, const char *const *words)
{
    const ctl_options *options = ctl_session_options(session);
    Sluice__V1__ListRequestsRequest request = SLUICE__V1__LIST_REQUESTS_REQUEST__INIT;
    request.limit = (uint32_t)options->limit;
    ctl_call *calls =
        ctl_ask_all_routers(session, &rpc_method_cluster_list_requests, &request.base);
    uint64_t total = 0, silent = 0;
    sl_buf out;
    sl_buf_init(&out, 0);
    if (options->json)
        sl_buf_puts(&out, "{\"requests\":[");
    else
        sl_buf_printf(&out, "%-20s %-10s %-10s %8s %8s %17s %-14s %-14s %s\n", "REQUEST", "KIND",
                      "STATE", "AGE", "PROMPT", "GENERATED/MAX", "DECODE", "PREFILL", "ROUTER");
    for (size_t i = 0; i < ctl_session_count(session); i++) {
        if (calls[i].reply) {
            total += add_rows(&out, options->json,
                              (const Sluice__V1__ListRequestsReply *)calls[i].reply);
        } else if (!ctl_member_is_node(ctl_session_member(session, i))) {
            fprintf(stderr, "sluicectl: %s\n", calls[i].err.text);
            silent++;
        }
    }
    if (options->json) {
        sl_buf_putc(&out, ']');
        ctl_json_number(&out, "total", total);
        ctl_json_number(&out, "unanswered", silent);
        sl_buf_puts(&out, "}\n");
    } else {
        sl_buf_printf(&out, "%llu in all\n", (unsigned long long)total);
    }
    ctl_print(&out);
    ctl_calls_free(session, calls);
    return silent ? CTL_EXIT_FAILURE : CTL_EXIT_OK;
}

const char *ctl_request_id(const char *word)
{
    static const char *const BEFORE[] = {"chatcmpl-", "cmpl-"};
    for (size_t i = 0; i < 2; i++)
        if (strncmp(word, BEFORE[i], strlen(BEFORE[i])) == 0)
            return word + strlen(BEFORE[i]);
    return word;
}

/* Whose request it is only its router knows: all are told. */
int ctl_cancel(ctl_session *session, const char *const *words)
{
    Sluice__V1__CancelRequestRequest request = SLUICE__V1__CANCEL_REQUEST_REQUEST__INIT;
    request.id = (char *)ctl_request_id(words[0]);
    ctl_call *calls =
        ctl_ask_all_routers(session, &rpc_method_cluster_cancel_request, &request.base);
    const Sluice__V1__CancelRequestReply *found = NULL;
    sl_err err;
    (void)sl_fail(&err, SL_NOT_FOUND, "no router is a member of this cluster");
    for (size_t i = 0; i < ctl_session_count(session); i++) {
        if (calls[i].reply)
            found = (const Sluice__V1__CancelRequestReply *)calls[i].reply;
        else if (!ctl_member_is_node(ctl_session_member(session, i)))
            err = calls[i].err;
    }
    if (found) {
        sl_buf out;
        sl_buf_init(&out, 0);
        if (ctl_session_options(session)->json) {
            ctl_json_open(&out, NULL, '{');
            ctl_json_text(&out, "cancelled", found->request->id);
            ctl_json_text(&out, "state", found->request->state);
            ctl_json_number(&out, "generated_tokens", found->request->generated_tokens);
            sl_buf_puts(&out, "}\n");
        } else {
            sl_buf_printf(&out, "%s is cancelled, with %u tokens generated\n", found->request->id,
                          found->request->generated_tokens);
        }
        ctl_print(&out);
    }
    ctl_calls_free(session, calls);
    return found ? CTL_EXIT_OK : ctl_fail(&err);
}
