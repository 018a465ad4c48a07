/* The cluster's processes: started, stopped, killed, paused. */
#ifndef TESTS_SIM_CLUSTER_H
#define TESTS_SIM_CLUSTER_H

#include "tests/sim/etcd.h"
#include "tests/sim/world.h"

typedef struct sim_shape { /* of a cluster, and its limits */
    uint32_t routers, prefills, decodes, hybrids;
    uint32_t pages; /* of each node's cache */
    uint32_t sequences, queue_max, chunk_tokens, mtp_depth;
    double overcommit;
    bool self_prefill;
    bool disk; /* a second cache tier */
    uint32_t router_queue;
    uint64_t place_ms, queue_ms, admit_ms, progress_ms, token_ms, prefill_ms, lease_ms;
    uint64_t park_ms, attach_ms;
    uint64_t keep_alive_ms; /* 0: streams may be silent */
    uint32_t recovery_rate;
    uint32_t pull_min; /* tokens that prefill nodes fetch rather than compute; 0: never */
} sim_shape;

typedef struct sim_cluster {
    sim_shape shape;
    sim_etcd_data *etcd;
} sim_cluster;

extern sim_cluster sim_cl;

/* Loads once what all worlds share; before the first of them, whose randomness it would use. */
void sim_cluster_load(void);
/* All processes, started. */
void sim_cluster_create(const sim_shape *shape);
/* Ends what runs, in an orderly way, and checks that nothing is left. */
void sim_cluster_destroy(void);
void sim_process_start(sim_process *process);
/* kill -9; silent: the machine goes with it, nobody is told. */
void sim_process_kill(sim_process *process, bool silent);
void sim_process_pause(sim_process *process, bool paused);
/* SIGTERM. */
void sim_process_terminate(sim_process *process);
/* Ends processes whose loops were stopped; after each event. */
void sim_cluster_reap(void);
/* Between two processes, both ways or one. kvtransfer's network knows both ways only. */
void sim_cluster_cut(sim_process *from, sim_process *to, bool both, bool cut);

#endif
