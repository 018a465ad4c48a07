/* The host program of a node: see host.h. Start-up order: what can be refused at once (probe.h),
 * model, engine, cache transfer, services, gRPC, etcd; shutdown in reverse. */
#include "node/host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/rng.h"
#include "engine/transit.h"
#include "node/internal.h"
#include "node/probe.h"

#define GAUGE_PERIOD_NS (100 * SL_MS_NS)
#define TRACE_EVENTS    4096u   /* of requests, remembered: 640 KiB */
#define TRANSIT_PROMPTS 4u      /* of the longest kind, on their way at once */
#define LEAVE_NS        SL_S_NS /* for calls that are still open once nothing runs any more */

static const char *const FAULT_SITES[] = {
    "prefill.group", "decode.step", "decode.compile", "engine.device",   "kvt.fetch",
    "tier.write",    "tier.read",   "reload.load",    "reload.exchange", NULL};

static const char *const STATE_NAMES[NOD_STATE_COUNT] = {
    [NOD_STATE_STARTING] = "starting",
    [NOD_STATE_READY] = "ready",
    [NOD_STATE_DRAINING] = "draining",
    [NOD_STATE_LEAVING] = "leaving",
};

const char *nod_state_name(nod_state state)
{
    return STATE_NAMES[state];
}

void nod_host_load(const nod_host *host, Sluice__V1__Load *out_load)
{
    Sluice__V1__Load part = SLUICE__V1__LOAD__INIT;
    dec_service_load(host->decode, out_load);
    if (host->role == NOD_ROLE_PREFILL) /* which has nothing running there */
        out_load->slots_total = out_load->slots_free = 0;
    pre_service_load(host->prefill, &part);
    if (host->role != NOD_ROLE_DECODE) { /* which takes no prompts */
        out_load->slots_total += part.slots_total;
        out_load->slots_free += part.slots_free;
    }
    out_load->running += part.running;
    out_load->waiting += part.waiting;
    out_load->queued_tokens += part.queued_tokens;
    out_load->pages_total = eng_engine_layout(host->engine)->page_count;
    eng_page_counts pages;
    eng_worker_count_pages(host->worker, &pages);
    out_load->pages_free = pages.grantable;
    out_load->pages_bound = pages.bound;
}

/* ---- membership ---- */

static sl_status member_info(const nod_host *host, clu_member_info *out_info, sl_err *err)
{
    const eng_stamp *own = eng_engine_stamp(host->engine);
    clu_member_info info = {
        .incarnation = host->incarnation,
        .slots = (uint32_t)(host->role != NOD_ROLE_PREFILL ? host->options->max_sequences
                                                           : host->options->queue_max),
        .pages = eng_engine_layout(host->engine)->page_count,
        .context_max = host->context_max,
        .state = host->state >= NOD_STATE_DRAINING || nod_role_changing(host->role_change)
                     ? CLU_MEMBER_STATE_DRAINING
                     : CLU_MEMBER_STATE_READY,
    };
    const struct {
        char *field;
        size_t size;
        const char *text;
        const char *what;
    } TEXTS[] = {
        {info.name, sizeof(info.name), host->options->name, "--name"},
        {info.role, sizeof(info.role), nod_role_name(host->role), "--role"},
        {info.control, sizeof(info.control), rpc_server_address(host->server), "--control"},
        {info.kv, sizeof(info.kv), kvt_context_address(host->kvt), "--kv-listen"},
        {info.metrics, sizeof(info.metrics), sl_daemon_metrics_address(host->daemon), "--metrics"},
        {info.stamp.numerics_id, sizeof(info.stamp.numerics_id), own->numerics_id, "numerics id"},
        {info.stamp.model_hash, sizeof(info.stamp.model_hash), own->model_hash, "model hash"},
        {info.stamp.weights_version, sizeof(info.stamp.weights_version), own->weights_version,
         "weights version"},
        {info.stamp.cache_format, sizeof(info.stamp.cache_format), own->cache_format,
         "cache format"},
        {info.version, sizeof(info.version), SL_VERSION, "version"},
    };
    for (size_t i = 0; i < sizeof(TEXTS) / sizeof(TEXTS[0]); i++)
        SL_TRY(clu_text_set(TEXTS[i].field, TEXTS[i].size, TEXTS[i].text, TEXTS[i].what, err));
    *out_info = info;
    return sl_ok();
}

static void on_registered(void *context)
{
    nod_host *host = context;
    if (host->state != NOD_STATE_STARTING) {
        sl_info("registered again");
        return;
    }
    host->state = NOD_STATE_READY;
    sl_info("ready: %s %s, control %s, kv %s, metrics %s", nod_role_name(host->role),
            host->options->name, rpc_server_address(host->server), kvt_context_address(host->kvt),
            sl_daemon_metrics_address(host->daemon));
}

static void on_membership_lost(void *context)
{
    sl_warn("membership lost (etcd away or lease expired): serving goes on, registering again");
}

static void on_registration_failed(void *context, const sl_err *err)
{
    nod_host *host = context;
    sl_error("cannot join the cluster: %s", err->text);
    host->exit_code = 1;
    sl_loop_stop(host->loop);
}

/* ---- drain ---- */

static void on_server_stopped(void *context)
{
    nod_host *host = context;
    sl_loop_stop(host->loop);
}

static void on_left(void *context)
{
    nod_host *host = context;
    rpc_server_stop(host->server, sl_loop_now(host->loop) + LEAVE_NS, on_server_stopped, host);
}

void nod_host_hold(nod_host *host)
{
    bool held = nod_reload_waits(host->reload) || nod_pausing_active(host->pausing);
    dec_service_hold(host->decode, held);
    pre_service_hold(host->prefill, held);
}

void nod_host_rest(nod_host *host)
{
    bool rest = nod_reload_rests(host->reload) || nod_pausing_wants_rest(host->pausing);
    eng_worker_set_rest(host->worker, rest);
}

uint32_t nod_host_live(const nod_host *host)
{
    return dec_service_live(host->decode) + pre_service_live(host->prefill);
}

static void leave(nod_host *host)
{
    if (host->state == NOD_STATE_LEAVING)
        return;
    host->left_alone = true;
    host->state = NOD_STATE_LEAVING;
    if (nod_host_live(host) > 0)
        sl_warn("leaving with %u requests unfinished", nod_host_live(host));
    else
        sl_info("leaving: nothing is left");
    clu_registration_stop(host->registration, on_left, host);
}

static void on_all_leave(void *context)
{
    nod_host *host = context;
    if (host->state == NOD_STATE_DRAINING)
        leave(host);
}

/* The other ranks' requests still need this one's experts: an instance leaves as a whole, or at the
 * drain's deadline. */
static void leave_together(nod_host *host)
{
    if (!host->ranks || eng_worker_broken(host->worker)) {
        leave(host);
        return;
    }
    host->left_alone = true;
    nod_ranks_leave(host, on_all_leave);
}

static void on_drain_timeout(void *context, sl_time_ns now)
{
    leave(context);
}

static void after_pass(void *context)
{
    nod_host *host = context;
    dec_service_flush(host->decode);
    nod_pausing_continue(host->pausing);
    nod_reload_continue(host->reload);
    nod_role_continue(host->role_change);
    bool awaited = dec_service_moves(host->decode) > 0;
    if (host->state == NOD_STATE_DRAINING && nod_host_live(host) == 0 && !awaited &&
        !nod_audit_busy(host->audit))
        leave_together(host);
}

void nod_host_tell_cluster(nod_host *host)
{
    clu_member_info info;
    sl_err err;
    if (!sl_is_ok(member_info(host, &info, &err)) ||
        !sl_is_ok(clu_registration_update(host->registration, &info, &err)))
        sl_warn("cannot tell the cluster: %s", err.text);
}

void nod_host_stamp(const nod_host *host, Sluice__V1__Stamp *out_stamp)
{
    const eng_stamp *own = eng_engine_stamp(host->engine);
    sluice__v1__stamp__init(out_stamp);
    out_stamp->numerics_id = (char *)own->numerics_id;
    out_stamp->model_hash = (char *)own->model_hash;
    out_stamp->weights_version = (char *)own->weights_version;
    out_stamp->cache_format = (char *)own->cache_format;
}

void nod_host_drain(nod_host *host, uint64_t timeout_ns)
{
    if (host->state >= NOD_STATE_LEAVING)
        return;
    sl_info("draining: %u requests, at most %.1f s", nod_host_live(host), (double)timeout_ns / 1e9);
    bool registered = host->state == NOD_STATE_READY;
    host->state = NOD_STATE_DRAINING;
    nod_pausing_leave(host->pausing);
    nod_role_apply(host, false);
    rpc_server_set_health(host->server, "", false);
    sl_timer_set(host->drain_timer, sl_loop_now(host->loop) + timeout_ns);
    if (registered)
        nod_host_tell_cluster(host);
}

sl_status nod_host_resume(nod_host *host, sl_err *err)
{
    if (host->state != NOD_STATE_DRAINING || host->stopping)
        return sl_fail(err, SL_CONFLICT, "node %s is %s%s: there is no drain to take back",
                       host->options->name, nod_state_name(host->state),
                       host->stopping ? " for good" : "");
    sl_info("serving on: the drain was taken back");
    host->left_alone = false;
    nod_ranks_stay(host);
    bool registered = clu_registration_registered(host->registration);
    host->state = registered ? NOD_STATE_READY : NOD_STATE_STARTING;
    sl_timer_set(host->drain_timer, SL_NEVER);
    nod_role_apply(host, true);
    rpc_server_set_health(host->server, "", true);
    nod_host_tell_cluster(host);
    return sl_ok();
}

static void on_stop_signal(void *context)
{
    nod_host *host = context;
    host->stopping = true;
    nod_host_drain(host, host->options->drain_timeout_ns);
}

/* ---- events ---- */

static void on_kvt_event(void *context, const kvt_event *event)
{
    nod_host *host = context;
    if (event->recv)
        dec_service_on_transfer(host->decode, event);
    else
        pre_service_on_transfer(host->prefill, event);
}

static void on_kvt(void *context, uint32_t events)
{
    nod_host *host = context;
    kvt_poll(host->kvt, on_kvt_event, host);
}

/* What ran has been told that it failed, and routers compute it elsewhere. */
static void leave_broken(nod_host *host)
{
    const char *broken = eng_worker_broken(host->worker);
    if (!broken || host->exit_code != 0 || host->left_alone)
        return;
    host->stopping = true;
    sl_error("the %s failed, and this process with it: %s", host->ranks ? "instance" : "device",
             broken);
    host->exit_code = 1;
    nod_host_drain(host, 0);
}

static void on_gauges(void *context, sl_time_ns now)
{
    nod_host *host = context;
    nod_gauges_update(host);
    leave_broken(host);
    sl_timer_set(host->gauge_timer, now + GAUGE_PERIOD_NS);
}

/* ---- start ---- */

static void on_load_progress(void *context, const eng_load_progress *progress)
{
    double done = (double)progress->bytes_done, total = (double)progress->bytes_total;
    sl_info("weights: %.2f of %.2f GB in %.1f s, %.0f MB/s", done / 1e9, total / 1e9,
            progress->seconds, progress->seconds > 0 ? done / 1e6 / progress->seconds : 0.0);
}

static void tell_tier(const nod_host *host)
{
    eng_tier_stats tier;
    if (!eng_engine_tier_stats(host->engine, &tier))
        return;
    if (tier.begun_anew && tier.begun_anew[0])
        sl_warn("--kv-disk %s: what it held is dropped: %s", host->options->kv_disk,
                tier.begun_anew);
    if (tier.dropped_at_start > 0)
        sl_warn("--kv-disk %s: %llu damaged pages are dropped", host->options->kv_disk,
                (unsigned long long)tier.dropped_at_start);
    sl_info("--kv-disk %s: %llu of %llu pages are there already", host->options->kv_disk,
            (unsigned long long)tier.pages_at_start, (unsigned long long)tier.pages_max);
}

void nod_model_options(const nod_host *host, const char *dir, eng_model_options *out_options)
{
    *out_options = (eng_model_options){
        .dir = dir,
        .backend = host->options->backend == NOD_BACKEND_CUDA ? ENG_BACKEND_CUDA : ENG_BACKEND_CPU,
        .cuda_object = host->options->cuda_library,
        .threads = (int)host->options->threads,
        .ep_rank = (uint32_t)host->options->ep_rank,
        .ep_size = (uint32_t)host->options->ep_size,
        .progress = on_load_progress,
    };
    nod_ranks_model_options(host, out_options);
}

/* Bytes for blocks on their way, where the cache itself cannot be read and written. */
static uint64_t transit_bytes(const nod_host *host)
{
    const nod_options *options = host->options;
    if (options->kv_transit > 0 || options->backend == NOD_BACKEND_CPU)
        return options->kv_transit;
    uint64_t longest = eng_model_kv_bytes(host->model, host->context_max);
    uint64_t wanted = TRANSIT_PROMPTS * longest;
    return wanted < options->kv_memory ? wanted : options->kv_memory;
}

static sl_status open_engine(nod_host *host, sl_err *err)
{
    const nod_options *options = host->options;
    char tier_path[NOD_PATH_MAX];
    uint64_t tier_bytes = 0;
    if (options->kv_disk)
        SL_TRY(nod_kv_disk_parse(options->kv_disk, tier_path, &tier_bytes, err));
    eng_model_options model;
    nod_model_options(host, options->model, &model);
    sl_time_ns start = sl_now_ns();
    SL_TRY(eng_model_open(&model, &host->model, err));
    host->context_max = options->context_max ? (uint32_t)options->context_max
                                             : (uint32_t)eng_model_shape(host->model)->position_max;
    eng_options engine;
    nod_engine_options(options, &engine);
    host->rows_max = (uint32_t)engine.rows_max;
    engine.transit_bytes = transit_bytes(host);
    engine.tier_path = options->kv_disk ? tier_path : NULL;
    engine.tier_bytes = tier_bytes;
    SL_TRY(nod_ranks_meet(host, err));
    SL_TRY(eng_engine_create(host->model, &engine, &host->engine, err));
    nod_ranks_watch(host);
    tell_tier(host);
    const eng_cache_layout *layout = eng_engine_layout(host->engine);
    sl_info("numerics %s, by %s", eng_engine_stamp(host->engine)->numerics_id,
            eng_engine_variant(host->engine));
    sl_info("model %s loaded in %.2f s; %u cache pages of %llu bytes", options->model,
            (double)(sl_now_ns() - start) / 1e9, layout->page_count,
            (unsigned long long)layout->page_bytes);
    return sl_ok();
}

static sl_status open_transfer(nod_host *host, sl_err *err)
{
    uint8_t *base;
    kvt_region region;
    eng_transit_memory(host->engine, &base, &region.bytes);
    region.base = base;
    kvt_options options = {
        .name = host->options->name,
        .listen = host->options->kv_listen,
        .transport = (kvt_transport_kind)host->options->kv_transport,
        .allow_wildcard = host->options->kv_allow_wildcard,
        .regions = &region,
        .region_count = 1,
    };
    SL_TRY(kvt_context_create(&options, &host->kvt, err));
    return sl_watch_create(host->loop, kvt_fd(host->kvt), EPOLLIN, on_kvt, host, &host->kvt_watch,
                           err);
}

static void on_offer(void *context, const char *request_id)
{
    nod_host *host = context;
    dec_service_note_asked(host->decode, request_id);
}

static sl_status open_prefill(nod_host *host, sl_err *err)
{
    const nod_options *options = host->options;
    pre_service_options prefill = {
        .loop = host->loop,
        .model = host->model,
        .engine = host->engine,
        .worker = host->worker,
        .kvt = host->kvt,
        .metrics = host->metrics,
        .trace = host->trace,
        .name = options->name,
        .context_max = host->context_max,
        .chunk_tokens = (uint32_t)options->chunk_tokens,
        .chunk_ns = options->chunk_time_ns,
        .prefix_cache = options->prefix_cache,
        .queue_max = (uint32_t)options->queue_max,
        .on_offer = on_offer,
        .context = host,
    };
    return pre_service_create(&prefill, &host->prefill, err);
}

static sl_status open_services(nod_host *host, sl_err *err)
{
    const nod_options *options = host->options;
    SL_TRY(eng_worker_create(host->engine, &host->worker, err));
    dec_service_options decode = {
        .loop = host->loop,
        .model = host->model,
        .engine = host->engine,
        .worker = host->worker,
        .kvt = host->kvt,
        .sums = (kvt_sums)options->kv_sums,
        .metrics = host->metrics,
        .trace = host->trace,
        .name = options->name,
        .incarnation = host->incarnation,
        .sequences_max = (uint32_t)options->max_sequences,
        .park_ns = options->park_timeout_ns,
        .context_max = host->context_max,
        .chunk_tokens = (uint32_t)options->chunk_tokens,
        .chunk_ns = options->chunk_time_ns,
        .rows_max = host->rows_max,
        .draft_depth = (uint32_t)options->mtp_depth,
        .prefix_cache = options->prefix_cache,
    };
    SL_TRY(dec_service_create(&decode, &host->decode, err));
    SL_TRY(open_prefill(host, err));
    nod_role_apply(host, true);
    return eng_worker_start(host->worker, err);
}

static sl_status open_server(nod_host *host, sl_err *err)
{
    rpc_handler handlers[NOD_HANDLERS + 2];
    size_t count = NOD_HANDLERS;
    nod_service_handlers(host, handlers);
    handlers[count++] = dec_service_handler(host->decode);
    handlers[count++] = pre_service_handler(host->prefill);
    rpc_server_options options = {.listen = host->options->control,
                                  .handlers = handlers,
                                  .handler_count = count,
                                  .tls = clu_trust_tls(host->trust)};
    return sl_wrap(err, rpc_server_create(host->runtime, &options, &host->server, err),
                   "--control");
}

static sl_status open_etcd(nod_host *host, sl_err *err)
{
    clu_etcd_options etcd = {.endpoints = host->options->etcd,
                             .timeout_ns = host->options->etcd_timeout_ns};
    SL_TRY(clu_trust_open(&host->options->trust, &host->trust, err));
    SL_TRY(clu_trust_check_role(host->trust, RPC_ROLE_NODE, err));
    clu_trust_etcd(host->trust, &etcd);
    SL_TRY(rpc_runtime_create(host->loop, &host->runtime, err));
    return clu_etcd_create(host->runtime, &etcd, &host->etcd, err);
}

static sl_status join_cluster(nod_host *host, sl_err *err)
{
    static const clu_registration_events EVENTS = {
        .on_registered = on_registered,
        .on_lost = on_membership_lost,
        .on_failed = on_registration_failed,
    };
    clu_member_info info;
    SL_TRY(member_info(host, &info, err));
    clu_registration_options options = {
        .cluster = host->options->cluster, .info = &info, .lease_ns = host->options->lease_ns};
    return clu_registration_create(host->etcd, &options, &EVENTS, host, &host->registration, err);
}

static sl_status start(nod_host *host, sl_err *err)
{
    SL_TRY(sl_loop_create(&host->loop, err));
    SL_TRY(sl_fault_init(FAULT_SITES, getenv("SLUICE_FAULTS"), err));
    SL_TRY(nod_probe(host->options, err));
    SL_TRY(nod_probe_addresses(host->options, err));
    SL_TRY(open_etcd(host, err));
    SL_TRY(nod_probe_cluster(host->options, host->loop, host->etcd, err));
    host->metrics = sl_metrics_create();
    host->incarnation = sl_random_u64();
    sl_daemon_options daemon = {.metrics_listen = host->options->metrics,
                                .metrics = host->metrics,
                                .stop = on_stop_signal,
                                .context = host};
    host->reload = nod_reload_create(host);
    host->ledger = nod_ledger_create(host);
    host->audit = nod_audit_create(host);
    host->role_change = nod_role_change_create(host);
    host->pausing = nod_pausing_create(host);
    host->trace = sl_trace_create(TRACE_EVENTS);
    host->drain_timer = sl_timer_create(host->loop, on_drain_timeout, host);
    SL_TRY(nod_ranks_open(host, err));
    SL_TRY(open_engine(host, err));
    SL_TRY(open_transfer(host, err));
    SL_TRY(open_services(host, err));
    SL_TRY(nod_ranks_aboard(host, err));
    SL_TRY(open_server(host, err));
    SL_TRY(sl_daemon_start(host->loop, &daemon, &host->daemon, err));
    nod_gauges_create(host);
    host->gauge_timer = sl_timer_create(host->loop, on_gauges, host);
    sl_timer_set(host->gauge_timer, sl_now_ns());
    sl_loop_set_after(host->loop, after_pass, host);
    return join_cluster(host, err);
}

void nod_host_destroy(nod_host *host)
{
    if (!host)
        return;
    clu_registration_destroy(host->registration);
    nod_ranks_stop(host);
    nod_audit_destroy(host->audit);
    clu_etcd_destroy(host->etcd);
    rpc_server_destroy(host->server);
    if (host->runtime)
        rpc_runtime_destroy(host->runtime);
    if (host->worker)
        eng_worker_stop(host->worker);
    sl_watch_destroy(host->kvt_watch);
    kvt_context_destroy(host->kvt);
    nod_role_change_destroy(host->role_change);
    nod_pausing_destroy(host->pausing);
    nod_ledger_destroy(host->ledger);
    pre_service_destroy(host->prefill);
    dec_service_destroy(host->decode);
    sl_trace_destroy(host->trace);
    eng_worker_destroy(host->worker);
    eng_engine_destroy(host->engine);
    nod_ranks_destroy(host); /* its thread may look at weights of the reload */
    nod_reload_destroy(
        host->reload); /* may end the process: nothing below means anything to others */
    nod_gauges_destroy(host);
    eng_model_close(host->model);
    sl_timer_destroy(host->gauge_timer);
    sl_timer_destroy(host->drain_timer);
    sl_daemon_destroy(host->daemon);
    if (host->loop)
        sl_loop_destroy(host->loop);
    if (host->metrics)
        sl_metrics_destroy(host->metrics);
    clu_trust_close(host->trust);
    sl_free(host);
}

sl_status nod_host_create(const nod_options *options, nod_host **out_host, sl_err *err)
{
    nod_host *host = sl_alloc(1, sizeof(*host), "node host");
    host->options = options;
    host->role = options->role;
    sl_status status = start(host, err);
    if (!sl_is_ok(status)) {
        nod_host_destroy(host);
        return status;
    }
    *out_host = host;
    return status;
}

sl_loop *nod_host_loop(const nod_host *host)
{
    return host->loop;
}

int nod_host_run(const nod_options *options)
{
    nod_host *host;
    sl_err err;
    if (!sl_is_ok(nod_host_create(options, &host, &err))) {
        sl_error("%s", err.text);
        return 1;
    }
    sl_loop_run(host->loop);
    int exit_code = host->exit_code;
    nod_host_destroy(host);
    return exit_code;
}

int nod_main(nod_role role, int argc, char **argv)
{
    nod_options options = {0};
    sl_config *config = NULL;
    int code = 0;
    if (nod_options_parse(role, argc, argv, &options, &config, &code) == SL_CONFIG_RUN) {
        sl_log_set_name(options.name);
        sl_log_set_level((sl_log_level)options.log_level);
        code = nod_host_run(&options);
    }
    sl_config_destroy(config);
    return code;
}
