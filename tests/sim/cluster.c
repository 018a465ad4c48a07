/* See cluster.h. Each process is what its main() would make of its options, but for the loop, which
 * the world runs. */
#include "tests/sim/cluster.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "kvtransfer/transport.h"
#include "model/config.h"
#include "model/safetensors.h"
#include "model/tokenizer.h"
#include "node/internal.h"
#include "router/router.h"
#include "tests/sim/checker.h"
#include "tests/sim/engine.h"
#include "tests/sim/rpc.h"

#define ARGS_MAX   48
#define ARG_BYTES  64
#define PAGE_BYTES (2 * 50432 + 256) /* of the simulated model */
#define MODEL_DIR  "models/demo"

sim_cluster sim_cl;

/* ---- what is loaded once: the tokenizer; nodes' models are the engine's */

static mdl_tokenizer *tokenizer;

sl_status __real_mdl_tokenizer_load(const char *path, mdl_tokenizer **out, sl_err *err);
sl_status __wrap_mdl_tokenizer_load(const char *path, mdl_tokenizer **out, sl_err *err);
void __real_mdl_tokenizer_destroy(mdl_tokenizer *which);
void __wrap_mdl_tokenizer_destroy(mdl_tokenizer *which);
sl_status __wrap_mdl_checkpoint_open(const char *dir, mdl_checkpoint **out, sl_err *err);

sl_status __wrap_mdl_tokenizer_load(const char *path, mdl_tokenizer **out, sl_err *err)
{
    if (!tokenizer)
        SL_TRY(__real_mdl_tokenizer_load(path, &tokenizer, err));
    *out = tokenizer;
    return sl_ok();
}

void __wrap_mdl_tokenizer_destroy(mdl_tokenizer *which)
{
}

/* Routers compare the nodes among themselves alone. */
sl_status __wrap_mdl_checkpoint_open(const char *dir, mdl_checkpoint **out, sl_err *err)
{
    return sl_fail(err, SL_NOT_FOUND, "no weights in the simulated world");
}

/* ---- kvtransfer on the world's network, each context in its own process's time */

sl_status __real_kvt_context_create(const kvt_options *options, kvt_context **out, sl_err *err);
sl_status __wrap_kvt_context_create(const kvt_options *options, kvt_context **out, sl_err *err);
bool __real_kvt_context_step(kvt_context *context, sl_time_ns now);
bool __wrap_kvt_context_step(kvt_context *context, sl_time_ns now);
sl_time_ns __real_kvt_context_due(const kvt_context *context);
sl_time_ns __wrap_kvt_context_due(const kvt_context *context);

static struct {
    const kvt_context *context;
    sim_process *process;
} contexts[SIM_PROCESSES_MAX];

static sim_process *process_of(const kvt_context *context)
{
    for (uint32_t i = 0; i < SIM_PROCESSES_MAX; i++)
        if (contexts[i].context == context)
            return contexts[i].process;
    return sim.current; /* it is being created */
}

sl_status __wrap_kvt_context_create(const kvt_options *options, kvt_context **out, sl_err *err)
{
    kvt_options with = *options;
    with.fake = sim.kvt;
    SL_TRY(__real_kvt_context_create(&with, out, err));
    contexts[sim.current->index].context = *out;
    contexts[sim.current->index].process = sim.current;
    sim.kvt_dirty = true;
    return sl_ok();
}

bool __wrap_kvt_context_step(kvt_context *context, sl_time_ns now)
{
    sim_process *before = sim.current;
    sim.current = process_of(context);
    bool did = __real_kvt_context_step(context, now + sim.current->clock_offset_ns);
    sim.current = before;
    return did;
}

sl_time_ns __wrap_kvt_context_due(const kvt_context *context)
{
    return sim_world_time(process_of(context), __real_kvt_context_due(context));
}

/* ---- options */

typedef struct args {
    char text[ARGS_MAX][ARG_BYTES];
    char *argv[ARGS_MAX + 1];
    int argc;
} args;

static void arg(args *a, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void arg(args *a, const char *format, ...)
{
    va_list list;
    sl_assert(a->argc < ARGS_MAX);
    va_start(list, format);
    vsnprintf(a->text[a->argc], ARG_BYTES, format, list);
    va_end(list);
    a->argv[a->argc] = a->text[a->argc];
    a->argc++;
}

static void common_args(args *a, const sim_process *process)
{
    const sim_shape *shape = &sim_cl.shape;
    arg(a, "sim");
    arg(a, "--name=%s", process->name);
    arg(a, "--model=%s", MODEL_DIR);
    arg(a, "--etcd=http://%s", sim.processes[0].address);
    arg(a, "--etcd-timeout=60s");
    arg(a, "--lease=%llums", (unsigned long long)shape->lease_ms);
    arg(a, "--control=%s", process->address);
    arg(a, "--drain-timeout=5s");
}

static sl_status start_router(sim_process *process, sl_err *err)
{
    const sim_shape *shape = &sim_cl.shape;
    args *a = sl_alloc(1, sizeof(*a), "sim arguments");
    rtr_options *options = sl_alloc(1, sizeof(*options), "sim options");
    int code = 0;
    common_args(a, process);
    arg(a, "--listen=10.0.0.%u:8080", process->index + 1);
    arg(a, "--context-max=2048");
    arg(a, "--queue-max=%u", shape->router_queue);
    arg(a, "--place-timeout=%llums", (unsigned long long)shape->place_ms);
    arg(a, "--queue-timeout=%llums", (unsigned long long)shape->queue_ms);
    arg(a, "--admit-timeout=%llums", (unsigned long long)shape->admit_ms);
    arg(a, "--progress-timeout=%llums", (unsigned long long)shape->progress_ms);
    arg(a, "--token-timeout=%llums", (unsigned long long)shape->token_ms);
    arg(a, "--prefill-timeout=%llums", (unsigned long long)shape->prefill_ms);
    arg(a, "--attach-timeout=%llums", (unsigned long long)shape->attach_ms);
    arg(a, "--recovery-rate=%u", shape->recovery_rate);
    arg(a, "--pull-min=%u", shape->pull_min);
    arg(a, "--keep-alive=%llums", (unsigned long long)shape->keep_alive_ms);
    arg(a, "--self-prefill=%s", shape->self_prefill ? "true" : "false");
    sl_config_result result =
        sl_config_parse(&RTR_CONFIG_SPEC, a->argc, a->argv, options, &process->config, &code);
    sl_assert(result == SL_CONFIG_RUN);
    sl_free(a);
    process->options = options;
    return rtr_router_create(options, &process->router, err);
}

/* What a node looks at before it starts, and waits for: here the world runs its loop. */
sl_status __wrap_nod_probe(const void *target, sl_err *err);
sl_status __wrap_nod_probe(const void *target, sl_err *err)
{
    return sl_ok();
}

sl_status __wrap_nod_probe_addresses(const nod_options *options, sl_err *err);
sl_status __wrap_nod_probe_addresses(const nod_options *options, sl_err *err)
{
    return sl_ok();
}

sl_status __wrap_nod_probe_cluster(const nod_options *options, sl_loop *loop, clu_etcd *etcd,
                                   sl_err *err);
sl_status __wrap_nod_probe_cluster(const nod_options *options, sl_loop *loop, clu_etcd *etcd,
                                   sl_err *err)
{
    return sl_ok();
}

static sl_status start_node(sim_process *process, sl_err *err)
{
    const sim_shape *shape = &sim_cl.shape;
    args *a = sl_alloc(1, sizeof(*a), "sim arguments");
    nod_options *options = sl_alloc(1, sizeof(*options), "sim options");
    static const nod_role ROLES[] = {[SIM_PREFILL] = NOD_ROLE_PREFILL,
                                     [SIM_DECODE] = NOD_ROLE_DECODE,
                                     [SIM_HYBRID] = NOD_ROLE_HYBRID};
    int code = 0;
    common_args(a, process);
    arg(a, "--role=%s", nod_role_name(ROLES[process->role]));
    arg(a, "--kv-listen=%s:1", process->name);
    arg(a, "--kv-memory=%u", shape->pages * PAGE_BYTES);
    arg(a, "--kv-overcommit=%.2f", shape->overcommit);
    arg(a, "--layer-group=1");
    arg(a, "--threads=1");
    arg(a, "--chunk-tokens=%u", shape->chunk_tokens);
    arg(a, "--mtp-depth=%u", shape->mtp_depth);
    arg(a, "--context-max=2048");
    arg(a, "--max-sequences=%u", shape->sequences);
    arg(a, "--queue-max=%u", shape->queue_max);
    arg(a, "--park-timeout=%llums", (unsigned long long)shape->park_ms);
    if (shape->disk)
        arg(a, "--kv-disk=%s:64MiB", process->name);
    sl_config_result result =
        nod_options_parse(ROLES[process->role], a->argc, a->argv, options, &process->config, &code);
    sl_assert(result == SL_CONFIG_RUN);
    sl_free(a);
    process->options = options;
    return nod_host_create(options, &process->node, err);
}

/* ---- life */

static void free_options(sim_process *process)
{
    sl_config_destroy(process->config);
    sl_free(process->options);
    process->config = NULL;
    process->options = NULL;
}

/* What its kernel would still have sent is lost. */
static void kvt_cut_all(const sim_process *process)
{
    for (uint32_t i = 0; i < sim.process_count; i++)
        if (sim.processes[i].node && &sim.processes[i] != process)
            kvt_fake_cut(sim.kvt, process->name, sim.processes[i].name, true);
}

/* Cuts outlive the processes. */
static void kvt_cut_again(const sim_process *process)
{
    for (uint32_t i = 0; process->node && i < sim.process_count; i++)
        if (sim.processes[i].node && sim.cut[i][process->index] && sim.cut[process->index][i])
            kvt_fake_cut(sim.kvt, process->name, sim.processes[i].name, true);
}

void sim_process_start(sim_process *process)
{
    sl_err err;
    sl_assert(!process->alive);
    sim_process *before = sim.current;
    sim.current = process;
    process->alive = true;
    process->dying = process->silent = process->paused = process->stop_asked = false;
    process->life++;
    process->lag_ns = 0;
    /* A machine's monotonic clock begins anywhere; those of two machines never agree. */
    process->clock_offset_ns = sim_between(0, 1000) * SL_S_NS + sim_draw(SL_S_NS);
    sim_trace("starts (life %u)", process->life);
    sl_status status = process->role == SIM_ETCD
                           ? sim_etcd_create(sim_cl.etcd, process->address, &process->etcd, &err)
                       : process->role == SIM_ROUTER ? start_router(process, &err)
                                                     : start_node(process, &err);
    if (!sl_is_ok(status))
        sim_violation("processes start", "%s: %s", process->name, err.text);
    kvt_cut_again(process);
    sim_checker_process_started(process);
    sim.current = before;
}

static void take_down(sim_process *process)
{
    sim_process *before = sim.current;
    sim.current = process;
    sim_checker_process_ends(process);
    contexts[process->index].context = NULL;
    if (process->router)
        rtr_router_destroy(process->router);
    if (process->node)
        nod_host_destroy(process->node);
    sim_etcd_destroy(process->etcd);
    process->router = NULL;
    process->node = NULL;
    process->etcd = NULL;
    process->alive = process->stop_asked = false;
    free_options(process);
    sim.current = before;
}

void sim_process_kill(sim_process *process, bool silent)
{
    if (!process->alive)
        return;
    sim_trace("%s is killed%s", process->name, silent ? " with its machine" : "");
    process->silent = silent;
    if (!silent)
        sim_net_break(process);
    else if (process->node)
        kvt_cut_all(process);
    process->dying = true;
    if (process->node)
        kvt_fake_kill(sim.kvt, process->name);
    take_down(process);
    process->dying = false;
    sim.kvt_dirty = true;
}

void sim_process_pause(sim_process *process, bool paused)
{
    if (!process->alive || process->paused == paused)
        return;
    sim_trace("%s %s", process->name, paused ? "stops" : "goes on");
    process->paused = paused;
    if (process->node)
        kvt_fake_pause(sim.kvt, process->name, paused);
    process->held_until = sim.now;
    process->wake_at = SL_NEVER;
    sim.kvt_dirty = true;
    if (paused)
        return;
    sim_wake(process, sim.now);
    sim_engine_resume(process);
}

void sim_process_terminate(sim_process *process)
{
    if (!process->alive || !process->node)
        return;
    sim_trace("%s drains", process->name);
    sim.current = process;
    nod_host_drain(process->node, 5 * SL_S_NS);
    sim.current = NULL;
    sim_wake_soon(process);
}

void sim_cluster_reap(void)
{
    for (uint32_t i = 0; i < sim.process_count; i++) {
        sim_process *process = &sim.processes[i];
        if (!process->alive || !process->stop_asked)
            continue;
        sim_trace("%s ends by itself", process->name);
        take_down(process);
        sim.kvt_dirty = true;
    }
}

void sim_cluster_cut(sim_process *from, sim_process *to, bool both, bool cut)
{
    sim_trace("%s %s %s: %s", from->name, both ? "<->" : "->", to->name, cut ? "cut" : "healed");
    sim.cut[from->index][to->index] = cut;
    if (both)
        sim.cut[to->index][from->index] = cut;
    if (both && from->node && to->node)
        kvt_fake_cut(sim.kvt, from->name, to->name, cut);
    sim.kvt_dirty = true;
}

/* ---- all */

void sim_cluster_load(void)
{
    sl_err err;
    mdl_tokenizer *loaded;
    if (!sl_is_ok(__wrap_mdl_tokenizer_load(MODEL_DIR, &loaded, &err)))
        sim_violation("processes start", "%s", err.text);
}

static void add(sim_role role, const char *kind, uint32_t number)
{
    sl_assert(sim.process_count < SIM_PROCESSES_MAX);
    sim_process *process = &sim.processes[sim.process_count];
    *process = (sim_process){.index = sim.process_count++, .role = role, .wake_at = SL_NEVER};
    snprintf(process->name, SIM_NAME_MAX, "%s-%u", kind, number);
    snprintf(process->address, SIM_NAME_MAX, "10.0.0.%u:9090", process->index + 1);
}

void sim_cluster_create(const sim_shape *shape)
{
    sim_cl = (sim_cluster){.shape = *shape, .etcd = sim_etcd_data_create()};
    add(SIM_ETCD, "etcd", 0);
    for (uint32_t i = 0; i < shape->routers; i++)
        add(SIM_ROUTER, "router", i);
    for (uint32_t i = 0; i < shape->prefills; i++)
        add(SIM_PREFILL, "prefill", i);
    for (uint32_t i = 0; i < shape->decodes; i++)
        add(SIM_DECODE, "decode", i);
    for (uint32_t i = 0; i < shape->hybrids; i++)
        add(SIM_HYBRID, "hybrid", i);
    sim_net_start();
    for (uint32_t i = 0; i < sim.process_count; i++)
        sim_process_start(&sim.processes[i]);
}

void sim_cluster_destroy(void)
{
    for (uint32_t i = sim.process_count; i-- > 0;) {
        sim_process *process = &sim.processes[i];
        if (process->alive)
            sim_process_kill(process, false);
    }
    sim_etcd_data_destroy(sim_cl.etcd);
    sim_cl.etcd = NULL;
}
