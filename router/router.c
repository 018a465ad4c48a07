/* The router process.
 *
 * The main loop carries the first front, the etcd client, the view, the registration and the
 * control port; --threads N adds loops that carry a front each and hear of members by posts. Stop:
 * fronts first (answers finish), then the registration, then the loops. */
#include "router/router.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/daemon.h"
#include "base/log.h"
#include "base/net.h"
#include "cluster/registration.h"
#include "cluster/view.h"
#include "router/control.h"
#include "router/front.h"
#include "router/operations.h"
#include "router/settings.h"
#include "rpc/runtime.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define JOBS_MAX         64u /* long prompts waiting for an encoding thread */
#define STOP_MARGIN_NS   (5 * SL_S_NS)
#define LOOP_THREADS_MAX RTR_LOOPS_MAX

typedef struct rtr_router router;

typedef struct loop_thread {
    router *owner;
    sl_loop *loop;
    rpc_runtime *runtime;
    rtr_front *front;
    pthread_t thread; /* not of the first: that is the main one */
    bool running;
} loop_thread;

struct rtr_router {
    const rtr_options *options;
    rtr_settings settings;
    sl_metrics *metrics;
    int listen_fd;
    char http_address[SL_ADDRESS_TEXT_MAX];
    char name[CLU_NAME_MAX];
    loop_thread threads[LOOP_THREADS_MAX];
    uint32_t thread_count;
    clu_trust *trust;
    sl_daemon *daemon;
    rtr_control *control;
    clu_etcd *etcd;
    clu_view *view;
    clu_registration *registration;
    rtr_operations *operations;
    sl_timer *shutdown; /* after SIGTERM: when no more is taken */
    uint32_t fronts_stopping;
    bool frozen; /* the view, as the loops know it */
    bool stopping;
    int exit_code;
};

/* ---- members, to every loop */

typedef struct member_note {
    loop_thread *thread;
    clu_member_info info;
    bool suspect;
    bool removed;
    bool frozen; /* the view, now */
} member_note;

static void apply_member(rtr_front *front, const member_note *note)
{
    rtr_nodes *nodes = rtr_front_nodes(front);
    rtr_nodes_set_frozen(nodes, note->frozen);
    if (note->removed)
        rtr_nodes_remove(nodes, note->info.name, note->info.incarnation);
    else
        rtr_nodes_set(nodes, &note->info, note->suspect);
}

static void member_posted(void *context)
{
    member_note *note = context;
    if (note->thread->front)
        apply_member(note->thread->front, note);
    sl_free(note);
}

/* For `sluicectl events`. */
#define tell_event(r, ...)                                                       \
    do {                                                                         \
        if ((r)->operations)                                                     \
            rtr_events_add(rtr_operations_events((r)->operations), __VA_ARGS__); \
    } while (0)

/* Any member's news may freeze the view, or free it. */
static void note_frozen(router *r, bool frozen)
{
    if (r->frozen == frozen)
        return;
    tell_event(r, "etcd", "", "%s",
               frozen ? "many members lost their leases at once: the view is frozen"
                      : "most members have their leases");
    r->frozen = frozen;
    sl_metric_set(r->settings.shared.metrics.view_frozen, NULL, frozen);
    if (frozen)
        sl_warn("many of %zu members lost their leases at once: all are used until they fail",
                clu_view_count(r->view));
    else
        sl_info("most members have their leases");
}

static void tell_member(router *r, const clu_view_member *member, bool removed)
{
    note_frozen(r, clu_view_frozen(r->view));
    member_note note = {
        .info = member->info, .suspect = member->suspect, .removed = removed, .frozen = r->frozen};
    if (note.info.state == CLU_MEMBER_STATE_READY && r->operations &&
        rtr_operations_cordoned(r->operations, note.info.name))
        note.info.state = CLU_MEMBER_STATE_CORDONED;
    apply_member(r->threads[0].front, &note);
    for (uint32_t i = 1; i < r->thread_count; i++) {
        member_note *copy = sl_alloc(1, sizeof *copy, "router note");
        *copy = note;
        copy->thread = &r->threads[i];
        bool posted = sl_loop_post(r->threads[i].loop, member_posted, copy);
        sl_assert(posted); /* a loop this far behind is stuck */
    }
}

static void on_added(void *context, clu_view_member *member)
{
    router *r = context;
    tell_event(r, "member", member->info.name, "%s at %s joined", member->info.role,
               member->info.control);
    tell_member(r, member, false);
}

static void on_changed(void *context, clu_view_member *member)
{
    router *r = context;
    tell_event(r, "member", member->info.name, "%s%s", clu_member_state_name(member->info.state),
               member->suspect ? ", but its lease is lost" : "");
    tell_member(r, member, false);
}

static void on_removed(void *context, clu_view_member *member)
{
    router *r = context;
    tell_event(r, "member", member->info.name, "left");
    tell_member(r, member, true);
}

static void on_cordon(void *context, const char *node)
{
    router *r = context;
    const clu_view_member *member = r->view ? clu_view_find(r->view, node) : NULL;
    if (member)
        tell_member(r, member, false);
}

static void on_connected(void *context, bool connected)
{
    router *r = context;
    sl_metric_set(r->settings.shared.metrics.etcd_connected, NULL, connected);
    tell_event(r, "etcd", "", connected ? "connected" : "away");
    if (connected)
        sl_info("etcd is connected");
    else
        sl_warn("etcd is away: serving on with the members known");
}

/* From the main loop. */
static void member_broken(void *context, const char *name, uint64_t incarnation)
{
    router *r = context;
    if (r->view && clu_view_ready(r->view))
        (void)clu_view_forget(r->view, name, incarnation);
}

/* ---- ends */

static void stop_everything(void *context);

static void fail_start(router *r, const sl_err *err)
{
    sl_error("%s", err->text);
    r->exit_code = 1;
    stop_everything(r);
}

static void on_view_ready(void *context)
{
    router *r = context;
    sl_metric_set(r->settings.shared.metrics.etcd_connected, NULL, 1);
    sl_info("etcd lists %zu members", clu_view_count(r->view));
}

static void on_failed(void *context, const sl_err *err)
{
    fail_start(context, err);
}

static void on_registered(void *context)
{
    router *r = context;
    sl_info("registered in cluster %s as %s", r->options->cluster, r->name);
}

static void on_registration_lost(void *context)
{
    sl_warn("the membership lease is lost: registering again");
}

static void main_loop_done(void *context)
{
    router *r = context;
    sl_loop_stop(r->threads[0].loop);
}

/* On the main loop: a front has no requests left. */
static void front_stopped(void *context)
{
    router *r = context;
    sl_assert(r->fronts_stopping > 0);
    if (--r->fronts_stopping > 0)
        return;
    if (r->registration && clu_registration_registered(r->registration))
        clu_registration_stop(r->registration, main_loop_done, r);
    else
        main_loop_done(r);
}

static void front_stopped_elsewhere(void *context)
{
    router *r = context;
    bool posted = sl_loop_post(r->threads[0].loop, front_stopped, r);
    sl_assert(posted);
}

static sl_time_ns drain_deadline(const router *r)
{
    return sl_now_ns() + r->options->drain_timeout_ns;
}

static void stop_front_here(void *context)
{
    loop_thread *thread = context;
    rtr_front_stop(thread->front, drain_deadline(thread->owner), front_stopped_elsewhere,
                   thread->owner);
}

static void stop_everything(void *context)
{
    router *r = context;
    if (r->stopping)
        return;
    r->stopping = true;
    r->fronts_stopping = r->thread_count;
    rtr_front_stop(r->threads[0].front, drain_deadline(r), front_stopped, r);
    for (uint32_t i = 1; i < r->thread_count; i++) {
        bool posted = sl_loop_post(r->threads[i].loop, stop_front_here, &r->threads[i]);
        sl_assert(posted);
    }
    /* Else who connects now would wait in its queue until the last answer here is written. */
    (void)shutdown(r->listen_fd, SHUT_RDWR);
}

static void leave_front_here(void *context)
{
    loop_thread *thread = context;
    rtr_front_leave(thread->front);
}

static void shutdown_due(void *context, sl_time_ns now)
{
    stop_everything(context);
}

/* SIGTERM. */
static void begin_shutdown(void *context)
{
    router *r = context;
    if (r->stopping || r->options->shutdown_delay_ns == 0) {
        stop_everything(r);
        return;
    }
    sl_info("shutting down in %.1f s: /ready says so", (double)r->options->shutdown_delay_ns / 1e9);
    rtr_front_leave(r->threads[0].front);
    for (uint32_t i = 1; i < r->thread_count; i++) {
        bool posted = sl_loop_post(r->threads[i].loop, leave_front_here, &r->threads[i]);
        sl_assert(posted);
    }
    r->shutdown = sl_timer_create(r->threads[0].loop, shutdown_due, r);
    sl_timer_set(r->shutdown, sl_now_ns() + r->options->shutdown_delay_ns);
}

/* ---- loops */

static void broken_elsewhere(void *context, const char *name, uint64_t incarnation)
{
    /* Each loop has streams to each node: the main loop's see the same break. */
}

static void fill_http(const rtr_options *o, int listen_fd, rtr_http_server_options *http)
{
    rtr_http_server_options_init(http);
    http->listen_fd = listen_fd;
    http->body_max = o->body_max;
    http->connections_max = (uint32_t)o->connections_max;
    http->head_timeout_ns = o->head_timeout_ns;
    http->body_timeout_ns = o->body_timeout_ns;
    http->idle_timeout_ns = o->idle_timeout_ns;
    http->write_timeout_ns = o->write_timeout_ns;
}

static sl_status thread_create(router *r, uint32_t index, sl_err *err)
{
    loop_thread *thread = &r->threads[index];
    thread->owner = r;
    r->thread_count = index + 1;
    SL_TRY(sl_loop_create(&thread->loop, err));
    SL_TRY(rpc_runtime_create(thread->loop, &thread->runtime, err));
    rtr_front_options front = {
        .loop = thread->loop,
        .runtime = thread->runtime,
        .shared = &r->settings.shared,
        .index = index,
        .on_broken = index == 0 ? member_broken : broken_elsewhere,
        .context = r,
    };
    fill_http(r->options, r->listen_fd, &front.http);
    return rtr_front_create(&front, &thread->front, err);
}

static void *thread_main(void *context)
{
    loop_thread *thread = context;
    sl_loop_run(thread->loop);
    return NULL;
}

static sl_status threads_start(router *r, sl_err *err)
{
    for (uint32_t i = 1; i < r->thread_count; i++) {
        if (pthread_create(&r->threads[i].thread, NULL, thread_main, &r->threads[i]) != 0)
            return sl_fail(err, SL_NO_MEMORY, "cannot start a thread");
        r->threads[i].running = true;
    }
    return sl_ok();
}

static void threads_join(router *r)
{
    for (uint32_t i = 1; i < r->thread_count; i++) {
        if (!r->threads[i].running)
            continue;
        sl_loop_stop(r->threads[i].loop);
        pthread_join(r->threads[i].thread, NULL);
        r->threads[i].running = false;
    }
}

static void threads_destroy(router *r)
{
    for (uint32_t i = r->thread_count; i-- > 0;) {
        loop_thread *thread = &r->threads[i];
        rtr_front_destroy(thread->front);
        if (thread->runtime)
            rpc_runtime_destroy(thread->runtime);
        if (thread->loop)
            sl_loop_destroy(thread->loop);
    }
}

/* ---- start */

static void set_name(router *r)
{
    const char *colon = strrchr(rtr_control_address(r->control), ':');
    if (r->options->name)
        snprintf(r->name, sizeof r->name, "%s", r->options->name);
    else
        snprintf(r->name, sizeof r->name, "router-%s", colon ? colon + 1 : "0");
    sl_log_set_name(r->name);
}

static sl_status join_cluster(router *r, sl_err *err)
{
    static const clu_view_events VIEW_EVENTS = {
        .on_ready = on_view_ready,
        .on_failed = on_failed,
        .on_added = on_added,
        .on_changed = on_changed,
        .on_removed = on_removed,
        .on_connected = on_connected,
    };
    static const clu_registration_events REGISTRATION_EVENTS = {on_registered, on_registration_lost,
                                                                on_failed};
    clu_etcd_options etcd = {.endpoints = r->options->etcd,
                             .timeout_ns = r->options->etcd_timeout_ns};
    clu_trust_etcd(r->trust, &etcd);
    SL_TRY(clu_etcd_create(r->threads[0].runtime, &etcd, &r->etcd, err));
    clu_view_options view = {.cluster = r->options->cluster};
    SL_TRY(clu_view_create(r->etcd, &view, &VIEW_EVENTS, r, &r->view, err));
    rtr_operations_options operations = {
        .etcd = r->etcd,
        .view = r->view,
        .cluster = r->options->cluster,
        .router = r->name,
        .own = r->options,
        .tls = clu_trust_tls(r->trust),
        .metrics = &r->settings.shared.metrics,
        .loop_count = r->thread_count,
        .on_cordon = on_cordon,
        .context = r,
    };
    for (uint32_t i = 0; i < r->thread_count; i++)
        operations.loops[i] = (rtr_loop_ref){r->threads[i].loop, r->threads[i].front};
    SL_TRY(rtr_operations_create(&operations, &r->operations, err));
    clu_member_info info = {.state = CLU_MEMBER_STATE_READY,
                            .incarnation = r->settings.shared.incarnation};
    snprintf(info.name, sizeof info.name, "%s", r->name);
    snprintf(info.role, sizeof info.role, "router");
    snprintf(info.control, sizeof info.control, "%s", rtr_control_address(r->control));
    snprintf(info.metrics, sizeof info.metrics, "%s", r->http_address);
    snprintf(info.version, sizeof info.version, "%s", SL_VERSION);
    snprintf(info.secret_mark, sizeof info.secret_mark, "%s",
             r->settings.shared.api.space_key.mark);
    clu_registration_options registration = {
        .cluster = r->options->cluster, .info = &info, .lease_ns = r->options->lease_ns};
    SL_TRY(clu_registration_create(r->etcd, &registration, &REGISTRATION_EVENTS, r,
                                   &r->registration, err));
    rtr_control_set(r->control, r->view, rtr_front_nodes(r->threads[0].front), r->operations);
    return sl_ok();
}

static sl_status start(router *r, sl_err *err)
{
    SL_TRY(clu_trust_open(&r->options->trust, &r->trust, err));
    SL_TRY(clu_trust_check_role(r->trust, RPC_ROLE_NODE, err));
    SL_TRY(rtr_settings_load(r->options, &r->settings, err));
    r->settings.shared.tls = clu_trust_tls(r->trust);
    rtr_metrics_init(&r->settings.shared.metrics, r->metrics);
    SL_TRY(sl_wrap(err,
                   sl_net_listen(r->options->listen, false, &r->listen_fd, r->http_address, err),
                   "--listen"));
    SL_TRY(rtr_pool_create((uint32_t)r->options->encode_threads, JOBS_MAX, &r->settings.shared.pool,
                           err));
    /* Filled by set_name, which needs the control port that needs the first thread. */
    r->settings.shared.router_name = r->name;
    SL_TRY(thread_create(r, 0, err));
    rtr_control_options control = {r->threads[0].runtime, r->options->control,
                                   clu_trust_tls(r->trust)};
    SL_TRY(rtr_control_create(&control, &r->control, err));
    set_name(r);
    for (uint32_t i = 1; i < (uint32_t)r->options->threads; i++)
        SL_TRY(thread_create(r, i, err));
    sl_daemon_options daemon = {.metrics = r->metrics, .stop = begin_shutdown, .context = r};
    SL_TRY(sl_daemon_start(r->threads[0].loop, &daemon, &r->daemon, err));
    SL_TRY(join_cluster(r, err));
    return threads_start(r, err);
}

void rtr_router_destroy(router *r)
{
    if (!r)
        return;
    threads_join(r);
    sl_timer_destroy(r->shutdown);
    sl_daemon_destroy(r->daemon);
    if (r->control)
        rtr_control_set(r->control, NULL, NULL, NULL);
    rtr_operations_destroy(r->operations);
    r->operations = NULL;
    clu_registration_destroy(r->registration);
    clu_view_destroy(r->view);
    if (r->etcd)
        clu_etcd_destroy(r->etcd);
    rtr_control_destroy(r->control);
    threads_destroy(r);
    rtr_pool_destroy(r->settings.shared.pool);
    if (r->listen_fd >= 0)
        close(r->listen_fd);
    rtr_settings_fini(&r->settings);
    sl_metrics_destroy(r->metrics);
    clu_trust_close(r->trust);
    sl_log_set_name("router"); /* the name went with us */
    sl_free(r);
}

sl_status rtr_router_create(const rtr_options *options, router **out_router, sl_err *err)
{
    router *r = sl_alloc(1, sizeof *r, "router");
    r->options = options;
    r->listen_fd = -1;
    r->metrics = sl_metrics_create();
    sl_status status = start(r, err);
    if (!sl_is_ok(status)) {
        rtr_router_destroy(r);
        return status;
    }
    *out_router = r;
    return status;
}

sl_loop *rtr_router_loop(const router *r)
{
    return r->threads[0].loop;
}

rtr_front *rtr_router_front(const router *r)
{
    return r->threads[0].front;
}

int rtr_run(const rtr_options *options)
{
    router *r;
    sl_err err;
    if (!sl_is_ok(rtr_router_create(options, &r, &err))) {
        sl_error("%s", err.text);
        return 1;
    }
    sl_info("serving %s at http://%s, control at %s", r->settings.shared.api.model_name,
            r->http_address, rtr_control_address(r->control));
    sl_loop_run(r->threads[0].loop);
    sl_info("stopped");
    int exit_code = r->exit_code;
    rtr_router_destroy(r);
    return exit_code;
}

int rtr_main(int argc, char **argv)
{
    rtr_options options;
    sl_config *config = NULL;
    int exit_code = 0;
    memset(&options, 0, sizeof options);
    sl_log_set_name("router");
    if (sl_config_parse(&RTR_CONFIG_SPEC, argc, argv, &options, &config, &exit_code) ==
        SL_CONFIG_RUN) {
        sl_log_set_level((sl_log_level)options.log_level);
        exit_code = rtr_run(&options);
    }
    sl_config_destroy(config);
    return exit_code;
}
