/* See metrics.h. */
#include "router/metrics.h"

static void init_leader(rtr_metrics *m, sl_metrics *r)
{
    m->leader = sl_gauge(r, "sluice_leader", "1: this router leads the cluster", NULL);
    m->scale_nodes = sl_gauge(r, "sluice_scale_nodes", "Members that take work", "role");
    m->scale_wanted = sl_gauge(r, "sluice_scale_wanted", "Nodes that are wanted", "role");
    m->scale_advised = sl_gauge(r, "sluice_scale_advised",
                                "Nodes that load asks for (without a plan: wanted)", "role");
    m->scale_queue = sl_gauge(r, "sluice_scale_queue",
                              "Requests that wait in prefill nodes, and for a place in decode "
                              "nodes (the leader tells, while it plans)",
                              "role");
    m->scale_busy =
        sl_gauge(r, "sluice_scale_busy",
                 "Share of the nodes in use (the leader tells, while it plans)", "role");
    m->ep_imbalance = sl_gauge(
        r, "sluice_ep_imbalance",
        "Load of an instance's heaviest rank over the mean, in the last window (the leader "
        "tells, while it looks)",
        "instance");
    m->rebalances = sl_counter(r, "sluice_rebalances_total",
                               "Placements that this router planned and rolled out", "instance");
    m->rebalance_seconds =
        sl_gauge(r, "sluice_rebalance_seconds",
                 "From writing the last of them until all ranks used it", "instance");
}

void rtr_metrics_init(rtr_metrics *m, sl_metrics *r)
{
    static const char *const REASONS[] = {"prefill_lost",    "prefill_failed", "prefill_stalled",
                                          "transfer_failed", "decode_lost",    "decode_failed",
                                          "decode_stalled",  "drained"};
    static const char *const PULLS[] = {"fetched", "known", "stale", "late", "failed"};
    m->registry = r;
    m->requests = sl_counter(r, "sluice_requests_total", "Requests by HTTP status", "code");
    m->ttft_seconds = sl_histogram(r, "sluice_ttft_seconds", "Arrival to first token",
                                   SL_SECONDS_BOUNDS, SL_SECONDS_BOUND_COUNT);
    m->tpot_seconds = sl_histogram(r, "sluice_tpot_seconds", "Time per token after the first",
                                   SL_SECONDS_BOUNDS, SL_SECONDS_BOUND_COUNT);
    m->targets =
        sl_counter(r, "sluice_target_requests_total",
                   "Requests that kept or missed --ttft-target and --tpot-target", "outcome");
    m->queue_seconds = sl_histogram(r, "sluice_queue_seconds", "Arrival to admission",
                                    SL_SECONDS_BOUNDS, SL_SECONDS_BOUND_COUNT);
    m->running = sl_gauge(r, "sluice_running_requests", "Requests that hold a decode slot", NULL);
    m->waiting = sl_gauge(r, "sluice_waiting_requests", "Requests without a place yet", NULL);
    m->prompt_tokens = sl_counter(r, "sluice_prompt_tokens_total", "Prompt tokens", NULL);
    m->generation_tokens = sl_counter(r, "sluice_generation_tokens_total",
                                      "Tokens generated for clients, as they come", NULL);
    m->prefix_hit_tokens =
        sl_counter(r, "sluice_prefix_hit_tokens_total", "Prompt tokens found in caches", NULL);
    m->migrations =
        sl_counter(r, "sluice_request_migrations_total",
                   "Requests that went on elsewhere, after a loss or a drain", "reason");
    m->migrated_tokens = sl_counter(r, "sluice_request_migrated_tokens_total",
                                    "Their tokens before that: kept = in pages that survived and "
                                    "were fetched, computed = computed again",
                                    "how");
    sl_metric_add(m->migrated_tokens, "kept", 0);
    sl_metric_add(m->migrated_tokens, "computed", 0);
    m->pulls = sl_counter(
        r, "sluice_prefix_pulls_total",
        "Prompts whose first pages a prefill node was to fetch, by what came of it", "outcome");
    m->pulled_tokens = sl_counter(r, "sluice_prefix_pulled_tokens_total",
                                  "Tokens that prefill nodes fetched instead of computing", NULL);
    for (size_t i = 0; i < sizeof PULLS / sizeof PULLS[0]; i++)
        sl_metric_add(m->pulls, PULLS[i], 0);
    m->attaches = sl_counter(r, "sluice_request_attaches_total",
                             "Requests that went on after a decode node's stream broke", NULL);
    m->refusals = sl_counter(r, "sluice_decode_refusals_total", "Admissions refused", "node");
    m->tool_calls = sl_counter(r, "sluice_tool_calls_total", "Tool calls in answers", NULL);
    m->output_oddities =
        sl_counter(r, "sluice_output_oddities_total", "Malformed parts of answers", "kind");
    m->calls_without_reasoning =
        sl_counter(r, "sluice_calls_without_reasoning_total",
                   "Assistant messages with calls but no reasoning, in thinking mode", NULL);
    m->usable_nodes = sl_gauge(r, "sluice_usable_nodes", "Nodes that take requests now", "role");
    m->etcd_connected = sl_gauge(r, "sluice_etcd_connected", "1 while etcd answers", NULL);
    m->view_frozen =
        sl_gauge(r, "sluice_view_frozen", "1 while many members' leases are lost at once", NULL);
    init_leader(m, r);
    m->http_connections = sl_gauge(r, "sluice_http_connections", "Open client connections", NULL);
    m->heap_bytes = sl_gauge(r, "sluice_heap_bytes", "Bytes held by malloc", NULL);
    for (size_t i = 0; i < sizeof REASONS / sizeof REASONS[0]; i++)
        sl_metric_add(m->migrations, REASONS[i], 0);
}

void rtr_metrics_note_output(const rtr_metrics *m, const mdl_output_counts *c)
{
    sl_metric_add(m->tool_calls, NULL, c->calls);
    if (c->broken_calls)
        sl_metric_add(m->output_oddities, "broken_call", c->broken_calls);
    if (c->unknown_names)
        sl_metric_add(m->output_oddities, "unknown_name", c->unknown_names);
    if (c->invalid_json_values)
        sl_metric_add(m->output_oddities, "invalid_value", c->invalid_json_values);
    if (c->duplicate_keys)
        sl_metric_add(m->output_oddities, "duplicate_key", c->duplicate_keys);
}
