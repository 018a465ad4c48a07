/* Numbers that are read off the services rather than counted: refreshed by a timer, and before they
 * are told. Thread: control loop. */
#include <stdio.h>

#include "base/alloc.h"
#include "base/log.h"
#include "engine/parallel.h"
#include "node/internal.h"

static void ranks_create(nod_host *host)
{
    sl_metrics *metrics = host->metrics;
    if (!nod_ranks_used(host))
        return;
    const mdl_shape *shape = eng_model_shape(host->model);
    size_t experts = (size_t)shape->expert_count;
    host->expert_rows = sl_alloc(eng_moe_layers(shape) * experts, sizeof(uint64_t), "expert loads");
    host->expert_seen = sl_alloc(experts, sizeof(uint64_t), "expert loads");
    host->ep_ranks = sl_gauge(metrics, "sluice_ep_ranks", "ranks that step together", NULL);
    host->ep_expert_bytes = sl_gauge(metrics, "sluice_ep_expert_bytes",
                                     "memory of the experts' weights that this rank holds", NULL);
    host->ep_placement = sl_gauge(metrics, "sluice_ep_placement_version",
                                  "version of the placement table in use", NULL);
    host->ep_formations = sl_counter(metrics, "sluice_ep_formations_total",
                                     "formations that this rank has gone over to", NULL);
    host->expert_tokens =
        sl_counter(metrics, "sluice_expert_tokens_total",
                   "rows that each expert has worked on here, over all layers", "expert");
    host->ep_bytes =
        sl_counter(metrics, "sluice_ep_bytes_total",
                   "bytes sent to other ranks: rows (dispatch), outputs (combine)", "phase");
    host->ep_rows = sl_counter(metrics, "sluice_ep_rows_total",
                               "rows sent to and received from other ranks' experts, a row once a "
                               "rank and layer",
                               "direction");
    host->ep_runs =
        sl_counter(metrics, "sluice_ep_runs_total",
                   "runs of the instance: steps and rounds of drafts, of any rank", NULL);
    host->ep_wait = sl_counter(metrics, "sluice_ep_wait_seconds_total",
                               "time that this rank has waited for others inside runs", NULL);
}

static void show_formation(nod_host *host)
{
    sl_metric_set(host->ep_ranks, NULL, __builtin_popcountll(com_group_mask(host->group)));
    sl_metric_set(host->ep_placement, NULL, (double)host->placement);
    sl_metric_add(host->ep_formations, NULL, 1);
}

static void update_experts(nod_host *host)
{
    const mdl_shape *shape = eng_model_shape(host->model);
    uint32_t layers = eng_moe_layers(shape), experts = (uint32_t)shape->expert_count;
    char name[12];
    eng_engine_expert_loads(host->engine, host->expert_rows);
    for (uint32_t e = 0; e < experts; e++) {
        uint64_t rows = 0;
        for (uint32_t layer = 0; layer < layers; layer++)
            rows += host->expert_rows[(size_t)layer * experts + e];
        snprintf(name, sizeof(name), "%u", e);
        sl_metric_add(host->expert_tokens, name, (double)(rows - host->expert_seen[e]));
        host->expert_seen[e] = rows;
    }
    sl_metric_set(host->ep_expert_bytes, NULL, (double)eng_model_expert_bytes(host->model));
}

static void update_ranks(nod_host *host)
{
    com_stats now, *seen = &host->ep_seen;
    if (!host->group)
        return;
    update_experts(host);
    com_stats_get(host->group, &now);
    sl_metric_add(host->ep_bytes, "dispatch", (double)(now.dispatch_bytes - seen->dispatch_bytes));
    sl_metric_add(host->ep_bytes, "combine", (double)(now.combine_bytes - seen->combine_bytes));
    sl_metric_add(host->ep_rows, "sent", (double)(now.rows_sent - seen->rows_sent));
    sl_metric_add(host->ep_rows, "received", (double)(now.rows_received - seen->rows_received));
    sl_metric_add(host->ep_runs, NULL, (double)(now.runs - seen->runs));
    sl_metric_add(host->ep_wait, NULL, (double)(now.wait_ns - seen->wait_ns) / 1e9);
    *seen = now;
}

void nod_gauges_group(nod_host *host, com_group *group)
{
    if (host->group && host->ep_ranks)
        update_ranks(host);
    host->group = group;
    host->ep_seen = (com_stats){0};
    if (host->ep_ranks)
        show_formation(host);
}

void nod_gauges_destroy(nod_host *host)
{
    if (host->metrics)
        sl_metrics_set_refresh(host->metrics, NULL, NULL);
    sl_free(host->expert_rows);
    sl_free(host->expert_seen);
}

static void transfers_create(nod_host *host)
{
    sl_metrics *metrics = host->metrics;
    host->kv_gauge =
        sl_gauge(metrics, "sluice_kv_open", "open objects of cache transfer, by kind", "kind");
    host->kv_received =
        sl_counter(metrics, "sluice_kv_received_bytes_total", "verified cache bytes fetched", NULL);
    host->kv_pieces =
        sl_counter(metrics, "sluice_kv_received_pieces_total", "verified pieces fetched", NULL);
    host->kv_mismatches = sl_counter(metrics, "sluice_kv_sum_mismatches_total",
                                     "fetched pieces whose sum differed", NULL);
    host->kv_closes = sl_counter(metrics, "sluice_kv_closes_forced_total",
                                 "connections closed for a deadline or a stall", NULL);
    host->kv_restarts =
        sl_counter(metrics, "sluice_kv_restarts_total",
                   "times that the transport was started anew, all connections ended", NULL);
    host->kv_restarts_deaf =
        sl_counter(metrics, "sluice_kv_restarts_deaf_total",
                   "of those: a process that died had left shared memory unread", NULL);
}

static void update_transfers(nod_host *host)
{
    kvt_stats now, seen = host->kv_seen;
    kvt_stats_get(host->kvt, &now);
    sl_metric_set(host->kv_gauge, "sends", now.sends_open);
    sl_metric_set(host->kv_gauge, "recvs", now.recvs_open);
    sl_metric_set(host->kv_gauge, "peers", now.peers_open);
    sl_metric_set(host->kv_gauge, "requests", now.requests_open);
    sl_metric_add(host->kv_received, NULL, (double)(now.bytes_received - seen.bytes_received));
    sl_metric_add(host->kv_pieces, NULL, (double)(now.pieces_received - seen.pieces_received));
    sl_metric_add(host->kv_mismatches, NULL, (double)(now.sum_mismatches - seen.sum_mismatches));
    sl_metric_add(host->kv_closes, NULL, (double)(now.closes_forced - seen.closes_forced));
    sl_metric_add(host->kv_restarts, NULL, (double)(now.restarts - seen.restarts));
    sl_metric_add(host->kv_restarts_deaf, NULL, (double)(now.restarts_deaf - seen.restarts_deaf));
    host->kv_seen = now;
}

static void refresh(void *context)
{
    nod_host *host = context;
    nod_gauges_update(host);
    sl_metric_set(host->heap_gauge, NULL, (double)sl_heap_bytes());
}

void nod_gauges_create(nod_host *host)
{
    sl_metrics_set_refresh(host->metrics, refresh, host);
    ranks_create(host);
    if (host->group)
        show_formation(host);
    sl_metrics *metrics = host->metrics;
    transfers_create(host);
    host->pages_gauge = sl_gauge(metrics, "sluice_kv_pages", "cache pages by state", "state");
    host->running_gauge =
        sl_gauge(metrics, "sluice_running_requests", "requests computing or generating", NULL);
    host->waiting_gauge = sl_gauge(metrics, "sluice_waiting_requests",
                                   "requests that wait for pages or transfers", NULL);
    host->etcd_gauge = sl_gauge(metrics, "sluice_etcd_connected", "1 while etcd answers", NULL);
    host->heap_gauge = sl_gauge(metrics, "sluice_heap_bytes",
                                "held by malloc, caches and weights not among it", NULL);
    eng_tier_stats tier;
    if (!eng_engine_tier_stats(host->engine, &tier))
        return;
    host->tier_pages =
        sl_gauge(metrics, "sluice_kv_tier_pages", "pages of the second tier", "state");
    host->tier_lookups = sl_counter(metrics, "sluice_kv_tier_lookups_total",
                                    "hit: blocks read from the second tier; miss: prefixes that "
                                    "ended in neither tier",
                                    "result");
    host->tier_bytes =
        sl_counter(metrics, "sluice_kv_tier_bytes_total", "page bytes, by direction", "direction");
    host->tier_dropped =
        sl_counter(metrics, "sluice_kv_tier_dropped_total",
                   "blocks that were not served: damaged, or refused by the disk", "reason");
}

static void update_tier(nod_host *host)
{
    eng_tier_stats now, *seen = &host->tier_seen;
    if (!eng_engine_tier_stats(host->engine, &now))
        return;
    if (now.misses < seen->misses || now.bytes_written < seen->bytes_written ||
        now.bytes_read < seen->bytes_read)
        *seen = (eng_tier_stats){0}; /* opened anew, for other weights */
    sl_metric_set(host->tier_pages, "used", (double)now.pages);
    sl_metric_set(host->tier_pages, "free", (double)(now.pages_max - now.pages));
    sl_metric_add(host->tier_lookups, "hit", (double)(now.hits - seen->hits));
    sl_metric_add(host->tier_lookups, "miss", (double)(now.misses - seen->misses));
    sl_metric_add(host->tier_bytes, "written", (double)(now.bytes_written - seen->bytes_written));
    sl_metric_add(host->tier_bytes, "read", (double)(now.bytes_read - seen->bytes_read));
    sl_metric_add(host->tier_dropped, "corrupt", (double)(now.corrupt - seen->corrupt));
    sl_metric_add(host->tier_dropped, "io", (double)(now.failed - seen->failed));
    if (now.corrupt > seen->corrupt)
        sl_warn("--kv-disk: %llu pages differed from their sums and are dropped",
                (unsigned long long)(now.corrupt - seen->corrupt));
    if (now.failed > seen->failed)
        sl_warn("--kv-disk: %llu reads or writes failed: is the disk full?",
                (unsigned long long)(now.failed - seen->failed));
    *seen = now;
}

void nod_gauges_update(nod_host *host)
{
    eng_page_counts pages;
    eng_worker_count_pages(host->worker, &pages);
    sl_metric_set(host->pages_gauge, "free", pages.free);
    sl_metric_set(host->pages_gauge, "kept", pages.kept);
    sl_metric_set(host->pages_gauge, "used", pages.bound);
    sl_metric_set(host->pages_gauge, "promised", pages.promised);
    sl_metric_set(host->pages_gauge, "transit", pages.transit);
    update_tier(host);
    update_ranks(host);
    Sluice__V1__Load load = SLUICE__V1__LOAD__INIT;
    nod_host_load(host, &load);
    sl_metric_set(host->running_gauge, NULL, load.running);
    sl_metric_set(host->waiting_gauge, NULL, load.waiting);
    sl_metric_set(host->etcd_gauge, NULL, host->etcd && clu_etcd_connected(host->etcd));
    update_transfers(host);
}
