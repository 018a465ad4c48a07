/* The options of both node programs: one table (help, environment, settings file and --print-config
 * come from it), and what it cannot say, so that a long start does not end with a wrong option.
 * Thread: start-up. */
#ifndef NODE_OPTIONS_H
#define NODE_OPTIONS_H

#include "base/config.h"
#include "cluster/trust.h"

#ifdef __cplusplus
extern "C" {
#endif

#define NOD_WEIGHTS_VERSION_MAX 1000000000u /* far from the end of u32 */

typedef enum nod_role {
    NOD_ROLE_PREFILL,
    NOD_ROLE_DECODE,
    NOD_ROLE_HYBRID,
    NOD_ROLE_COUNT
} nod_role;
typedef enum nod_backend { NOD_BACKEND_CPU, NOD_BACKEND_CUDA } nod_backend;

typedef struct nod_options {
    const char *name;
    const char *model;
    int64_t weights_version;
    const char *etcd;
    const char *cluster;
    const char *control;
    const char *metrics;
    const char *kv_listen;
    bool kv_allow_wildcard;
    int role; /* nod_role */
    int64_t ep_size;
    int64_t ep_rank;
    int64_t ep_slots;
    const char *instance;
    const char *ep_listen;
    uint64_t ep_timeout_ns;
    int64_t ep_micro_batch; /* rows; 0: never */
    uint64_t ep_start_timeout_ns;
    int backend; /* nod_backend */
    const char *cuda_library;
    uint64_t kv_memory;
    uint64_t kv_transit;
    int kv_sums;      /* kvt_sums */
    int kv_transport; /* kvt_transport_kind */
    const char *kv_disk;
    double kv_overcommit;
    int64_t layer_group;
    int64_t max_sequences;
    int64_t queue_max;
    int64_t chunk_tokens;
    uint64_t chunk_time_ns;
    bool prefix_cache;
    uint64_t park_timeout_ns;
    int64_t mtp_depth;
    int64_t context_max;
    int64_t threads;
    uint64_t drain_timeout_ns;
    uint64_t lease_ns;
    uint64_t etcd_timeout_ns;
    int log_level;
    clu_trust_options trust;
} nod_options;

#define NOD_PATH_MAX 4096
/* "FILE:SIZE" of --kv-disk. */
SL_MUST_USE sl_status nod_kv_disk_parse(const char *text, char out_path[NOD_PATH_MAX],
                                        uint64_t *out_bytes, sl_err *err);

/* role decides the program's name and the default of --role. */
sl_config_result nod_options_parse(nod_role role, int argc, char **argv, nod_options *out_options,
                                   sl_config **out_config, int *out_exit_code);
const char *nod_role_name(nod_role role);

#ifdef __cplusplus
}
#endif
#endif
