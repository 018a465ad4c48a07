/* See rebalancer.h. Owns what is known of each instance, and one plan with the thread that makes
 * it. */
#include "router/rebalancer.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"
#include "cluster/action.h"
#include "cluster/placement_table.h"
#include "proto/etcd/etcd.pb-c.h"
#include "proto/sluice/v1/node.pb-c.h"
#include "router/limits.h"
#include "router/rebalance_plan.h"
#include "router/round.h"
#include "rpc/methods.h"

#define ASK_NS      (5 * SL_S_NS)
#define WINDOW_MIN  SL_S_NS
#define FORGET_AT   8u /* rounds in a row in which nobody answered for an instance */
#define SILENT      "a rank is silent"
#define AWAY        "a rank is away"
#define ROLLING_OUT "ranks go over to another formation"

typedef struct instance {
    char name[CLU_NAME_MAX];
    rtr_rebalance *state;
    uint32_t silent; /* rounds in a row */
    bool waits;      /* for its plan */
    uint64_t bytes;  /* of its experts, by the last round that all ranks answered */
    /* of the round under way */
    uint64_t answered; /* ranks, as bits */
    uint64_t formation, placement, bytes_so_far;
    const char *missing;
    uint64_t *expert_rows, *rank_rows; /* [layers][experts], [layers][ranks] */
} instance;

/* The plan under way. */
typedef struct job {
    instance *of; /* NULL: none */
    char key[CLU_KEY_MAX];
    clu_request *request;
    clu_placement *before, *after;
    int64_t revision;
    clu_action_run *run;
    /* A thread of its own makes the plan; what it reads and writes is its, while it runs. */
    pthread_t thread;
    bool runs;
    bool stopped, finished; /* atomic accesses only */
    double gain;
    uint64_t bytes;
    rtr_rebalance_plan plan;
    sl_status status;
    sl_err err;
} job;

struct rtr_rebalancer {
    rtr_rebalancer_options options;
    int64_t fence;      /* 0: does nothing */
    sl_time_ns look_at; /* when the next round begins */
    rtr_round *round;
    instance *instances[RTR_INSTANCES_MAX];
    uint32_t instance_count;
    job job;
};

static void step(rtr_rebalancer *r, instance *of, const rtr_rebalance_event *event, sl_time_ns now);

static rtr_rebalance_options step_options(const rtr_options *o)
{
    return (rtr_rebalance_options){
        .mode = (rtr_plan_mode)o->rebalance,
        .window_ns = o->rebalance_window_ns < WINDOW_MIN ? WINDOW_MIN : o->rebalance_window_ns,
        .windows = (uint32_t)o->rebalance_windows,
        .rows = (uint32_t)o->rebalance_rows,
        .pause_ns = o->rebalance_pause_ns,
        .over = o->rebalance_over,
        .gain = o->rebalance_gain,
    };
}

/* ---- instances ---- */

static void instance_destroy(instance *of)
{
    rtr_rebalance_destroy(of->state);
    sl_free(of->expert_rows);
    sl_free(of->rank_rows);
    sl_free(of);
}

static instance *instance_create(const Sluice__V1__ExpertsReply *reply)
{
    instance *of = sl_alloc(1, sizeof *of, "rebalanced instance");
    snprintf(of->name, sizeof of->name, "%s", reply->instance);
    of->state = rtr_rebalance_create(reply->layers, reply->experts, reply->ranks);
    of->expert_rows = sl_alloc(reply->n_rows, sizeof(uint64_t), "expert rows");
    of->rank_rows = sl_alloc((size_t)reply->layers * reply->ranks, sizeof(uint64_t), "expert rows");
    return of;
}

/* Of an answer that can be. NULL: there are too many, or it is about to be forgotten. */
static instance *instance_of(rtr_rebalancer *r, const Sluice__V1__ExpertsReply *reply)
{
    for (uint32_t i = 0; i < r->instance_count; i++) {
        instance *of = r->instances[i];
        const rtr_rebalance *state = of->state;
        if (strcmp(of->name, reply->instance) != 0)
            continue;
        bool same = state->layers == reply->layers && state->experts == reply->experts &&
                    state->ranks == reply->ranks;
        return same ? of : NULL; /* it is another one by that name: in a while */
    }
    if (r->instance_count == RTR_INSTANCES_MAX)
        return NULL;
    return r->instances[r->instance_count++] = instance_create(reply);
}

static bool is_sound(const Sluice__V1__ExpertsReply *reply)
{
    return clu_name_valid(reply->instance) && reply->layers > 0 &&
           reply->layers <= CLU_PLACE_LAYERS_MAX && reply->experts > 0 &&
           reply->experts <= CLU_PLACE_EXPERTS_MAX && reply->ranks > 1 &&
           reply->ranks <= CLU_PLACE_RANKS_MAX && reply->rank < reply->ranks &&
           reply->n_rows == (size_t)reply->layers * reply->experts;
}

static uint64_t all_ranks(uint32_t ranks)
{
    return UINT64_MAX >> (64 - ranks);
}

static void take(rtr_rebalancer *r, const Sluice__V1__ExpertsReply *reply)
{
    instance *of = is_sound(reply) ? instance_of(r, reply) : NULL;
    if (!of || of->answered >> reply->rank & 1)
        return;
    if (of->answered == 0) {
        of->formation = reply->formation;
        of->placement = reply->placement_version;
    }
    if (of->formation != reply->formation || of->placement != reply->placement_version)
        of->missing = ROLLING_OUT;
    else if (reply->ranks_present != all_ranks(reply->ranks))
        of->missing = AWAY;
    of->answered |= UINT64_C(1) << reply->rank;
    of->bytes_so_far += reply->expert_bytes;
    for (size_t at = 0; at < reply->n_rows; at++) {
        of->expert_rows[at] += reply->rows[at];
        of->rank_rows[at / reply->experts * reply->ranks + reply->rank] += reply->rows[at];
    }
}

static void round_clear(instance *of)
{
    const rtr_rebalance *state = of->state;
    of->answered = of->formation = of->placement = of->bytes_so_far = 0;
    of->missing = NULL;
    memset(of->expert_rows, 0, (size_t)state->layers * state->experts * sizeof(uint64_t));
    memset(of->rank_rows, 0, (size_t)state->layers * state->ranks * sizeof(uint64_t));
}

static void job_end(rtr_rebalancer *r)
{
    job *j = &r->job;
    if (j->runs) {
        __atomic_store_n(&j->stopped, true, __ATOMIC_RELAXED);
        (void)pthread_join(j->thread, NULL); /* it ends with the layer that it is at */
    }
    clu_request_drop(j->request);
    clu_action_drop(j->run);
    clu_placement_destroy(j->before);
    clu_placement_destroy(j->after);
    *j = (job){0};
}

static void forget_all(rtr_rebalancer *r)
{
    rtr_round_drop(r->round);
    job_end(r);
    for (uint32_t i = 0; i < r->instance_count; i++) {
        sl_metric_set(r->options.metrics->ep_imbalance, r->instances[i]->name, 0);
        instance_destroy(r->instances[i]);
    }
    r->instance_count = 0;
    r->look_at = 0;
}

/* The settings may change between two looks: what a look began must not go on then. */
static bool is_switched_off(rtr_rebalancer *r)
{
    bool off = r->options.tuned->rebalance == RTR_PLAN_MODE_OFF;
    if (off)
        forget_all(r);
    return off;
}

/* ---- asking ---- */

static void on_experts(void *context, void *of, const ProtobufCMessage *reply)
{
    if (reply)
        take(context, (const Sluice__V1__ExpertsReply *)reply);
}

static void round_start(rtr_rebalancer *r)
{
    static const Sluice__V1__ExpertsRequest REQUEST = SLUICE__V1__EXPERTS_REQUEST__INIT;
    const clu_view *view = r->options.view;
    for (uint32_t i = 0; i < r->instance_count; i++)
        round_clear(r->instances[i]);
    rtr_round_begin(r->round, clu_view_count(view));
    for (size_t i = 0; i < clu_view_count(view) && !rtr_round_is_full(r->round); i++) {
        const clu_view_member *member = clu_view_at(view, i);
        if (strcmp(member->info.role, "router") != 0 && !member->suspect &&
            member->info.state != CLU_MEMBER_STATE_LEFT)
            rtr_round_ask(r->round, member, &rpc_method_node_get_experts, &REQUEST.base, on_experts,
                          NULL);
    }
    rtr_round_asked(r->round);
}

static void forget_silent(rtr_rebalancer *r)
{
    for (uint32_t i = 0; i < r->instance_count;) {
        instance *of = r->instances[i];
        if (of->silent < FORGET_AT || of == r->job.of || of->waits) {
            i++;
            continue;
        }
        sl_metric_set(r->options.metrics->ep_imbalance, of->name, 0);
        instance_destroy(of);
        r->instances[i] = r->instances[--r->instance_count];
    }
}

static void on_round_end(void *context, sl_time_ns now)
{
    rtr_rebalancer *r = context;
    if (is_switched_off(r))
        return;
    for (uint32_t i = 0; i < r->instance_count; i++) {
        instance *of = r->instances[i];
        of->silent = of->answered ? 0 : of->silent + 1;
        if (!of->missing && of->answered != all_ranks(of->state->ranks))
            of->missing = SILENT;
        if (!of->missing)
            of->bytes = of->bytes_so_far;
        rtr_rebalance_event event = {.kind = RTR_REBALANCE_SEEN,
                                     .seen = {.missing = of->missing,
                                              .formation = of->formation,
                                              .placement = of->placement,
                                              .expert_rows = of->expert_rows,
                                              .rank_rows = of->rank_rows}};
        step(r, of, &event, now);
    }
    r->look_at = now + step_options(r->options.tuned).window_ns;
    forget_silent(r);
}

/* ---- a plan ---- */

static void job_fail(rtr_rebalancer *r, const char *why)
{
    instance *of = r->job.of;
    const rtr_rebalance_event event = {.kind = RTR_REBALANCE_FAILED, .why = why};
    job_end(r);
    step(r, of, &event, sl_now_ns());
}

static void *plan_main(void *context)
{
    job *j = context;
    const rtr_rebalance_question asked = {.table = j->before,
                                          .recent = j->of->state->recent,
                                          .past = j->of->state->past,
                                          .gain = j->gain,
                                          .bytes = j->bytes,
                                          .stopped = &j->stopped};
    j->status = rtr_rebalance_make_plan(&asked, &j->after, &j->plan, &j->err);
    __atomic_store_n(&j->finished, true, __ATOMIC_RELEASE);
    return NULL;
}

static void plan_look(rtr_rebalancer *r)
{
    job *j = &r->job;
    if (!j->runs || !__atomic_load_n(&j->finished, __ATOMIC_ACQUIRE))
        return;
    (void)pthread_join(j->thread, NULL);
    j->runs = false;
    if (!sl_is_ok(j->status)) {
        sl_err err = j->err;
        job_fail(r, err.text);
        return;
    }
    const rtr_rebalance_event event = {.kind = RTR_REBALANCE_PLANNED, .plan = j->plan};
    step(r, j->of, &event, sl_now_ns());
    if (!j->run)
        job_end(r);
}

static sl_status take_table(job *j, const Etcdserverpb__RangeResponse *reply, sl_err *err)
{
    const rtr_rebalance *state = j->of->state;
    if (reply->n_kvs == 0)
        return sl_fail(err, SL_NOT_FOUND, "there is no placement of %s", j->of->name);
    const Etcdserverpb__KeyValue *kv = reply->kvs[0];
    j->revision = kv->mod_revision;
    SL_TRY(clu_placement_parse_json(kv->value.data, kv->value.len, &j->before, err));
    const clu_place_shape *shape = &j->before->shape;
    if (shape->layers != state->layers || shape->experts != state->experts ||
        shape->ranks != state->ranks)
        return sl_fail(err, SL_INVALID, "the placement is one of %u layers, %u experts, %u ranks",
                       shape->layers, shape->experts, shape->ranks);
    return sl_ok();
}

/* Planning takes a while: what is read of the instance meanwhile does not change in its phase. */
static sl_status plan_start(rtr_rebalancer *r, const Etcdserverpb__RangeResponse *reply,
                            sl_err *err)
{
    job *j = &r->job;
    SL_TRY(take_table(j, reply, err));
    j->bytes = j->of->bytes;
    j->gain = r->options.tuned->rebalance_gain;
    if (pthread_create(&j->thread, NULL, plan_main, j) != 0)
        return sl_fail(err, SL_NO_MEMORY, "no thread can be started");
    j->runs = true;
    return sl_ok();
}

static void on_table(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    rtr_rebalancer *r = context;
    sl_err why = *err;
    r->job.request = NULL;
    if (is_switched_off(r))
        return;
    if (err->code != SL_OK || !sl_is_ok(plan_start(r, (const void *)message, &why)))
        job_fail(r, why.text);
}

static void job_start(rtr_rebalancer *r, instance *of)
{
    static const clu_request_options ONCE = {.idempotent = true};
    Etcdserverpb__RangeRequest request = ETCDSERVERPB__RANGE_REQUEST__INIT;
    job *j = &r->job;
    sl_err err;
    *j = (job){.of = of};
    of->waits = false;
    sl_status status = clu_placement_key(r->options.cluster, of->name, j->key, &err);
    request.key = clu_bytes(j->key);
    if (sl_is_ok(status))
        status = clu_etcd_request(r->options.etcd, &rpc_method_etcd_kv_range, &request.base, &ONCE,
                                  on_table, r, &j->request, &err);
    if (!sl_is_ok(status))
        job_fail(r, err.text);
}

static void job_next(rtr_rebalancer *r)
{
    for (uint32_t i = 0; i < r->instance_count && !r->job.of; i++)
        if (r->instances[i]->waits)
            job_start(r, r->instances[i]);
}

/* ---- writing ---- */

static void on_written(void *context, int64_t revision, const sl_err *err)
{
    rtr_rebalancer *r = context;
    instance *of = r->job.of;
    rtr_rebalance_event event = {.kind = RTR_REBALANCE_WRITTEN};
    r->job.run = NULL;
    if (is_switched_off(r))
        return;
    if (err->code != SL_OK) {
        job_fail(r, err->text);
        return;
    }
    job_end(r);
    step(r, of, &event, sl_now_ns());
}

static void write_table(rtr_rebalancer *r, instance *of)
{
    job *j = &r->job;
    char actor[CLU_NAME_MAX + 16], detail[CLU_AUDIT_TEXT_MAX];
    sl_buf value;
    sl_err err;
    sl_assert(j->of == of);
    snprintf(actor, sizeof actor, "controller %s", r->options.router);
    snprintf(detail, sizeof detail, "version %" PRIu64 ": %s", j->after->version,
             of->state->reason);
    sl_buf_init(&value, CLU_PLACEMENT_JSON_MAX);
    clu_placement_write_json(&value, j->after);
    sl_buf_putc(&value, '\0');
    const clu_action action = {.actor = actor,
                               .verb = "placement",
                               .target = of->name,
                               .detail = detail,
                               .changes = {{j->key, value.data, true, j->revision}},
                               .change_count = 1,
                               .fence = r->fence};
    sl_status status = value.overflow
                           ? sl_fail(&err, SL_TOO_LARGE, "the table is too large for etcd")
                           : clu_action_start(r->options.etcd, r->options.cluster, &action,
                                              on_written, r, &j->run, &err);
    sl_buf_fini(&value);
    if (!sl_is_ok(status))
        job_fail(r, err.text);
}

/* ---- steps ---- */

static void tell(rtr_rebalancer *r, const instance *of)
{
    sl_info("rebalance of %s: %s", of->name, of->state->reason);
    rtr_events_add(r->options.events, "rebalance", of->name, "%.160s", of->state->reason);
}

static void tell_done(rtr_rebalancer *r, const instance *of)
{
    const rtr_metrics *m = r->options.metrics;
    double seconds = (double)of->state->took_ns / 1e9;
    sl_metric_add(m->rebalances, of->name, 1);
    sl_metric_set(m->rebalance_seconds, of->name, seconds);
    sl_info("rebalance of %s: placement %" PRIu64 " is in use after %.1f s", of->name,
            of->state->placement, seconds);
    rtr_events_add(r->options.events, "rebalance", of->name,
                   "placement %" PRIu64 " is in use after %.1f s", of->state->placement, seconds);
}

static void step(rtr_rebalancer *r, instance *of, const rtr_rebalance_event *event, sl_time_ns now)
{
    const rtr_rebalance_options options = step_options(r->options.tuned);
    bool advised = of->state->advised;
    rtr_rebalance_action action = rtr_rebalance_step(of->state, &options, event, now);
    sl_metric_set(r->options.metrics->ep_imbalance, of->name, of->state->imbalance);
    if ((of->state->advised && !advised) || event->kind == RTR_REBALANCE_FAILED)
        tell(r, of);
    switch (action) {
    case RTR_REBALANCE_NOTHING:
        break;
    case RTR_REBALANCE_PLAN:
        of->waits = true; /* the next look begins it */
        break;
    case RTR_REBALANCE_WRITE:
        write_table(r, of);
        break;
    case RTR_REBALANCE_DONE:
        tell_done(r, of);
        break;
    case RTR_REBALANCE_LATE:
        tell(r, of);
        break;
    }
}

/* ---- life ---- */

static bool rolls_out(const rtr_rebalancer *r)
{
    for (uint32_t i = 0; i < r->instance_count; i++)
        if (r->instances[i]->state->phase == RTR_REBALANCE_PHASE_ROLLING_OUT)
            return true;
    return false;
}

void rtr_rebalancer_look(rtr_rebalancer *r, int64_t fence, sl_time_ns now)
{
    bool works = fence != 0 && r->options.tuned->rebalance != RTR_PLAN_MODE_OFF;
    if (!works || fence != r->fence)
        forget_all(r);
    r->fence = works ? fence : 0;
    if (!works)
        return;
    if (!rtr_round_is_open(r->round) && (now >= r->look_at || rolls_out(r)))
        round_start(r);
    plan_look(r);
    job_next(r);
}

const rtr_rebalance *rtr_rebalancer_at(const rtr_rebalancer *r, uint32_t index,
                                       const char **out_instance)
{
    if (index >= r->instance_count)
        return NULL;
    *out_instance = r->instances[index]->name;
    return r->instances[index]->state;
}

rtr_rebalancer *rtr_rebalancer_create(const rtr_rebalancer_options *options)
{
    rtr_rebalancer *r = sl_alloc(1, sizeof *r, "rebalancer");
    const rtr_round_options round = {.runtime = clu_etcd_runtime(options->etcd),
                                     .tls = options->tls,
                                     .timeout_ns = ASK_NS,
                                     .on_end = on_round_end,
                                     .context = r};
    r->options = *options;
    r->round = rtr_round_create(&round);
    return r;
}

void rtr_rebalancer_destroy(rtr_rebalancer *r)
{
    if (!r)
        return;
    forget_all(r);
    rtr_round_destroy(r->round);
    sl_free(r);
}
