/* Node.Pause and EndPause: the adapter around node/pause.h. Holds the calls that wait for the
 * engine's rest; has services, routers and the engine's thread do what the machine says.
 *
 * The process that pauses is as alive as any: its health stays what it is, its streams stand, its
 * lease is kept, requests can be cancelled, pages fetched. Thread: control loop. */
#include <stdio.h>

#include "base/alloc.h"
#include "base/log.h"
#include "node/internal.h"
#include "node/pause.h"

#define ASKERS_MAX  16u /* that are remembered of one pause */
#define HOLD_NS     (600 * SL_S_NS)
#define HOLD_MAX_NS (86400 * SL_S_NS)

/* Somebody asked for the pause that is under way. */
typedef struct asker {
    bool used;
    bool first;            /* it began by this */
    uint64_t claim;        /* 0: is not taken back */
    rpc_server_call *call; /* NULL: answered, or gone */
    sl_time_ns deadline;   /* of the call */
} asker;

struct nod_pausing {
    nod_host *host;
    nod_pause core;
    sl_timer *timer;
    asker askers[ASKERS_MAX];
    bool forgotten; /* one has the pause that found no place here: the others do not end it */
};

static void on_closed(void *context, rpc_server_call *call, bool cancelled)
{
    nod_pausing *pausing = context;
    for (uint32_t i = 0; i < ASKERS_MAX; i++)
        if (pausing->askers[i].call == call)
            pausing->askers[i].call = NULL; /* the pause goes on */
}

static void reply(const nod_pausing *pausing, rpc_server_call *call, bool changed)
{
    const nod_pause *core = &pausing->core;
    Sluice__V1__Stamp stamp;
    nod_host_stamp(pausing->host, &stamp);
    Sluice__V1__PauseReply out = SLUICE__V1__PAUSE_REPLY__INIT;
    out.changed = changed;
    out.requests = nod_host_live(pausing->host);
    out.wait_us = (core->rested_at - core->asked_at) / 1000;
    out.hold_ms = (uint32_t)(core->hold_ns / SL_MS_NS);
    out.stamp = &stamp;
    rpc_server_call_reply(call, &out.base);
}

/* state: that did not end in time. */
static const char *why_not(sl_code code, nod_pause_state state)
{
    if (code == SL_CONFLICT)
        return "the pause was taken back";
    if (code == SL_EXISTS)
        return "somebody else asked for a pause that keeps what runs: nothing is waited for";
    if (code == SL_UNAVAILABLE)
        return "the node leaves: it does not pause";
    return state == NOD_PAUSE_STATE_WAITING
               ? "what runs did not end in time: the node serves on"
               : "the step under way did not end in time: the node serves on";
}

static void fail(asker *a, sl_code code, const char *text)
{
    rpc_server_call *call = a->call;
    *a = (asker){0};
    if (!call)
        return;
    rpc_server_call_set(call, &(rpc_server_call_events){0}, NULL);
    /* A call's own deadline says something else. */
    rpc_server_call_finish(call, code == SL_UNAVAILABLE ? code : SL_CONFLICT, text);
}

/* They have it. */
static void answer_all(nod_pausing *pausing)
{
    for (uint32_t i = 0; i < ASKERS_MAX; i++) {
        asker *a = &pausing->askers[i];
        rpc_server_call *call = a->call;
        a->call = NULL;
        if (!call)
            continue;
        rpc_server_call_set(call, &(rpc_server_call_events){0}, NULL);
        reply(pausing, call, a->first);
    }
}

static void fail_all(nod_pausing *pausing, sl_code code, const char *text)
{
    for (uint32_t i = 0; i < ASKERS_MAX; i++)
        fail(&pausing->askers[i], code, text);
    pausing->forgotten = false;
}

/* Of the pause, or of one who has waited long enough for it. */
static void arm_timer(const nod_pausing *pausing)
{
    sl_time_ns next = pausing->core.deadline;
    for (uint32_t i = 0; i < ASKERS_MAX; i++)
        if (pausing->askers[i].call && pausing->askers[i].deadline < next)
            next = pausing->askers[i].deadline;
    sl_timer_set(pausing->timer, next);
}

static void tell(const nod_pausing *pausing)
{
    nod_host *host = pausing->host;
    bool rests = pausing->core.state == NOD_PAUSE_STATE_ON;
    nod_host_hold(host);
    dec_service_set_pause(host->decode, nod_pause_until(&pausing->core), rests);
    pre_service_set_rest(host->prefill, rests);
}

static void step(nod_pausing *pausing, const nod_pause_event *event)
{
    nod_host *host = pausing->host;
    sl_time_ns now = sl_loop_now(host->loop);
    nod_pause_state before = pausing->core.state;
    nod_pause_outcome out = nod_pause_handle(&pausing->core, event, now);
    if (out.actions & (NOD_PAUSE_ACTION_REST | NOD_PAUSE_ACTION_GO))
        nod_host_rest(host);
    if (out.actions & NOD_PAUSE_ACTION_TELL)
        tell(pausing);
    if ((out.actions & NOD_PAUSE_ACTION_REPLY) && event->kind == NOD_PAUSE_EVENT_RESTS)
        sl_info("paused with %u requests, at most for %.1f s", nod_host_live(host),
                (double)pausing->core.hold_ns / 1e9);
    if (out.actions & NOD_PAUSE_ACTION_REPLY)
        answer_all(pausing);
    if (out.actions & NOD_PAUSE_ACTION_FAIL)
        sl_warn("not paused: %s", why_not(out.code, before));
    if ((out.actions & NOD_PAUSE_ACTION_FAIL) || pausing->core.state == NOD_PAUSE_STATE_OFF)
        fail_all(pausing, out.code, why_not(out.code, before));
    if (out.actions & NOD_PAUSE_ACTION_EXPIRED)
        nod_audit_note(host->audit, NULL, "weights resume", "the pause was over in time");
    arm_timer(pausing);
}

static void on_timer(void *context, sl_time_ns now)
{
    static const nod_pause_event EVENT = {.kind = NOD_PAUSE_EVENT_TICK};
    nod_pausing *pausing = context;
    step(pausing, &EVENT);
    for (uint32_t i = 0; i < ASKERS_MAX; i++) {
        asker *a = &pausing->askers[i];
        if (a->call && a->deadline <= now) /* others wait for longer */
            fail(a, SL_DEADLINE, why_not(SL_DEADLINE, pausing->core.state));
    }
    arm_timer(pausing);
}

/* ---- the calls ---- */

static sl_status check(const nod_pausing *pausing, const Sluice__V1__PauseRequest *request,
                       sl_err *err)
{
    const nod_host *host = pausing->host;
    if (host->state != NOD_STATE_READY)
        return sl_fail(err, SL_UNAVAILABLE, "the node is %s", nod_state_name(host->state));
    if (nod_role_changing(host->role_change))
        return sl_fail(err, SL_CONFLICT, "the node changes its role");
    if ((uint64_t)request->hold_ms * SL_MS_NS > HOLD_MAX_NS)
        return sl_fail(err, SL_INVALID, "a pause lasts a day at most");
    if (request->wait && pausing->core.state >= NOD_PAUSE_STATE_STOPPING && nod_host_live(host) > 0)
        return sl_fail(err, SL_CONFLICT,
                       "it is paused with %u requests, which do not end: resume it first",
                       nod_host_live(host));
    return sl_ok();
}

/* NULL: all wait. An answered one gives its place up. */
static asker *take_asker(nod_pausing *pausing)
{
    asker *answered = NULL;
    for (uint32_t i = 0; i < ASKERS_MAX; i++) {
        asker *a = &pausing->askers[i];
        if (!a->used)
            return a;
        answered = a->call ? answered : a;
    }
    pausing->forgotten = pausing->forgotten || answered;
    return answered;
}

void nod_pausing_on_begin(void *context, rpc_server_call *call, const ProtobufCMessage *base)
{
    static const rpc_server_call_events EVENTS = {.on_closed = on_closed};
    nod_pausing *pausing = context;
    nod_host *host = pausing->host;
    const Sluice__V1__PauseRequest *request = (const Sluice__V1__PauseRequest *)base;
    const nod_pause_event event = {
        .kind = NOD_PAUSE_EVENT_BEGIN,
        .wait = request->wait,
        .wait_ns = request->wait_ms ? (uint64_t)request->wait_ms * SL_MS_NS
                                    : host->options->drain_timeout_ns,
        .hold_ns = request->hold_ms ? (uint64_t)request->hold_ms * SL_MS_NS : HOLD_NS,
    };
    sl_err err;
    asker *a = NULL;
    sl_status status = check(pausing, request, &err);
    if (sl_is_ok(status) && !(a = take_asker(pausing)))
        status = sl_fail(&err, SL_FULL, "%u others ask for this pause already", ASKERS_MAX);
    if (!sl_is_ok(status)) {
        rpc_server_call_finish(call, status.code, err.text);
        return;
    }
    *a = (asker){0};
    char detail[80];
    snprintf(detail, sizeof(detail), "%s, %u requests, at most for %.1f s",
             request->wait ? "wait" : "keep", nod_host_live(host), (double)event.hold_ns / 1e9);
    nod_audit_note(host->audit, call, "weights pause", detail);
    nod_pause_state before = pausing->core.state;
    bool waits = before == NOD_PAUSE_STATE_WAITING && request->wait;
    bool first = !waits && before < NOD_PAUSE_STATE_STOPPING;
    step(pausing, &event); /* which may fail those before */
    *a = (asker){.used = true,
                 .first = first,
                 .claim = request->claim,
                 .deadline = sl_loop_now(host->loop) + event.wait_ns};
    if (before == NOD_PAUSE_STATE_ON) {
        reply(pausing, call, false);
        return;
    }
    a->call = call;
    rpc_server_call_set(call, &EVENTS, pausing);
    arm_timer(pausing);
}

/* Of one; true: nobody else has asked for the pause. */
static bool take_back(nod_pausing *pausing, uint64_t claim)
{
    bool found = false, others = pausing->forgotten;
    for (uint32_t i = 0; i < ASKERS_MAX; i++) {
        asker *a = &pausing->askers[i];
        if (a->used && a->claim == claim) {
            fail(a, SL_CONFLICT, why_not(SL_CONFLICT, pausing->core.state));
            found = true;
        }
        others = others || a->used;
    }
    return found && !others;
}

void nod_pausing_on_end(void *context, rpc_server_call *call, const ProtobufCMessage *base)
{
    static const nod_pause_event EVENT = {.kind = NOD_PAUSE_EVENT_END};
    nod_pausing *pausing = context;
    nod_host *host = pausing->host;
    const Sluice__V1__EndPauseRequest *request = (const Sluice__V1__EndPauseRequest *)base;
    nod_pause_state before = pausing->core.state;
    bool ends = request->claim == 0 || take_back(pausing, request->claim);
    Sluice__V1__Stamp stamp;
    Sluice__V1__EndPauseReply out = SLUICE__V1__END_PAUSE_REPLY__INIT;
    out.changed = ends && before != NOD_PAUSE_STATE_OFF;
    out.requests = nod_host_live(host);
    if (out.changed && before == NOD_PAUSE_STATE_ON)
        out.pause_us = (sl_loop_now(host->loop) - pausing->core.rested_at) / 1000;
    nod_host_stamp(host, &stamp);
    out.stamp = &stamp;
    if (out.changed) {
        char detail[80];
        snprintf(detail, sizeof(detail), "%u requests, after %.1f s", out.requests,
                 (double)out.pause_us / 1e6);
        nod_audit_note(host->audit, call, "weights resume", detail);
    }
    if (ends)
        step(pausing, &EVENT);
    rpc_server_call_reply(call, &out.base);
}

/* ---- for the others of node/ ---- */

void nod_pausing_continue(nod_pausing *pausing)
{
    nod_pause_event event = {.kind = NOD_PAUSE_EVENT_IDLE};
    if (pausing->core.state == NOD_PAUSE_STATE_WAITING && nod_host_live(pausing->host) == 0)
        step(pausing, &event);
    event.kind = NOD_PAUSE_EVENT_RESTS;
    if (pausing->core.state == NOD_PAUSE_STATE_STOPPING && eng_worker_rests(pausing->host->worker))
        step(pausing, &event);
}

void nod_pausing_leave(nod_pausing *pausing)
{
    static const nod_pause_event EVENT = {.kind = NOD_PAUSE_EVENT_LEAVE};
    if (pausing->core.state != NOD_PAUSE_STATE_OFF)
        sl_info("the pause ends: the node leaves");
    step(pausing, &EVENT);
}

bool nod_pausing_active(const nod_pausing *pausing)
{
    return pausing->core.state != NOD_PAUSE_STATE_OFF;
}

bool nod_pausing_wants_rest(const nod_pausing *pausing)
{
    return pausing->core.state == NOD_PAUSE_STATE_STOPPING ||
           pausing->core.state == NOD_PAUSE_STATE_ON;
}

bool nod_pausing_rests(const nod_pausing *pausing)
{
    return pausing->core.state == NOD_PAUSE_STATE_ON;
}

nod_pausing *nod_pausing_create(nod_host *host)
{
    nod_pausing *pausing = sl_alloc(1, sizeof(*pausing), "node pause");
    pausing->host = host;
    nod_pause_init(&pausing->core);
    pausing->timer = sl_timer_create(host->loop, on_timer, pausing);
    return pausing;
}

void nod_pausing_destroy(nod_pausing *pausing)
{
    if (!pausing)
        return;
    sl_timer_destroy(pausing->timer);
    sl_free(pausing);
}
