/* See census.h. */
#include "router/census.h"

#include <string.h>

#include "base/alloc.h"
#include "proto/sluice/v1/cluster.pb-c.h"
#include "proto/sluice/v1/node.pb-c.h"
#include "router/round.h"
#include "rpc/methods.h"

struct rtr_census {
    rtr_census_options options;
    rtr_round *round;
    rtr_census_result result;
};

bool rtr_census_counts(const clu_view_member *member)
{
    return member->info.state != CLU_MEMBER_STATE_DRAINING &&
           member->info.state != CLU_MEMBER_STATE_LEFT && !member->suspect;
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

static void on_scale(void *context, void *of, const ProtobufCMessage *reply)
{
    rtr_census *census = context;
    const Sluice__V1__GetScaleReply *scale = (const Sluice__V1__GetScaleReply *)reply;
    if (scale && scale->own)
        take_router(&census->result.routers, scale->own);
}

static void on_status(void *context, void *of, const ProtobufCMessage *reply)
{
    rtr_census_role *role = of;
    const Sluice__V1__NodeStatus *status = (const Sluice__V1__NodeStatus *)reply;
    if (status && status->load && strcmp(status->state, "ready") == 0)
        take(role, status->load);
    else
        role->ill++;
}

/* role: NULL for a router. */
static void ask(rtr_census *census, const clu_view_member *member, rtr_census_role *role)
{
    static const Sluice__V1__NodeStatusRequest STATUS = SLUICE__V1__NODE_STATUS_REQUEST__INIT;
    static const Sluice__V1__GetScaleRequest SCALE = SLUICE__V1__GET_SCALE_REQUEST__INIT;
    if (role)
        rtr_round_ask(census->round, member, &rpc_method_node_get_status, &STATUS.base, on_status,
                      role);
    else
        rtr_round_ask(census->round, member, &rpc_method_cluster_get_scale, &SCALE.base, on_scale,
                      NULL);
}

static rtr_census_role *role_of(rtr_census *census, const clu_view_member *member)
{
    if (strcmp(member->info.role, "prefill") == 0)
        return &census->result.prefill;
    return strcmp(member->info.role, "decode") == 0 ? &census->result.decode : NULL;
}

static void on_end(void *context, sl_time_ns now)
{
    rtr_census *census = context;
    census->options.fn(census->options.context, &census->result);
}

void rtr_census_start(rtr_census *census)
{
    const clu_view *view = census->options.view;
    if (rtr_round_is_open(census->round))
        return;
    census->result = (rtr_census_result){0};
    rtr_round_begin(census->round, clu_view_count(view));
    for (size_t i = 0; i < clu_view_count(view) && !rtr_round_is_full(census->round); i++) {
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
    rtr_round_asked(census->round);
}

void rtr_census_drop(rtr_census *census)
{
    rtr_round_drop(census->round);
}

rtr_census *rtr_census_create(const rtr_census_options *options)
{
    rtr_census *census = sl_alloc(1, sizeof *census, "router census");
    census->options = *options;
    const rtr_round_options round = {.runtime = options->runtime,
                                     .tls = options->tls,
                                     .timeout_ns = options->timeout_ns,
                                     .on_end = on_end,
                                     .context = census};
    census->round = rtr_round_create(&round);
    return census;
}

void rtr_census_destroy(rtr_census *census)
{
    if (!census)
        return;
    rtr_round_destroy(census->round);
    sl_free(census);
}
