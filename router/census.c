/* See census.h. Owns the calls of a round, and the channels that they go by. */
#include "router/census.h"

#include <string.h>

#include "base/alloc.h"
#include "proto/sluice/v1/cluster.pb-c.h"
#include "proto/sluice/v1/node.pb-c.h"
#include "rpc/methods.h"

typedef struct question {
    rtr_census *census;
    rtr_census_role *role; /* NULL: a router */
    rpc_channel *channel;  /* shares the connection that there is to the node */
    rpc_call *call;        /* NULL: it has ended */
} question;

struct rtr_census {
    rtr_census_options options;
    question *questions; /* [count] of the round under way */
    uint32_t count, open;
    sl_timer *end; /* a round ends in a turn of its own */
    rtr_census_result result;
};

bool rtr_census_counts(const clu_view_member *member)
{
    return member->info.state != CLU_MEMBER_STATE_DRAINING &&
           member->info.state != CLU_MEMBER_STATE_LEFT && !member->suspect;
}

static void ended(rtr_census *census)
{
    if (--census->open == 0)
        sl_timer_set(census->end, sl_now_ns());
}

static void take(rtr_census_role *role, const Sluice__V1__Load *load)
{
    role->working += load->running > 0;
    role->waiting += load->waiting;
    role->slots += load->slots_total;
    role->pages += load->pages_total;
    if (load->slots_free < load->slots_total)
        role->slots_used += load->slots_total - load->slots_free;
    if (load->pages_free < load->pages_total)
        role->pages_used += load->pages_total - load->pages_free;
}

static void take_router(rtr_census_routers *routers, const Sluice__V1__RouterLoad *load)
{
    routers->count++;
    routers->waiting += load->waiting;
    routers->ttft_kept += load->ttft_kept;
    routers->ttft_missed += load->ttft_missed;
    routers->tpot_kept += load->tpot_kept;
    routers->tpot_missed += load->tpot_missed;
}

static void on_scale(void *context, const ProtobufCMessage *reply, const sl_err *err)
{
    question *asked = context;
    const Sluice__V1__GetScaleReply *scale = (const Sluice__V1__GetScaleReply *)reply;
    asked->call = NULL;
    if (scale && scale->own)
        take_router(&asked->census->result.routers, scale->own);
    ended(asked->census);
}

static void on_status(void *context, const ProtobufCMessage *reply, const sl_err *err)
{
    question *asked = context;
    const Sluice__V1__NodeStatus *status = (const Sluice__V1__NodeStatus *)reply;
    asked->call = NULL;
    if (status && status->load && strcmp(status->state, "ready") == 0)
        take(asked->role, status->load);
    else
        asked->role->ill++;
    ended(asked->census);
}

/* role: NULL for a router. */
static void ask(rtr_census *census, const clu_view_member *member, rtr_census_role *role)
{
    static const Sluice__V1__NodeStatusRequest STATUS = SLUICE__V1__NODE_STATUS_REQUEST__INIT;
    static const Sluice__V1__GetScaleRequest SCALE = SLUICE__V1__GET_SCALE_REQUEST__INIT;
    rpc_channel_options channel = {.tls = census->options.tls};
    rpc_call_options options = {.deadline = sl_now_ns() + census->options.timeout_ns};
    question *asked = &census->questions[census->count++];
    sl_err err;
    *asked = (question){.census = census, .role = role};
    sl_status status = rpc_channel_create(census->options.runtime, member->info.control, &channel,
                                          &asked->channel, &err);
    if (sl_is_ok(status))
        status = rpc_unary(asked->channel,
                           role ? &rpc_method_node_get_status : &rpc_method_cluster_get_scale,
                           role ? &STATUS.base : &SCALE.base, &options, role ? on_status : on_scale,
                           asked, &asked->call, &err);
    if (sl_is_ok(status)) {
        census->open++;
    } else {
        asked->call = NULL;
        if (role)
            role->ill++;
    }
}

static rtr_census_role *role_of(rtr_census *census, const clu_view_member *member)
{
    if (strcmp(member->info.role, "prefill") == 0)
        return &census->result.prefill;
    return strcmp(member->info.role, "decode") == 0 ? &census->result.decode : NULL;
}

static void forget(rtr_census *census)
{
    for (uint32_t i = 0; i < census->count; i++) {
        rpc_call_drop(census->questions[i].call);
        rpc_channel_destroy(census->questions[i].channel);
    }
    sl_free(census->questions);
    census->questions = NULL;
    census->count = census->open = 0;
}

static void on_end(void *context, sl_time_ns now)
{
    rtr_census *census = context;
    forget(census);
    census->options.fn(census->options.context, &census->result);
}

void rtr_census_start(rtr_census *census)
{
    const clu_view *view = census->options.view;
    if (census->questions)
        return;
    census->result = (rtr_census_result){0};
    census->questions =
        sl_alloc(clu_view_count(view) + 1, sizeof *census->questions, "router census");
    for (size_t i = 0; i < clu_view_count(view) && census->count < RTR_NODES_MAX; i++) {
        const clu_view_member *member = clu_view_at(view, i);
        rtr_census_role *role = role_of(census, member);
        bool router = strcmp(member->info.role, "router") == 0;
        if (role)
            role->ill += member->suspect;
        if ((!role && !router) || !rtr_census_counts(member))
            continue;
        if (role)
            role->nodes++;
        ask(census, member, role);
    }
    if (census->open == 0)
        sl_timer_set(census->end, sl_now_ns());
}

void rtr_census_drop(rtr_census *census)
{
    forget(census);
    sl_timer_set(census->end, SL_NEVER);
}

rtr_census *rtr_census_create(const rtr_census_options *options)
{
    rtr_census *census = sl_alloc(1, sizeof *census, "router census");
    census->options = *options;
    census->end = sl_timer_create(rpc_runtime_loop(options->runtime), on_end, census);
    return census;
}

void rtr_census_destroy(rtr_census *census)
{
    if (!census)
        return;
    rtr_census_drop(census);
    sl_timer_destroy(census->end);
    sl_free(census);
}
