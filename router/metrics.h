/* The router's metrics, created once. Names: docs of the interfaces. Thread: any. */
#ifndef ROUTER_METRICS_H
#define ROUTER_METRICS_H

#include "base/metrics.h"
#include "model/output.h"

#ifdef __cplusplus
extern "C" {
#endif

#define RTR_METRIC_TTFT_KEPT   "ttft_kept"
#define RTR_METRIC_TTFT_MISSED "ttft_missed"
#define RTR_METRIC_TPOT_KEPT   "tpot_kept"
#define RTR_METRIC_TPOT_MISSED "tpot_missed"

typedef struct rtr_metrics {
    sl_metrics *registry; /* borrowed */
    sl_metric *requests;  /* {code}: HTTP status; 499 = the client went away */
    sl_metric *ttft_seconds;
    sl_metric *tpot_seconds;
    sl_metric *targets; /* {outcome}: RTR_METRIC_* */
    sl_metric *queue_seconds;
    sl_metric *running;
    sl_metric *waiting;
    sl_metric *prompt_tokens;
    sl_metric *generation_tokens;
    sl_metric *prefix_hit_tokens;
    sl_metric *migrations;      /* {reason} */
    sl_metric *migrated_tokens; /* {how}: kept, computed */
    sl_metric *pulls;           /* {outcome}: rtr_pull_end_name */
    sl_metric *pulled_tokens;
    sl_metric *attaches;
    sl_metric *view_frozen;
    sl_metric *refusals; /* {node} */
    sl_metric *tool_calls;
    sl_metric *output_oddities; /* {kind} */
    sl_metric *calls_without_reasoning;
    sl_metric *usable_nodes; /* {role}: a hybrid node counts in both */
    sl_metric *etcd_connected;
    sl_metric *leader;            /* 1: this router leads */
    sl_metric *scale_nodes;       /* {role}: members that take work */
    sl_metric *scale_wanted;      /* {role} */
    sl_metric *scale_advised;     /* {role} */
    sl_metric *scale_queue;       /* {role} */
    sl_metric *scale_busy;        /* {role} */
    sl_metric *ep_imbalance;      /* {instance} */
    sl_metric *rebalances;        /* {instance} */
    sl_metric *rebalance_seconds; /* {instance} */
    sl_metric *http_connections;
    sl_metric *heap_bytes;
} rtr_metrics;

void rtr_metrics_init(rtr_metrics *metrics, sl_metrics *registry);
void rtr_metrics_note_output(const rtr_metrics *metrics, const mdl_output_counts *counts);

#ifdef __cplusplus
}
#endif
#endif
