/* Numbers that are read off the services rather than counted: refreshed by a timer. Thread: control
 * loop. */
#include "node/internal.h"

void nod_gauges_create(nod_host *host)
{
    sl_metrics *metrics = host->metrics;
    host->pages_gauge = sl_gauge(metrics, "sluice_kv_pages", "cache pages by state", "state");
    host->running_gauge =
        sl_gauge(metrics, "sluice_running_requests", "requests computing or generating", NULL);
    host->waiting_gauge = sl_gauge(metrics, "sluice_waiting_requests",
                                   "requests that wait for pages or transfers", NULL);
    host->etcd_gauge = sl_gauge(metrics, "sluice_etcd_connected", "1 while etcd answers", NULL);
    host->kv_gauge =
        sl_gauge(metrics, "sluice_kv_open", "open objects of cache transfer, by kind", "kind");
    host->kv_received =
        sl_counter(metrics, "sluice_kv_received_bytes_total", "verified cache bytes fetched", NULL);
    host->kv_pieces =
        sl_counter(metrics, "sluice_kv_received_pieces_total", "verified pieces fetched", NULL);
    host->kv_mismatches = sl_counter(metrics, "sluice_kv_sum_mismatches_total",
                                     "fetched pieces whose sum differed", NULL);
}

void nod_gauges_update(nod_host *host)
{
    uint32_t total = eng_engine_layout(host->engine)->page_count;
    uint32_t free_pages = eng_worker_pages_free(host->worker);
    sl_metric_set(host->pages_gauge, "free", free_pages);
    sl_metric_set(host->pages_gauge, "used", total - free_pages);
    Sluice__V1__Load load = SLUICE__V1__LOAD__INIT;
    nod_host_load(host, &load);
    sl_metric_set(host->running_gauge, NULL, load.running);
    sl_metric_set(host->waiting_gauge, NULL, load.waiting);
    sl_metric_set(host->etcd_gauge, NULL, host->etcd && clu_etcd_connected(host->etcd));
    kvt_stats stats;
    kvt_stats_get(host->kvt, &stats);
    sl_metric_set(host->kv_gauge, "sends", stats.sends_open);
    sl_metric_set(host->kv_gauge, "recvs", stats.recvs_open);
    sl_metric_set(host->kv_gauge, "peers", stats.peers_open);
    sl_metric_set(host->kv_gauge, "requests", stats.requests_open);
    sl_metric_add(host->kv_received, NULL, (double)(stats.bytes_received - host->kv_received_seen));
    host->kv_received_seen = stats.bytes_received;
    sl_metric_add(host->kv_pieces, NULL, (double)(stats.pieces_received - host->kv_pieces_seen));
    host->kv_pieces_seen = stats.pieces_received;
    sl_metric_add(host->kv_mismatches, NULL,
                  (double)(stats.sum_mismatches - host->kv_mismatches_seen));
    host->kv_mismatches_seen = stats.sum_mismatches;
}
