/* The router's options: one table gives flags, environment, settings file and --help. */
#ifndef ROUTER_OPTIONS_H
#define ROUTER_OPTIONS_H

#include "base/config.h"
#include "cluster/trust.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_options {
    const char *name; /* NULL: router-<control port> */
    int log_level;
    uint64_t shutdown_delay_ns, drain_timeout_ns;
    const char *listen;
    const char *control;
    uint64_t body_max;
    int64_t connections_max;
    uint64_t head_timeout_ns;
    uint64_t body_timeout_ns;
    uint64_t idle_timeout_ns;
    uint64_t write_timeout_ns;
    uint64_t keep_alive_ns; /* 0: never */
    int64_t weights_min;
    int64_t threads;
    int64_t encode_threads;
    const char *etcd;
    const char *cluster;
    const char *cluster_secret_file; /* NULL: none */
    uint64_t etcd_timeout_ns;
    uint64_t lease_ns;
    const char *model;
    const char *model_name; /* NULL: the directory's name */
    bool plain_content;
    int64_t context_max;
    int64_t max_tokens_default;
    int64_t queue_max;
    uint64_t place_timeout_ns;
    uint64_t queue_timeout_ns;
    uint64_t admit_timeout_ns;
    uint64_t progress_timeout_ns;
    uint64_t token_timeout_ns;
    uint64_t prefill_timeout_ns;
    uint64_t attach_timeout_ns;
    int64_t attempts;
    int64_t recovery_rate;
    bool move_drained;
    int64_t pull_min;
    bool self_prefill;
    const char *scale_hook; /* NULL: none */
    int plan;               /* rtr_plan_mode */
    uint64_t plan_window_ns;
    int64_t plan_windows;
    uint64_t plan_pause_ns;
    int64_t plan_queue;
    int64_t plan_prefill_min, plan_prefill_max;
    int64_t plan_decode_min, plan_decode_max;
    uint64_t ttft_target_ns, tpot_target_ns; /* 0: none */
    int rebalance;                           /* rtr_plan_mode */
    uint64_t rebalance_window_ns;
    int64_t rebalance_windows, rebalance_rows;
    uint64_t rebalance_pause_ns;
    double rebalance_over, rebalance_gain;
    clu_trust_options trust;
} rtr_options;

extern const sl_config_spec RTR_CONFIG_SPEC;

#ifdef __cplusplus
}
#endif
#endif
