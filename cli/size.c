/* `sluicectl size`: what fits into the decode nodes that there are. */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "proto/sluice/v1/node.pb-c.h"

#define PAGE_TOKENS 64u

/* Requests of so many pages each that a node holds at once, from empty. */
static uint64_t node_fits(const Sluice__V1__Load *load, uint64_t pages)
{
    uint64_t by_pages = load->pages_total / pages;
    return by_pages < load->slots_total ? by_pages : load->slots_total;
}

typedef struct sizing {
    uint64_t pages; /* of one request */
    uint64_t fits, least;
    uint32_t nodes;
    uint32_t context_max; /* tokens of one request that a node takes, the largest */
    bool by_slots;        /* of the smallest node: slots end first */
} sizing;

static void add_node(sizing *s, const clu_member_info *member, const Sluice__V1__NodeStatus *status)
{
    uint64_t fits = node_fits(status->load, s->pages);
    s->context_max = member->context_max > s->context_max ? member->context_max : s->context_max;
    s->fits += fits;
    if (s->nodes == 0 || fits < s->least) {
        s->least = fits;
        s->by_slots = status->load->slots_total < status->load->pages_total / s->pages;
    }
    s->nodes++;
}

static void print_sizing(const ctl_options *options, const sizing *s)
{
    uint64_t wanted = (uint64_t)options->requests;
    uint64_t needed = s->least ? (wanted + s->least - 1) / s->least : 0;
    sl_buf out;
    sl_buf_init(&out, 0);
    if (options->json) {
        ctl_json_open(&out, NULL, '{');
        ctl_json_number(&out, "pages_per_request", s->pages);
        ctl_json_number(&out, "decode_nodes", s->nodes);
        ctl_json_number(&out, "fit_at_once", s->fits);
        ctl_json_number(&out, "fit_per_node", s->least);
        ctl_json_text(&out, "bound", s->by_slots ? "slots" : "pages");
        ctl_json_number(&out, "requests", wanted);
        ctl_json_number(&out, "decode_nodes_needed", needed);
        sl_buf_puts(&out, "}\n");
        ctl_print(&out);
        return;
    }
    sl_buf_printf(&out, "a request of %lld + %lld tokens takes %llu cache pages\n",
                  (long long)options->prompt_tokens, (long long)options->answer_tokens,
                  (unsigned long long)s->pages);
    sl_buf_printf(&out, "%u decode nodes hold %llu of them at once (%llu a node, bound by %s)\n",
                  s->nodes, (unsigned long long)s->fits, (unsigned long long)s->least,
                  s->by_slots ? "--max-sequences" : "--kv-memory");
    if (s->least == 0)
        sl_buf_puts(&out, "none fits into a node: give --kv-memory more\n");
    else
        sl_buf_printf(&out,
                      "%llu at once need %llu such nodes; promises over one times the memory "
                      "(--kv-overcommit) are not counted\n",
                      (unsigned long long)wanted, (unsigned long long)needed);
    ctl_print(&out);
}

int ctl_size(ctl_session *session, const char *const *words)
{
    const ctl_options *options = ctl_session_options(session);
    ctl_call *calls = ctl_ask_all_statuses(session);
    uint64_t tokens = (uint64_t)(options->prompt_tokens + options->answer_tokens);
    sizing s = {.pages = (tokens + PAGE_TOKENS - 1) / PAGE_TOKENS};
    for (size_t i = 0; i < ctl_session_count(session); i++) {
        const Sluice__V1__NodeStatus *status = (const Sluice__V1__NodeStatus *)calls[i].reply;
        if (status && status->load && strcmp(status->role, "prefill") != 0)
            add_node(&s, ctl_session_member(session, i), status);
    }
    ctl_calls_free(session, calls);
    if (s.nodes == 0) {
        sl_err err;
        (void)sl_fail(&err, SL_NOT_FOUND, "no decode node answers: there is nothing to size by");
        return ctl_fail(&err);
    }
    if (s.context_max > 0 && tokens > s.context_max) {
        sl_err err;
        (void)sl_fail(&err, SL_TOO_LARGE,
                      "a request of %lld + %lld tokens is over the context of %u that the nodes "
                      "have, by the model or --context-max: memory does not change that",
                      (long long)options->prompt_tokens, (long long)options->answer_tokens,
                      s.context_max);
        return ctl_fail(&err);
    }
    print_sizing(options, &s);
    return CTL_EXIT_OK;
}
