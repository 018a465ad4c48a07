/* The option table of the node programs: see options.h. */
#include "node/options.h"

#include <stddef.h>
#include <string.h>

#include "base/net.h"
#include "cluster/placement.h"
#include "cluster/registration.h"
#include "comm/comm.h"
#include "engine/engine.h"
#include "kvtransfer/kvtransfer.h"
#include "node/probe.h"

static const char *const ROLES[] = {"prefill", "decode", "hybrid", NULL};
static const char *const BACKENDS[] = {"cpu", "cuda", NULL};
static const char *const SUMS[] = {
    [KVT_SUMS_ALL] = "all", [KVT_SUMS_SAMPLE] = "sample", [KVT_SUMS_OFF] = "off", NULL};
static const char *const TRANSPORTS[] = {
    [KVT_TRANSPORT_UCX] = "ucx", [KVT_TRANSPORT_TCP] = "tcp", NULL};
static const char *const LOG_LEVELS[] = {"error", "warn", "info", "debug", "trace", NULL};

#define AT(field) offsetof(nod_options, field)

static const sl_option OPTIONS[] = {
    {.name = "name",
     .section = "Node",
     .type = SL_OPTION_STRING,
     .offset = AT(name),
     .required = true,
     .help = "name in the cluster: lower-case letters, digits, . _ -"},
    {.name = "role",
     .section = "Node",
     .type = SL_OPTION_CHOICE,
     .offset = AT(role),
     .default_text = "prefill",
     .choices = ROLES,
     .help = "what the node does"},
    {.name = "log-level",
     .section = "Node",
     .type = SL_OPTION_CHOICE,
     .offset = AT(log_level),
     .default_text = "info",
     .choices = LOG_LEVELS,
     .help = "least important lines to print"},
    {.name = "drain-timeout",
     .section = "Node",
     .type = SL_OPTION_DURATION,
     .offset = AT(drain_timeout_ns),
     .default_text = "30s",
     .help = "after SIGTERM, how long running requests may take to finish"},
    CLU_CLUSTER_OPTIONS(nod_options),
    {.name = "lease",
     .section = "Cluster",
     .type = SL_OPTION_DURATION,
     .offset = AT(lease_ns),
     .default_text = "10s",
     .help = "membership lease, renewed at a third"},
    {.name = "etcd-timeout",
     .section = "Cluster",
     .type = SL_OPTION_DURATION,
     .offset = AT(etcd_timeout_ns),
     .default_text = "5s",
     .help = "how long etcd may take to answer at start"},
    {.name = "control",
     .section = "Network",
     .type = SL_OPTION_STRING,
     .offset = AT(control),
     .default_text = "127.0.0.1:0",
     .help = "gRPC address (port 0: any free one)"},
    {.name = "metrics",
     .section = "Network",
     .type = SL_OPTION_STRING,
     .offset = AT(metrics),
     .default_text = "127.0.0.1:0",
     .help = "HTTP address of /metrics and /health"},
    {.name = "kv-listen",
     .section = "Network",
     .type = SL_OPTION_STRING,
     .offset = AT(kv_listen),
     .default_text = "127.0.0.1:0",
     .help = "cache transfer address; a trusted network (see docs)"},
    {.name = "kv-allow-wildcard",
     .section = "Network",
     .type = SL_OPTION_BOOL,
     .offset = AT(kv_allow_wildcard),
     .default_text = "false",
     .help = "permit --kv-listen on all interfaces"},
    {.name = "kv-transport",
     .section = "Network",
     .type = SL_OPTION_CHOICE,
     .offset = AT(kv_transport),
     .default_text = "ucx",
     .choices = TRANSPORTS,
     .help = "what moves the cache between nodes, of all nodes the same: ucx (shared memory, RDMA, "
             "tcp), or tcp (plain sockets: faster where there is only tcp)"},
    {.name = "kv-sums",
     .section = "Network",
     .type = SL_OPTION_CHOICE,
     .offset = AT(kv_sums),
     .default_text = "all",
     .choices = SUMS,
     .help = "which fetched pieces are held against their sums; sample: one in 16. Less than all "
             "lets wrong bytes into answers"},
    {.name = "ep-size",
     .section = "Instance",
     .type = SL_OPTION_INT,
     .offset = AT(ep_size),
     .default_text = "1",
     .min = 1,
     .max = COM_RANKS_MAX,
     .help = "ranks of the instance, which share the experts (1: this node alone)"},
    {.name = "ep-rank",
     .section = "Instance",
     .type = SL_OPTION_INT,
     .offset = AT(ep_rank),
     .default_text = "0",
     .min = 0,
     .max = COM_RANKS_MAX - 1,
     .help = "which of them this node is"},
    {.name = "ep-slots",
     .section = "Instance",
     .type = SL_OPTION_INT,
     .offset = AT(ep_slots),
     .default_text = "0",
     .min = 0,
     .max = CLU_PLACE_SLOTS_MAX,
     .help = "room for experts on a rank in each layer, equal on all ranks (0: so much that the "
             "others hold all experts if one dies; of two ranks, just their halves)"},
    {.name = "instance",
     .section = "Instance",
     .type = SL_OPTION_STRING,
     .offset = AT(instance),
     .help = "name of the instance, equal on all its ranks"},
    {.name = "ep-listen",
     .section = "Instance",
     .type = SL_OPTION_STRING,
     .offset = AT(ep_listen),
     .default_text = "127.0.0.1:0",
     .help = "address for the other ranks; a trusted network, as for --kv-listen"},
    {.name = "ep-timeout",
     .section = "Instance",
     .type = SL_OPTION_DURATION,
     .offset = AT(ep_timeout_ns),
     .default_text = "30s",
     .help = "how long a rank waits for the others inside a step before the instance fails"},
    {.name = "ep-micro-batch",
     .section = "Instance",
     .type = SL_OPTION_INT,
     .offset = AT(ep_micro_batch),
     .default_text = "256",
     .min = 0,
     .max = ENG_BATCH_ROWS_MAX,
     .help = "a step in which a rank has so many rows or more is two micro-batches: one computes "
             "while the other's rows travel (0: never). Changes no token"},
    {.name = "ep-start-timeout",
     .section = "Instance",
     .type = SL_OPTION_DURATION,
     .offset = AT(ep_start_timeout_ns),
     .default_text = "10m",
     .help = "how long the ranks may take to meet at the start"},
    {.name = "model",
     .section = "Engine",
     .type = SL_OPTION_STRING,
     .offset = AT(model),
     .required = true,
     .help = "directory of the checkpoint"},
    {.name = "weights-version",
     .section = "Engine",
     .type = SL_OPTION_INT,
     .offset = AT(weights_version),
     .default_text = "1",
     .min = 1,
     .max = NOD_WEIGHTS_VERSION_MAX,
     .help = "what the model's weights are called; equal among nodes, raised by ReloadWeights"},
    {.name = "backend",
     .section = "Engine",
     .type = SL_OPTION_CHOICE,
     .offset = AT(backend),
     .default_text = "cpu",
     .choices = BACKENDS,
     .help = "what computes: the CPU, or a Hopper GPU (device 0 of those it sees)"},
    {.name = "cuda-library",
     .section = "Engine",
     .type = SL_OPTION_STRING,
     .offset = AT(cuda_library),
     .help = "libsluice_cuda.so, if it is not in the loader's search path"},
    {.name = "threads",
     .section = "Engine",
     .type = SL_OPTION_INT,
     .offset = AT(threads),
     .default_text = "0",
     .min = 0,
     .max = 1024,
     .help = "CPU threads of the engine (0: all cores)"},
    {.name = "kv-memory",
     .section = "Engine",
     .type = SL_OPTION_BYTES,
     .offset = AT(kv_memory),
     .default_text = "1GiB",
     .help = "cache memory, carved at start; with --backend cuda the GPU's"},
    {.name = "kv-transit",
     .section = "Engine",
     .type = SL_OPTION_BYTES,
     .offset = AT(kv_transit),
     .default_text = "0",
     .help =
         "host memory for pages on their way between nodes (0: the cache itself; with --backend "
         "cuda room for four longest prompts, at most as much as the cache)"},
    {.name = "kv-disk",
     .section = "Engine",
     .type = SL_OPTION_STRING,
     .offset = AT(kv_disk),
     .help = "second cache tier, FILE:SIZE (on a fast disk or tmpfs; \"/var/cache/kv:64GiB\")"},
    {.name = "kv-overcommit",
     .section = "Engine",
     .type = SL_OPTION_DOUBLE,
     .offset = AT(kv_overcommit),
     .default_text = "2.0",
     .help = "decode: cache promised to sequences, of what there is; over 1 some may have to wait"},
    {.name = "layer-group",
     .section = "Engine",
     .type = SL_OPTION_INT,
     .offset = AT(layer_group),
     .default_text = "8",
     .min = 1,
     .max = 128,
     .help = "layers in one piece on the wire; equal on all nodes"},
    {.name = "chunk-tokens",
     .section = "Engine",
     .type = SL_OPTION_INT,
     .offset = AT(chunk_tokens),
     .default_text = "512",
     .min = 1,
     .max = 4096,
     .help = "prompt tokens computed in one step"},
    {.name = "chunk-time",
     .section = "Engine",
     .type = SL_OPTION_DURATION,
     .offset = AT(chunk_time_ns),
     .default_text = "100ms",
     .help = "time that prompts may take of a step while others generate (0s: whole chunks)"},
    {.name = "park-timeout",
     .section = "Engine",
     .type = SL_OPTION_DURATION,
     .offset = AT(park_timeout_ns),
     .default_text = "3s",
     .help = "how long sequences go on without a router whose stream broke (0s: not at all)"},
    {.name = "prefix-cache",
     .section = "Engine",
     .type = SL_OPTION_BOOL,
     .offset = AT(prefix_cache),
     .default_text = "true",
     .help = "keep pages for prompts that begin alike"},
    {.name = "mtp-depth",
     .section = "Engine",
     .type = SL_OPTION_INT,
     .offset = AT(mtp_depth),
     .default_text = "1",
     .min = 0,
     .max = ENG_DRAFTS_MAX,
     .help = "decode: tokens drafted ahead in a step (0: none); never changes an answer"},
    {.name = "context-max",
     .section = "Engine",
     .type = SL_OPTION_INT,
     .offset = AT(context_max),
     .default_text = "0",
     .min = 0,
     .max = 1 << 20,
     .help = "tokens of one sequence (0: the model's limit)"},
    {.name = "max-sequences",
     .section = "Limits",
     .type = SL_OPTION_INT,
     .offset = AT(max_sequences),
     .default_text = "64",
     .min = 1,
     .max = 256,
     .help = "decode: sequences at a time"},
    {.name = "queue-max",
     .section = "Limits",
     .type = SL_OPTION_INT,
     .offset = AT(queue_max),
     .default_text = "64",
     .min = 1,
     .max = 256,
     .help = "prefill: prompts queued, computed or handed over"},
    CLU_TRUST_OPTIONS(nod_options, trust),
};

sl_status nod_kv_disk_parse(const char *text, char out_path[NOD_PATH_MAX], uint64_t *out_bytes,
                            sl_err *err)
{
    const char *colon = strrchr(text, ':');
    uint64_t bytes;
    if (!colon || colon == text || colon - text >= NOD_PATH_MAX ||
        !sl_parse_bytes(colon + 1, &bytes) || bytes == 0)
        return sl_fail(err, SL_INVALID, "--kv-disk \"%s\": want FILE:SIZE, as in kv.cache:4GiB",
                       text);
    memcpy(out_path, text, (size_t)(colon - text));
    out_path[colon - text] = '\0';
    *out_bytes = bytes;
    return sl_ok();
}

static sl_status check_addresses(const nod_options *options, sl_err *err)
{
    bool wildcard;
    SL_TRY(sl_wrap(err, sl_net_check(options->control, true, NULL, err), "--control"));
    SL_TRY(sl_wrap(err, sl_net_check(options->metrics, true, NULL, err), "--metrics"));
    SL_TRY(sl_wrap(err, sl_net_check(options->kv_listen, true, &wildcard, err), "--kv-listen"));
    if (wildcard && !options->kv_allow_wildcard)
        return sl_fail(
            err, SL_INVALID,
            "--kv-listen %s: the kv network authenticates nobody: name one interface, or "
            "permit this with --kv-allow-wildcard",
            options->kv_listen);
    return sl_ok();
}

static sl_status check_instance(const nod_options *options, sl_err *err)
{
    bool wildcard;
    SL_TRY(sl_wrap(err, sl_net_check(options->ep_listen, true, &wildcard, err), "--ep-listen"));
    if (wildcard && !options->kv_allow_wildcard)
        return sl_fail(err, SL_INVALID,
                       "--ep-listen %s: name one interface, or permit this with "
                       "--kv-allow-wildcard",
                       options->ep_listen);
    if (options->ep_rank >= options->ep_size)
        return sl_fail(err, SL_INVALID, "--ep-rank %lld: --ep-size is %lld",
                       (long long)options->ep_rank, (long long)options->ep_size);
    if (options->ep_size == 1)
        return sl_ok();
    if (!options->instance || !clu_name_valid(options->instance))
        return sl_fail(err, SL_INVALID,
                       "--instance: a name is needed with --ep-size: lower-case letters, digits, "
                       ". _ -");
    if (options->backend != NOD_BACKEND_CPU)
        return sl_fail(err, SL_INVALID, "--ep-size %lld: with --backend cpu only",
                       (long long)options->ep_size);
    if (options->ep_timeout_ns == 0)
        return sl_fail(err, SL_INVALID, "--ep-timeout: more than 0 is needed");
    return sl_ok();
}

static sl_status check(const void *target, sl_err *err)
{
    const nod_options *options = target;
    clu_settings settings = {.name = options->name,
                             .cluster = options->cluster,
                             .etcd = options->etcd,
                             .etcd_ca = options->trust.etcd_ca,
                             .lease_ns = options->lease_ns};
    SL_TRY(clu_settings_check(&settings, err));
    SL_TRY(check_addresses(options, err));
    SL_TRY(check_instance(options, err));
    if (!(options->kv_overcommit >= 1.0 && options->kv_overcommit <= ENG_OVERCOMMIT_MAX / 100.0))
        return sl_fail(err, SL_INVALID, "--kv-overcommit %g: 1 to %g are possible",
                       options->kv_overcommit, ENG_OVERCOMMIT_MAX / 100.0);
    char path[NOD_PATH_MAX];
    uint64_t bytes;
    return options->kv_disk ? nod_kv_disk_parse(options->kv_disk, path, &bytes, err) : sl_ok();
}

#define OPTION_COUNT (sizeof(OPTIONS) / sizeof(OPTIONS[0]))

sl_config_result nod_options_parse(nod_role role, int argc, char **argv, nod_options *out_options,
                                   sl_config **out_config, int *out_exit_code)
{
    /* The default of --role is the only difference between the two programs. The config borrows
     * its spec. */
    static sl_option options[OPTION_COUNT];
    static sl_config_spec spec;
    memcpy(options, OPTIONS, sizeof(options));
    for (size_t i = 0; i < OPTION_COUNT; i++)
        if (options[i].offset == AT(role))
            options[i].default_text = nod_role_name(role);
    bool prefill = role == NOD_ROLE_PREFILL;
    spec = (sl_config_spec){
        .program = prefill ? "sluice-prefill" : "sluice-decode",
        .summary = prefill ? "computes prompts and hands their cache to decode nodes"
                           : "generates tokens in continuous batches from fetched caches",
        .options = options,
        .option_count = OPTION_COUNT,
        .check = check,
        .probe = nod_probe,
    };
    return sl_config_parse(&spec, argc, argv, out_options, out_config, out_exit_code);
}

const char *nod_role_name(nod_role role)
{
    return ROLES[role];
}
