/* Node.SetRole: another role for this process, with the weights and the cache that it has.
 *
 * The node looks like one that drains, so that routers give it nothing new and move what it has;
 * when nothing is left it comes back under the new role. What has not ended by the deadline ends
 * the change instead: the node goes on as what it was. Thread: control loop. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "node/internal.h"
#include "proto/sluice/v1/node.pb-c.h"

struct nod_role_change {
    nod_host *host;
    bool active;
    nod_role wanted;
    sl_time_ns started_at;
    sl_timer *timer;
    rpc_server_call *call; /* NULL: who asked has gone */
};

/* Which services take requests in this role; the others hand over what they have, or fetch. */
void nod_role_apply(nod_host *host, bool takes)
{
    dec_service_drain(host->decode, !takes);
    dec_service_set_fetches_only(host->decode, host->role == NOD_ROLE_PREFILL);
    pre_service_drain(host->prefill, !takes);
    pre_service_set_offers_only(host->prefill, host->role == NOD_ROLE_DECODE);
}

static void end(nod_role_change *change, sl_code code, const char *text)
{
    nod_host *host = change->host;
    rpc_server_call *call = change->call;
    change->active = false;
    change->call = NULL;
    sl_timer_set(change->timer, SL_NEVER);
    if (host->state == NOD_STATE_READY) {
        nod_role_apply(host, true);
        nod_host_tell_cluster(host);
    }
    if (!call)
        return;
    rpc_server_call_set(call, &(rpc_server_call_events){0}, NULL);
    if (code != SL_OK) {
        rpc_server_call_finish(call, code, text);
        return;
    }
    Sluice__V1__SetRoleReply reply = SLUICE__V1__SET_ROLE_REPLY__INIT;
    reply.role = (char *)nod_role_name(host->role);
    reply.wait_us = (sl_loop_now(host->loop) - change->started_at) / 1000;
    rpc_server_call_reply(call, &reply.base);
}

bool nod_role_changing(const nod_role_change *change)
{
    return change->active;
}

void nod_role_continue(nod_role_change *change)
{
    nod_host *host = change->host;
    if (!change->active)
        return;
    if (host->state != NOD_STATE_READY) {
        end(change, SL_UNAVAILABLE, "the node is leaving: its role is what it was");
        return;
    }
    if (nod_host_live(host) > 0 || dec_service_moves(host->decode) > 0)
        return;
    host->role = change->wanted;
    sl_info("role %s from now on, after %.2f s", nod_role_name(host->role),
            (double)(sl_loop_now(host->loop) - change->started_at) / 1e9);
    end(change, SL_OK, NULL);
}

static void on_deadline(void *context, sl_time_ns now)
{
    nod_role_change *change = context;
    char text[160];
    if (!change->active)
        return;
    snprintf(text, sizeof(text), "%u requests had not ended in time: the node stays %s",
             nod_host_live(change->host), nod_role_name(change->host->role));
    sl_warn("role not changed: %s", text);
    end(change, SL_DEADLINE, text);
}

static void on_closed(void *context, rpc_server_call *call, bool cancelled)
{
    nod_role_change *change = context;
    change->call = NULL; /* the change goes on */
}

static sl_status check(const nod_role_change *change, const char *role, nod_role *out_role,
                       sl_err *err)
{
    const nod_host *host = change->host;
    for (int i = 0; i < NOD_ROLE_COUNT; i++) {
        if (strcmp(role, nod_role_name((nod_role)i)) != 0)
            continue;
        *out_role = (nod_role)i;
        if (change->active)
            return sl_fail(err, SL_EXISTS, "a change to %s is under way",
                           nod_role_name(change->wanted));
        if (nod_ranks_used(host))
            return sl_fail(err, SL_UNSUPPORTED,
                           "one rank of several: all would have to change at once");
        if (nod_pausing_active(host->pausing))
            return sl_fail(err, SL_CONFLICT, "the node is paused: weights resume comes first");
        if (host->state != NOD_STATE_READY)
            return sl_fail(err, SL_UNAVAILABLE, "the node is %s", nod_state_name(host->state));
        if (nod_reload_active(host->reload))
            return sl_fail(err, SL_CONFLICT, "the node is reloading");
        return sl_ok();
    }
    return sl_fail(err, SL_INVALID, "role \"%.40s\": want prefill, decode or hybrid", role);
}

void nod_role_on_call(void *context, rpc_server_call *call, const ProtobufCMessage *base)
{
    static const rpc_server_call_events EVENTS = {.on_closed = on_closed};
    nod_role_change *change = context;
    nod_host *host = change->host;
    const Sluice__V1__SetRoleRequest *request = (const Sluice__V1__SetRoleRequest *)base;
    uint64_t timeout_ns = request->deadline_ms ? (uint64_t)request->deadline_ms * SL_MS_NS
                                               : host->options->drain_timeout_ns;
    char detail[80];
    sl_err err;
    nod_role wanted = host->role;
    sl_status status = check(change, request->role, &wanted, &err);
    if (!sl_is_ok(status)) {
        rpc_server_call_finish(call, status.code, err.text);
        return;
    }
    snprintf(detail, sizeof(detail), "%s -> %s", nod_role_name(host->role), nod_role_name(wanted));
    nod_audit_note(host->audit, call, "role", detail);
    change->call = call;
    change->started_at = sl_loop_now(host->loop);
    change->wanted = wanted;
    change->active = true;
    rpc_server_call_set(call, &EVENTS, change);
    if (wanted == host->role) {
        end(change, SL_OK, NULL);
        return;
    }
    sl_timer_set(change->timer, change->started_at + timeout_ns);
    nod_role_apply(host, false);
    nod_host_tell_cluster(host);
}

nod_role_change *nod_role_change_create(nod_host *host)
{
    nod_role_change *change = sl_alloc(1, sizeof(*change), "node role");
    change->host = host;
    change->timer = sl_timer_create(host->loop, on_deadline, change);
    return change;
}

void nod_role_change_destroy(nod_role_change *change)
{
    if (!change)
        return;
    sl_timer_destroy(change->timer);
    sl_free(change);
}
