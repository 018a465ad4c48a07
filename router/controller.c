/* See controller.h. Owns the election, the table of the wish, the plan, one action and one hook at
 * a time. */
#include "router/controller.h"

#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/log.h"
#include "cluster/action.h"
#include "cluster/election.h"
#include "cluster/table.h"
#include "router/census.h"

#define TICK_NS       (500 * SL_MS_NS)
#define SETTLE_NS     (2 * SL_S_NS)  /* nodes come and go together */
#define HOOK_AGAIN_NS (60 * SL_S_NS) /* what it started may take its time */
#define CENSUS_NS     SL_S_NS
#define LAST_MAX      160u

extern char **environ;

struct rtr_controller {
    rtr_controller_options options;
    clu_election *election;
    clu_table *table;
    bool set, listed;
    clu_scale wanted;
    int64_t revision;
    sl_timer *timer;
    sl_time_ns differs_since; /* 0: as wanted */
    sl_time_ns again_at;      /* not before, for the same wish */
    int64_t tried;            /* revision of the wish that the hook was run for */
    clu_action_run *act;
    pid_t hook; /* 0: none runs */
    int hook_fd;
    sl_watch *hook_watch;
    char last[LAST_MAX];
    rtr_census *census;
    sl_time_ns census_at;
    rtr_plan plan;
    clu_action_run *wish; /* of the plan, on its way to etcd */
    rtr_rebalancer *rebalancer;
};

/* ---- what there is ---- */

void rtr_controller_status(const rtr_controller *controller, rtr_scale_status *out)
{
    const clu_view *view = controller->options.view;
    *out = (rtr_scale_status){
        .set = controller->set,
        .wanted = controller->wanted,
        .revision = controller->revision,
        .leader = clu_election_leader(controller->election),
        .hook = controller->options.hook != NULL,
        .last = controller->last,
        .mode = (rtr_plan_mode)controller->options.tuned->plan,
        .advice = controller->plan.begun ? controller->plan.advice : NULL,
    };
    for (size_t i = 0; i < clu_view_count(view); i++) {
        const clu_view_member *member = clu_view_at((clu_view *)(uintptr_t)view, i);
        if (!rtr_census_counts(member))
            continue;
        out->prefill += strcmp(member->info.role, "prefill") == 0;
        out->decode += strcmp(member->info.role, "decode") == 0;
        out->hybrid += strcmp(member->info.role, "hybrid") == 0;
    }
}

static void show(const rtr_controller *controller, const rtr_scale_status *now)
{
    const rtr_metrics *m = controller->options.metrics;
    sl_metric_set(m->leader, NULL, clu_election_fence(controller->election) != 0);
    sl_metric_set(m->scale_nodes, "prefill", now->prefill);
    sl_metric_set(m->scale_nodes, "decode", now->decode);
    clu_scale wanted = now->set ? now->wanted : (clu_scale){now->prefill, now->decode};
    sl_metric_set(m->scale_wanted, "prefill", wanted.prefill);
    sl_metric_set(m->scale_wanted, "decode", wanted.decode);
    const rtr_plan_advice *advice = now->advice;
    sl_metric_set(m->scale_advised, "prefill",
                  wanted.prefill + (advice ? advice[RTR_PLAN_ROLE_PREFILL].more : 0));
    sl_metric_set(m->scale_advised, "decode",
                  wanted.decode + (advice ? advice[RTR_PLAN_ROLE_DECODE].more : 0));
}

/* ---- the hook ---- */

static void set_last(rtr_controller *controller, const char *text)
{
    snprintf(controller->last, sizeof controller->last, "%s", text);
    sl_info("scale: %s", text);
    rtr_events_add(controller->options.events, "scale", "", "%s", text);
}

static void on_hook_ended(void *context, uint32_t events)
{
    rtr_controller *controller = context;
    char text[LAST_MAX];
    int status = 0;
    if (waitpid(controller->hook, &status, WNOHANG) == 0)
        return;
    sl_watch_destroy(controller->hook_watch);
    controller->hook_watch = NULL;
    close(controller->hook_fd);
    controller->hook = 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        snprintf(text, sizeof text, "the hook is done");
    else
        snprintf(text, sizeof text, "the hook failed (%s %d): see its output",
                 WIFEXITED(status) ? "exit code" : "signal",
                 WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
    set_last(controller, text);
}

/* The environment with the wish in it; the texts are in `texts`. */
static char **hook_environment(const rtr_controller *controller, char texts[3][96])
{
    size_t count = 0;
    while (environ[count])
        count++;
    char **all = sl_alloc(count + 4, sizeof *all, "hook environment");
    memcpy(all, environ, count * sizeof *all);
    snprintf(texts[0], 96, "SLUICE_SCALE_PREFILL=%u", controller->wanted.prefill);
    snprintf(texts[1], 96, "SLUICE_SCALE_DECODE=%u", controller->wanted.decode);
    snprintf(texts[2], 96, "SLUICE_SCALE_CLUSTER=%.64s", controller->options.cluster);
    for (size_t i = 0; i < 3; i++)
        all[count + i] = texts[i];
    return all;
}

/* As a daemon's child should be: no descriptors of ours but the log, signals as at first. */
static int spawn(const rtr_controller *controller, pid_t *out_pid)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    char texts[3][96];
    char *argv[] = {"sh", "-c", (char *)(uintptr_t)controller->options.hook, NULL};
    char **environment = hook_environment(controller, texts);
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addclosefrom_np(&actions, 3);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes,
                             POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    int failed = posix_spawn(out_pid, "/bin/sh", &actions, &attributes, argv, environment);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    sl_free(environment);
    return failed;
}

static void run_hook(rtr_controller *controller)
{
    sl_loop *loop = rpc_runtime_loop(clu_etcd_runtime(controller->options.etcd));
    char text[LAST_MAX];
    pid_t pid;
    sl_err err;
    int failed = spawn(controller, &pid);
    if (failed) {
        snprintf(text, sizeof text, "the hook cannot be started: %s", strerror(failed));
        set_last(controller, text);
        return;
    }
    controller->hook = pid;
    controller->hook_fd = (int)syscall(SYS_pidfd_open, pid, 0);
    snprintf(text, sizeof text, "the hook runs: %u prefill, %u decode wanted",
             controller->wanted.prefill, controller->wanted.decode);
    set_last(controller, text);
    if (controller->hook_fd < 0 ||
        !sl_is_ok(sl_watch_create(loop, controller->hook_fd, EPOLLIN, on_hook_ended, controller,
                                  &controller->hook_watch, &err))) {
        set_last(controller, "the hook's end cannot be waited for");
        controller->hook = 0;
    }
}

/* ---- acting ---- */

static void on_acted(void *context, int64_t revision, const sl_err *err)
{
    rtr_controller *controller = context;
    controller->act = NULL;
    if (err->code == SL_OK)
        run_hook(controller);
    else
        sl_warn("scale: nothing is done: %s", err->text);
}

static void act(rtr_controller *controller, const rtr_scale_status *now)
{
    char actor[CLU_NAME_MAX + 16], detail[120];
    sl_err err;
    snprintf(actor, sizeof actor, "controller %s", controller->options.router);
    snprintf(detail, sizeof detail, "prefill %u -> %u, decode %u -> %u", now->prefill,
             now->wanted.prefill, now->decode, now->wanted.decode);
    clu_action action = {.actor = actor,
                         .verb = "scale hook",
                         .target = "",
                         .detail = detail,
                         .fence = clu_election_fence(controller->election)};
    controller->tried = now->revision;
    controller->again_at = sl_now_ns() + HOOK_AGAIN_NS;
    if (!sl_is_ok(clu_action_start(controller->options.etcd, controller->options.cluster, &action,
                                   on_acted, controller, &controller->act, &err)))
        sl_warn("scale: nothing is done: %s", err.text);
}

/* ---- planning ---- */

static void on_wished(void *context, int64_t revision, const sl_err *err)
{
    rtr_controller *controller = context;
    controller->wish = NULL;
    if (err->code != SL_OK)
        sl_warn("scale: the plan is not carried out: %s", err->text);
}

/* Writes what an operator would who takes the advice. */
static void carry_out(rtr_controller *controller, const rtr_scale_status *now)
{
    const rtr_plan_advice *prefill = &now->advice[RTR_PLAN_ROLE_PREFILL],
                          *decode = &now->advice[RTR_PLAN_ROLE_DECODE];
    clu_scale wish = {.prefill = (uint32_t)((int32_t)now->prefill + prefill->more),
                      .decode = (uint32_t)((int32_t)now->decode + decode->more)};
    char key[CLU_KEY_MAX], actor[CLU_NAME_MAX + 16], detail[CLU_AUDIT_TEXT_MAX];
    sl_err err;
    sl_buf value;
    sl_status status = clu_key(controller->options.cluster, "scale", key, &err);
    snprintf(actor, sizeof actor, "controller %s", controller->options.router);
    snprintf(detail, sizeof detail, "prefill %u, decode %u wanted; there are %u and %u: %s%s%s",
             wish.prefill, wish.decode, now->prefill, now->decode,
             prefill->more ? prefill->reason : "", prefill->more && decode->more ? "; " : "",
             decode->more ? decode->reason : "");
    sl_buf_init(&value, CLU_DESIRED_JSON_MAX);
    clu_scale_write_json(&value, &wish);
    clu_action action = {
        .actor = actor,
        .verb = "scale apply",
        .target = "",
        .detail = detail,
        .changes = {{.key = key, .value = value.data, .expects = true, .revision = now->revision}},
        .change_count = 1,
        .fence = clu_election_fence(controller->election)};
    if (sl_is_ok(status))
        status = clu_action_start(controller->options.etcd, controller->options.cluster, &action,
                                  on_wished, controller, &controller->wish, &err);
    if (!sl_is_ok(status))
        sl_warn("scale: the plan is not carried out: %s", err.text);
    sl_buf_fini(&value);
}

static void tell_advice(rtr_controller *controller, const rtr_plan *before)
{
    static const char *const NAMES[RTR_PLAN_ROLE_COUNT] = {"prefill", "decode"};
    for (int i = 0; i < RTR_PLAN_ROLE_COUNT; i++) {
        const rtr_plan_advice *is = &controller->plan.advice[i];
        if (is->more == before->advice[i].more || is->more == 0)
            continue;
        sl_info("scale: one %s node %s is advised: %s", NAMES[i], is->more > 0 ? "more" : "less",
                is->reason);
        rtr_events_add(controller->options.events, "scale", "", "one %s node %s is advised: %.140s",
                       NAMES[i], is->more > 0 ? "more" : "less", is->reason);
    }
}

static rtr_plan_options plan_options(const rtr_options *o)
{
    return (rtr_plan_options){
        .window_ns = o->plan_window_ns < CENSUS_NS ? CENSUS_NS : o->plan_window_ns,
        .windows = (uint32_t)o->plan_windows,
        .pause_ns = o->plan_pause_ns,
        .queue_max = (uint32_t)o->plan_queue,
        .bounds = {{(uint32_t)o->plan_prefill_min, (uint32_t)o->plan_prefill_max},
                   {(uint32_t)o->plan_decode_min, (uint32_t)o->plan_decode_max}},
    };
}

static void plan_step(rtr_controller *controller, const rtr_plan_event *event)
{
    rtr_plan before = controller->plan;
    rtr_plan_options options = plan_options(controller->options.tuned);
    rtr_scale_status now;
    bool judged = rtr_plan_step(&controller->plan, &options, event, sl_now_ns());
    rtr_controller_status(controller, &now);
    show(controller, &now);
    tell_advice(controller, &before);
    bool wishes = judged && (now.advice[RTR_PLAN_ROLE_PREFILL].more != 0 ||
                             now.advice[RTR_PLAN_ROLE_DECODE].more != 0);
    if (wishes && now.mode == RTR_PLAN_MODE_ACT && !controller->wish)
        carry_out(controller, &now);
}

static double share(uint64_t part, uint64_t whole)
{
    return whole ? (double)part / (double)whole : 0;
}

static void show_load(const rtr_metrics *m, const rtr_plan_event *event)
{
    const rtr_plan_load *prefill = &event->roles[RTR_PLAN_ROLE_PREFILL],
                        *decode = &event->roles[RTR_PLAN_ROLE_DECODE];
    sl_metric_set(m->scale_queue, "prefill", prefill->queue);
    sl_metric_set(m->scale_queue, "decode", decode->queue);
    sl_metric_set(m->scale_busy, "prefill", prefill->busy);
    sl_metric_set(m->scale_busy, "decode", decode->busy);
}

static void on_census(void *context, const rtr_census_result *census)
{
    rtr_controller *controller = context;
    const rtr_census_role *prefill = &census->prefill, *decode = &census->decode;
    const rtr_census_routers *routers = &census->routers;
    bool set = controller->set;
    double slots = share(decode->slots_used, decode->slots),
           pages = share(decode->pages_used, decode->pages);
    rtr_plan_event event = {.routers = routers->count,
                            .roles = {{.nodes = prefill->nodes,
                                       .wanted = set ? controller->wanted.prefill : prefill->nodes,
                                       .ill = prefill->ill,
                                       .queue = prefill->waiting,
                                       .busy = share(prefill->working, prefill->nodes),
                                       .kept = routers->ttft_kept,
                                       .missed = routers->ttft_missed},
                                      {.nodes = decode->nodes,
                                       .wanted = set ? controller->wanted.decode : decode->nodes,
                                       .ill = decode->ill,
                                       .queue = routers->waiting,
                                       .busy = slots > pages ? slots : pages,
                                       .kept = routers->tpot_kept,
                                       .missed = routers->tpot_missed}}};
    show_load(controller->options.metrics, &event);
    plan_step(controller, &event);
}

static bool is_blind(const rtr_controller *controller)
{
    const clu_view *view = controller->options.view;
    return !clu_view_connected(view) || clu_view_frozen(view);
}

/* A new leader knows nothing: what it sees from now on counts. */
static void plan_look(rtr_controller *controller, sl_time_ns time)
{
    bool plans = clu_election_fence(controller->election) != 0 &&
                 controller->options.tuned->plan != RTR_PLAN_MODE_OFF;
    bool blind = is_blind(controller);
    if (!plans || blind)
        rtr_census_drop(controller->census);
    if (!plans) {
        controller->plan = (rtr_plan){0};
        show_load(controller->options.metrics, &(rtr_plan_event){0});
    } else if (blind) {
        plan_step(controller, &(rtr_plan_event){.blind = true});
    } else if (time >= controller->census_at) {
        controller->census_at = time + CENSUS_NS;
        rtr_census_start(controller->census);
    }
}

static void look(rtr_controller *controller)
{
    rtr_scale_status now;
    sl_time_ns time = sl_now_ns();
    if (!clu_view_ready(controller->options.view))
        return; /* nobody is known yet, which is not the same as nobody */
    rtr_controller_status(controller, &now);
    show(controller, &now);
    bool differs =
        now.set && (now.prefill != now.wanted.prefill || now.decode != now.wanted.decode);
    if (!differs)
        controller->differs_since = 0;
    else if (controller->differs_since == 0)
        controller->differs_since = time;
    bool leads = clu_election_fence(controller->election) != 0 && !is_blind(controller);
    bool busy = controller->act || controller->hook;
    bool fresh = now.revision != controller->tried; /* a new wish is not kept waiting */
    if (!differs || !leads || busy || !now.hook)
        return;
    if (fresh || (time >= controller->differs_since + SETTLE_NS && time >= controller->again_at))
        act(controller, &now);
}

static void on_timer(void *context, sl_time_ns now)
{
    rtr_controller *controller = context;
    look(controller);
    if (clu_view_ready(controller->options.view)) {
        plan_look(controller, now);
        rtr_rebalancer_look(controller->rebalancer,
                            is_blind(controller) ? 0 : clu_election_fence(controller->election),
                            now);
    }
    sl_timer_set(controller->timer, now + TICK_NS);
}

/* ---- the wish ---- */

static void on_put(void *context, const char *name, const char *value,
                   const Etcdserverpb__KeyValue *kv)
{
    rtr_controller *controller = context;
    sl_err err;
    if (*name)
        return; /* another key that begins alike */
    controller->listed = true;
    controller->revision = kv->mod_revision;
    controller->set =
        sl_is_ok(clu_scale_parse_json(value, strlen(value), &controller->wanted, &err));
    if (!controller->set)
        sl_warn("%s: nothing is done", err.text);
    look(controller);
}

static void on_delete(void *context, const char *name)
{
    rtr_controller *controller = context;
    if (*name)
        return;
    controller->set = false;
    controller->revision = 0;
}

static void on_list(void *context)
{
    ((rtr_controller *)context)->listed = false;
}

static void on_listed(void *context)
{
    rtr_controller *controller = context;
    if (!controller->listed)
        on_delete(controller, "");
}

static void on_seen(void *context)
{
    rtr_controller *controller = context;
    controller->options.on_wish_seen(controller->options.context);
}

const clu_table *rtr_controller_wish(const rtr_controller *controller)
{
    return controller->table;
}

const rtr_rebalancer *rtr_controller_rebalancer(const rtr_controller *controller)
{
    return controller->rebalancer;
}

/* ---- the election ---- */

static void on_elected(void *context, int64_t fence)
{
    rtr_controller *controller = context;
    sl_info("this router leads (fence %lld)", (long long)fence);
    look(controller);
}

static void on_deposed(void *context)
{
    rtr_controller *controller = context;
    rtr_rebalancer_look(controller->rebalancer, 0, sl_now_ns());
    sl_warn("this router leads no more");
}

static void on_leader(void *context, const char *name)
{
    rtr_controller *controller = context;
    rtr_events_add(controller->options.events, "leader", name, *name ? "leads" : "nobody leads");
}

/* ---- life ---- */

static sl_status open_parts(rtr_controller *controller, sl_err *err)
{
    static const clu_election_events ELECTION = {on_elected, on_deposed, on_leader};
    static const clu_table_events TABLE = {on_list, on_put, on_delete, on_listed, on_seen};
    const rtr_controller_options *options = &controller->options;
    rtr_census_options census = {.runtime = clu_etcd_runtime(options->etcd),
                                 .view = options->view,
                                 .tls = options->tls,
                                 .timeout_ns = 2 * CENSUS_NS,
                                 .fn = on_census,
                                 .context = controller};
    rtr_rebalancer_options rebalancer = {.etcd = options->etcd,
                                         .view = options->view,
                                         .cluster = options->cluster,
                                         .router = options->router,
                                         .tuned = options->tuned,
                                         .tls = options->tls,
                                         .events = options->events,
                                         .metrics = options->metrics};
    controller->census = rtr_census_create(&census);
    controller->rebalancer = rtr_rebalancer_create(&rebalancer);
    clu_election_options election = {
        .cluster = options->cluster, .name = options->router, .lease_ns = options->lease_ns};
    char key[CLU_KEY_MAX];
    SL_TRY(clu_election_create(options->etcd, &election, &ELECTION, controller,
                               &controller->election, err));
    SL_TRY(clu_key(options->cluster, "scale", key, err));
    return clu_table_create(options->etcd, key, &TABLE, controller, &controller->table, err);
}

sl_status rtr_controller_create(const rtr_controller_options *options,
                                rtr_controller **out_controller, sl_err *err)
{
    rtr_controller *controller = sl_alloc(1, sizeof *controller, "router controller");
    controller->options = *options;
    controller->timer =
        sl_timer_create(rpc_runtime_loop(clu_etcd_runtime(options->etcd)), on_timer, controller);
    sl_status status = open_parts(controller, err);
    if (!sl_is_ok(status)) {
        rtr_controller_destroy(controller);
        return status;
    }
    sl_timer_set(controller->timer, sl_now_ns() + TICK_NS);
    *out_controller = controller;
    return status;
}

void rtr_controller_destroy(rtr_controller *controller)
{
    if (!controller)
        return;
    rtr_census_destroy(controller->census);
    rtr_rebalancer_destroy(controller->rebalancer);
    clu_action_drop(controller->act);
    clu_action_drop(controller->wish);
    clu_election_destroy(controller->election);
    clu_table_destroy(controller->table);
    if (controller->hook_watch)
        close(controller->hook_fd);
    sl_watch_destroy(controller->hook_watch);
    sl_timer_destroy(controller->timer);
    sl_free(controller);
}
