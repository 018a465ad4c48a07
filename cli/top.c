/* `sluicectl top`: the cluster at work, again and again. Nodes say what they have, routers' metrics
 * what clients get; rates are between two looks, which a static keeps. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/balance.h"
#include "cli/commands.h"
#include "cli/rank_loads.h"
#include "cli/scrape.h"
#include "proto/sluice/v1/node.pb-c.h"

/* Counters over all routers (and, for bytes, nodes), at one moment. */
typedef struct counters {
    double generated, prompt, hits, requests, migrations;
    double ttft_sum, ttft_count, tpot_sum, tpot_count;
    double kv_bytes;
} counters;

typedef struct sample {
    sl_time_ns at;
    counters c;
    double running, waiting;
    uint32_t silent; /* members without metrics */
    ctl_rank *ranks; /* [members] */
} sample;

static void add_member(sample *now, const char *text, bool node)
{
    counters *c = &now->c;
    if (node) {
        c->kv_bytes += ctl_metric_sum(text, "sluice_kv_transfer_bytes_total");
        return;
    }
    c->generated += ctl_metric_sum(text, "sluice_generation_tokens_total");
    c->prompt += ctl_metric_sum(text, "sluice_prompt_tokens_total");
    c->hits += ctl_metric_sum(text, "sluice_prefix_hit_tokens_total");
    c->requests += ctl_metric_sum(text, "sluice_requests_total");
    c->migrations += ctl_metric_sum(text, "sluice_request_migrations_total");
    c->ttft_sum += ctl_metric_sum(text, "sluice_ttft_seconds_sum");
    c->ttft_count += ctl_metric_sum(text, "sluice_ttft_seconds_count");
    c->tpot_sum += ctl_metric_sum(text, "sluice_tpot_seconds_sum");
    c->tpot_count += ctl_metric_sum(text, "sluice_tpot_seconds_count");
    now->running += ctl_metric_sum(text, "sluice_running_requests");
    now->waiting += ctl_metric_sum(text, "sluice_waiting_requests");
}

/* Those that step together with others say what their experts have worked on. */
static void ask_ranks(ctl_session *session, ctl_rank *ranks, const bool *together)
{
    static const Sluice__V1__ExpertsRequest REQUEST = SLUICE__V1__EXPERTS_REQUEST__INIT;
    size_t count = ctl_session_count(session);
    ctl_call *calls = sl_alloc(count, sizeof(*calls), "sluicectl calls");
    for (size_t i = 0; i < count; i++)
        if (together[i])
            ctl_call_start(session, &calls[i], ctl_session_member(session, i),
                           &rpc_method_node_get_experts, &REQUEST.base);
    ctl_session_wait(session);
    for (size_t i = 0; i < count; i++) {
        const Sluice__V1__ExpertsReply *reply = (const Sluice__V1__ExpertsReply *)calls[i].reply;
        if (!reply)
            continue;
        snprintf(ranks[i].instance, sizeof(ranks[i].instance), "%s", reply->instance);
        ranks[i].incarnation = ctl_session_member(session, i)->incarnation;
        for (size_t at = 0; at < reply->n_rows; at++)
            ranks[i].rows += reply->rows[at];
    }
    ctl_calls_free(session, calls);
}

static sample look(ctl_session *session)
{
    static ctl_ranks_seen seen;
    size_t count = ctl_session_count(session);
    bool *together = sl_alloc(count, sizeof(*together), "sluicectl ranks");
    sample now = {.at = sl_now_ns(), .ranks = sl_alloc(count, sizeof(ctl_rank), "sluicectl ranks")};
    sl_time_ns deadline = now.at + ctl_session_options(session)->call_timeout_ns;
    for (size_t i = 0; i < ctl_session_count(session); i++) {
        const clu_member_info *member = ctl_session_member(session, i);
        sl_buf text;
        sl_err err;
        if (!member->metrics[0])
            continue;
        if (sl_is_ok(ctl_scrape(member->metrics, deadline, &text, &err))) {
            add_member(&now, text.data, ctl_member_is_node(member));
            together[i] = ctl_metric_sum(text.data, "sluice_ep_ranks") > 1;
        } else {
            now.silent++;
        }
        sl_buf_fini(&text);
    }
    ask_ranks(session, now.ranks, together);
    ctl_rank_loads(now.ranks, count, &seen);
    sl_free(together);
    return now;
}

/* What happened between two looks. */
typedef struct rates {
    double tokens, prompt, requests, kv_bytes; /* a second */
    double ttft_s, tpot_s;                     /* means; < 0: none ended */
} rates;

static double mean(double sum, double count)
{
    return count > 0 ? sum / count : -1;
}

static rates rates_of(const sample *before, const sample *now)
{
    static const counters NONE;
    const counters *a = before->at ? &before->c : &NONE, *b = &now->c;
    double seconds = before->at ? (double)(now->at - before->at) / 1e9 : 0;
    rates r = {.ttft_s = mean(b->ttft_sum - a->ttft_sum, b->ttft_count - a->ttft_count),
               .tpot_s = mean(b->tpot_sum - a->tpot_sum, b->tpot_count - a->tpot_count)};
    if (seconds <= 0)
        return r;
    r.tokens = (b->generated - a->generated) / seconds;
    r.prompt = (b->prompt - a->prompt) / seconds;
    r.requests = (b->requests - a->requests) / seconds;
    r.kv_bytes = (b->kv_bytes - a->kv_bytes) / seconds;
    return r;
}

static void ms_text(double seconds, char *out_text, size_t size)
{
    if (seconds < 0)
        snprintf(out_text, size, "-");
    else
        snprintf(out_text, size, "%.1f ms", seconds * 1e3);
}

static void print_head(sl_buf *out, const ctl_session *session, const sample *now, const rates *r)
{
    char ttft[32], tpot[32];
    ms_text(r->ttft_s, ttft, sizeof(ttft));
    ms_text(r->tpot_s, tpot, sizeof(tpot));
    sl_buf_printf(out, "cluster %s: %zu members%s\n", ctl_session_options(session)->cluster,
                  ctl_session_count(session), now->silent ? ", some without metrics" : "");
    sl_buf_printf(out,
                  "requests %.0f running, %.0f waiting, %.1f/s; first token %s, per token %s\n",
                  now->running, now->waiting, r->requests, ttft, tpot);
    sl_buf_printf(out,
                  "tokens %.0f/s generated, %.0f/s of prompts; cache %.1f MB/s between nodes\n",
                  r->tokens, r->prompt, r->kv_bytes / 1e6);
}

static void print_instances(sl_buf *out, const Sluice__V1__GetBalanceReply *leader)
{
    for (size_t i = 0; leader && i < leader->n_instances; i++) {
        const Sluice__V1__InstanceBalance *of = leader->instances[i];
        sl_buf_printf(out, "experts of %s: --rebalance %s: %s\n", of->instance, leader->rebalance,
                      of->reason);
    }
}

static void bar(sl_buf *out, uint32_t used, uint32_t total)
{
    uint32_t filled = total ? (uint32_t)((uint64_t)used * 10 / total) : 0;
    sl_buf_putc(out, '[');
    for (uint32_t i = 0; i < 10; i++)
        sl_buf_putc(out, i < filled ? '#' : '.');
    sl_buf_putc(out, ']');
}

static void print_node(sl_buf *out, const clu_member_info *member, const ctl_call *call,
                       const ctl_rank *rank)
{
    const Sluice__V1__NodeStatus *status = (const Sluice__V1__NodeStatus *)call->reply;
    if (!status || !status->load) {
        sl_buf_printf(out, "%-16s %-8s %s\n", member->name, member->role, "no answer");
        return;
    }
    const Sluice__V1__Load *load = status->load;
    sl_buf_printf(out, "%-16s %-8s %-13s %5u %5u %8llu ", member->name, status->role, status->state,
                  load->running, load->waiting, (unsigned long long)load->queued_tokens);
    bar(out, load->slots_total - load->slots_free, load->slots_total);
    sl_buf_putc(out, ' ');
    bar(out, load->pages_bound, load->pages_total);
    sl_buf_printf(out, " %5u ", status->transfers_open);
    if (rank->load < 0)
        sl_buf_printf(out, "%7s\n", "-");
    else
        sl_buf_printf(out, "%7.2f\n", rank->load);
}

static void print_table(const ctl_session *session, const ctl_call *calls, const sample *now,
                        const rates *r, const Sluice__V1__GetBalanceReply *leader)
{
    sl_buf out;
    sl_buf_init(&out, 0);
    print_head(&out, session, now, r);
    print_instances(&out, leader);
    sl_buf_printf(&out, "\n%-16s %-8s %-13s %5s %5s %8s %-12s %-12s %5s %7s\n", "NODE", "ROLE",
                  "STATE", "RUN", "WAIT", "QUEUED", "SLOTS", "PAGES", "MOVES", "EXPERTS");
    for (size_t i = 0; i < ctl_session_count(session); i++)
        if (ctl_member_is_node(ctl_session_member(session, i)))
            print_node(&out, ctl_session_member(session, i), &calls[i], &now->ranks[i]);
    ctl_print(&out);
}

static void write_node(sl_buf *out, const clu_member_info *member, const ctl_call *call,
                       const ctl_rank *rank)
{
    const Sluice__V1__NodeStatus *status = (const Sluice__V1__NodeStatus *)call->reply;
    ctl_json_open(out, NULL, '{');
    ctl_json_text(out, "name", member->name);
    ctl_json_text(out, "role", status ? status->role : member->role);
    ctl_json_text(out, "state", status ? status->state : "no answer");
    if (status && status->load) {
        ctl_json_number(out, "running", status->load->running);
        ctl_json_number(out, "waiting", status->load->waiting);
        ctl_json_number(out, "queued_tokens", status->load->queued_tokens);
        ctl_json_number(out, "slots_used", status->load->slots_total - status->load->slots_free);
        ctl_json_number(out, "pages_used", status->load->pages_bound);
        ctl_json_number(out, "transfers_open", status->transfers_open);
    }
    if (rank->instance[0])
        ctl_json_text(out, "instance", rank->instance);
    if (rank->load >= 0)
        ctl_json_number(out, "expert_load_percent", (uint64_t)(rank->load * 100 + 0.5));
    sl_buf_putc(out, '}');
}

static void write_instance(sl_buf *out, const Sluice__V1__InstanceBalance *of)
{
    ctl_json_open(out, NULL, '{');
    ctl_json_text(out, "instance", of->instance);
    ctl_json_number(out, "placement", of->placement_version);
    if (of->imbalance > 0)
        ctl_json_double(out, "imbalance", of->imbalance);
    ctl_json_bool(out, "advised", of->advised);
    if (of->planned_before > 0) {
        ctl_json_double(out, "planned_before", of->planned_before);
        ctl_json_double(out, "planned_after", of->planned_after);
        ctl_json_number(out, "moves", of->moves);
        ctl_json_number(out, "bytes", of->bytes);
    }
    if (of->roll_out_us > 0)
        ctl_json_number(out, "roll_out_us", of->roll_out_us);
    ctl_json_text(out, "reason", of->reason);
    sl_buf_putc(out, '}');
}

/* Whole numbers: micro- and nothing below. */
static void print_json(const ctl_session *session, const ctl_call *calls, const sample *now,
                       const rates *r, const Sluice__V1__GetBalanceReply *leader)
{
    sl_buf out;
    sl_buf_init(&out, 0);
    ctl_json_open(&out, NULL, '{');
    ctl_json_number(&out, "running", (uint64_t)now->running);
    ctl_json_number(&out, "waiting", (uint64_t)now->waiting);
    ctl_json_number(&out, "generated_tokens", (uint64_t)now->c.generated);
    ctl_json_number(&out, "tokens_per_s", (uint64_t)r->tokens);
    ctl_json_number(&out, "prompt_tokens_per_s", (uint64_t)r->prompt);
    if (r->ttft_s >= 0)
        ctl_json_number(&out, "ttft_us", (uint64_t)(r->ttft_s * 1e6));
    if (r->tpot_s >= 0)
        ctl_json_number(&out, "tpot_us", (uint64_t)(r->tpot_s * 1e6));
    ctl_json_number(&out, "kv_bytes_per_s", (uint64_t)r->kv_bytes);
    ctl_json_number(&out, "migrations", (uint64_t)now->c.migrations);
    ctl_json_number(&out, "silent", now->silent);
    ctl_json_text(&out, "rebalance", leader ? leader->rebalance : "");
    ctl_json_open(&out, "instances", '[');
    for (size_t i = 0; leader && i < leader->n_instances; i++)
        write_instance(&out, leader->instances[i]);
    sl_buf_putc(&out, ']');
    ctl_json_open(&out, "nodes", '[');
    for (size_t i = 0; i < ctl_session_count(session); i++)
        if (ctl_member_is_node(ctl_session_member(session, i)))
            write_node(&out, ctl_session_member(session, i), &calls[i], &now->ranks[i]);
    sl_buf_puts(&out, "]}\n");
    ctl_print(&out);
}

int ctl_top(ctl_session *session, const char *const *words)
{
    static sample before; /* of the last look */
    ctl_call *calls = ctl_ask_all_statuses(session);
    sample now = look(session);
    rates r = rates_of(&before, &now);
    ctl_balances balances = ctl_balances_ask(session);
    if (ctl_session_options(session)->json)
        print_json(session, calls, &now, &r, balances.leader);
    else
        print_table(session, calls, &now, &r, balances.leader);
    ctl_balances_free(&balances);
    sl_free(now.ranks);
    now.ranks = NULL;
    before = now;
    ctl_calls_free(session, calls);
    return CTL_EXIT_OK;
}
