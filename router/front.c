/* A router loop put together: what comes from the nodes goes to the requests, the queue moves when
 * something changed, output leaves once a pass. Thread: the loop's. */
#include "router/front_internal.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"
#include "base/rng.h"

#include <stdio.h>
#include <string.h>

#define AFTER_ROUNDS_MAX 16 /* of one pass, before the loop looks at its descriptors again */
#define STOP_FLUSH_NS    (5 * SL_S_NS)

/* ---- from the nodes */

static void on_changed(void *context)
{
    rtr_front *front = context;
    front->changed = true;
}

static void on_recovery_timer(void *context, sl_time_ns now)
{
    on_changed(context);
}

static void tell_those_on(rtr_front *front, const rtr_event *event)
{
    for (rtr_live *live = front->lives, *next; live; live = next) {
        next = live->next;
        if (live->started && live->core.decode == event->decode)
            rtr_live_step(live, event);
    }
}

static void on_decode_broken(void *context, uint64_t decode)
{
    rtr_front *front = context;
    rtr_pulls_broken(&front->pulls, decode);
    rtr_event event = {.kind = RTR_EVENT_DECODE_BROKEN, .decode = decode};
    tell_those_on(context, &event);
}

static void on_decode_back(void *context, uint64_t decode, uint64_t again)
{
    rtr_event event = {.kind = RTR_EVENT_DECODE_BACK, .decode = decode, .again = again};
    tell_those_on(context, &event);
}

static void on_decode_lost(void *context, uint64_t decode)
{
    rtr_front *front = context;
    rtr_pulls_broken(&front->pulls, decode);
    rtr_event event = {.kind = RTR_EVENT_DECODE_LOST, .decode = decode};
    tell_those_on(context, &event);
}

static void on_prefill_lost(void *context, uint64_t prefill)
{
    rtr_front *front = context;
    rtr_event event = {.kind = RTR_EVENT_PREFILL_LOST, .prefill = prefill};
    for (rtr_live *live = front->lives, *next; live; live = next) {
        next = live->next;
        if (live->started && live->core.prefill == prefill)
            rtr_live_step(live, &event);
    }
}

static void on_prefill_rests(void *context, uint64_t prefill, sl_time_ns until)
{
    rtr_front *front = context;
    rtr_event event = {.kind = RTR_EVENT_PREFILL_RESTS, .prefill = prefill, .until = until};
    for (rtr_live *live = front->lives, *next; live; live = next) {
        next = live->next;
        if (live->started && live->core.prefill == prefill)
            rtr_live_step(live, &event);
    }
}

static void on_admitted(void *context, uint64_t decode, const Sluice__V1__Admitted *admitted)
{
    rtr_front *front = context;
    Sluice__V1__Ticket *ticket = admitted->ticket;
    if (rtr_pulls_admitted(&front->pulls, admitted))
        return;
    rtr_live *live = rtr_live_find(front, ticket->request_id);
    if (!live || !live->started)
        return; /* cancelled meanwhile: the rank was told */
    uint64_t held = (uint64_t)ticket->first_block * 64;
    uint64_t prompt = live->request->prompt.count;
    if (live->token_count == 0)
        live->cached_tokens = (uint32_t)(held < prompt ? held : prompt);
    rtr_event event = {.kind = RTR_EVENT_ADMITTED, .decode = decode, .epoch = ticket->epoch};
    live->ticket = ticket;
    live->depth++; /* the ticket is borrowed: keep the request while it is set */
    rtr_live_step(live, &event);
    live->ticket = NULL;
    live->depth--;
    rtr_live_settle(live);
}

static void on_refused(void *context, uint64_t decode, const Sluice__V1__Refused *refused)
{
    rtr_front *front = context;
    if (rtr_pulls_refused(&front->pulls, refused))
        return;
    rtr_live *live = rtr_live_find(front, refused->request_id);
    if (!live || !live->started)
        return;
    const char *text = refused->failure ? refused->failure->message : "refused";
    sl_debug("request %s: refused by %s: %s", live->id, live->decode_name, text);
    sl_metric_add(front->shared->metrics.refusals, rtr_nodes_decode_name(front->nodes, decode), 1);
    rtr_event event = {
        .kind = RTR_EVENT_REFUSED,
        .decode = decode,
        .epoch = refused->epoch,
        .code = refused->failure ? (sl_code)refused->failure->code : SL_UNAVAILABLE,
        .text = text,
    };
    rtr_live_step(live, &event);
}

static rtr_finish finish_of(Sluice__V1__Finish finish)
{
    switch (finish) {
    case SLUICE__V1__FINISH__FINISH_STOP:
        return RTR_FINISH_STOP;
    case SLUICE__V1__FINISH__FINISH_LENGTH:
        return RTR_FINISH_LENGTH;
    case SLUICE__V1__FINISH__FINISH_FAILED:
        return RTR_FINISH_FAILED;
    case SLUICE__V1__FINISH__FINISH_CANCELLED:
        return RTR_FINISH_CANCELLED;
    default:
        return RTR_FINISH_NONE;
    }
}

static void on_run(void *context, uint64_t decode, const Sluice__V1__TokenRun *run)
{
    rtr_front *front = context;
    if (rtr_pulls_run(&front->pulls, run))
        return;
    rtr_live *live = rtr_live_find(front, run->request_id);
    if (!live || !live->started)
        return;
    rtr_event event = {
        .kind = RTR_EVENT_TOKENS,
        .decode = decode,
        .epoch = run->epoch,
        .first_index = run->first_index,
        .count = (uint32_t)run->n_ids,
        .finish = finish_of(run->finish),
        .code = run->failure ? (sl_code)run->failure->code : SL_OK,
        .text = run->failure ? run->failure->message : NULL,
    };
    live->run = run;
    live->depth++; /* the run is borrowed: keep the request while it is set */
    if (run->prompt_rows)
        rtr_live_take_rows(live, run->prompt_rows);
    rtr_live_step(live, &event);
    rtr_live_deliver(live);
    live->run = NULL;
    live->depth--;
    rtr_live_settle(live);
}

typedef struct broken_note {
    rtr_front *front;
    char name[CLU_NAME_MAX];
    uint64_t incarnation;
} broken_note;

static void tell_broken(void *context)
{
    broken_note *note = context;
    rtr_front_options *options = &note->front->options;
    if (options->on_broken)
        options->on_broken(options->context, note->name, note->incarnation);
    sl_free(note);
}

/* The view may remove the node in answer, which must not happen inside its stream's callback. */
static void on_broken(void *context, const char *name, uint64_t incarnation)
{
    rtr_front *front = context;
    if (front->stopped)
        return;
    broken_note *note = sl_alloc(1, sizeof *note, "router note");
    note->front = front;
    snprintf(note->name, sizeof note->name, "%s", name);
    note->incarnation = incarnation;
    if (!sl_loop_post(front->loop, tell_broken, note))
        sl_free(note); /* the next failed attempt tells again */
}

/* ---- the queue */

/* In the order of router/queue.h. Who needs no less than one that found no room finds none either.
 */
static void queue_pump(rtr_front *front)
{
    rtr_event event = {.kind = RTR_EVENT_NODES_CHANGED};
    uint32_t pages_max = UINT32_MAX;
    for (rtr_waiter *waiter = front->queue.first, *next; waiter; waiter = next) {
        rtr_live *live = rtr_live_of_waiter(waiter);
        next = waiter->next;
        if (!live->started)
            continue;
        bool fresh = live->core.refused_decode_count == 0 && live->core.decode == 0 && !live->forks;
        uint32_t pages = rtr_live_pages(live);
        if (fresh && pages >= pages_max)
            continue;
        live->depth++; /* to look at it afterwards */
        rtr_live_step(live, &event);
        bool blocked = live->core.state == RTR_STATE_QUEUED && live->core.lack == RTR_LACK_ROOM;
        live->depth--;
        bool ends = blocked && fresh && live->waiter.overtaken >= RTR_OVERTAKEN_MAX;
        rtr_live_settle(live);
        if (ends)
            break;
        if (blocked && fresh)
            pages_max = pages;
    }
}

/* What runs on ranks that drain goes on elsewhere, with its pages, as long as there is room. Who
 * needs no less than one that found none stays as well. */
static void leave_draining(rtr_front *front)
{
    rtr_event event = {.kind = RTR_EVENT_DECODE_DRAINS};
    uint32_t pages_max = UINT32_MAX;
    if (!front->tuning.move_drained || !rtr_nodes_any_drains(front->nodes))
        return;
    for (rtr_live *live = front->lives, *next; live; live = next) {
        next = live->next;
        if (!live->started || live->core.state != RTR_STATE_DECODING ||
            rtr_live_pages(live) >= pages_max || rtr_queue_must_wait(&front->queue, &live->waiter))
            continue;
        event.decode = live->core.decode;
        if (!rtr_nodes_drains(front->nodes, event.decode))
            continue;
        event.source =
            rtr_nodes_move_source(front->nodes, &live->core, rtr_live_pages(live),
                                  (uint32_t)live->request->prompt.count + live->token_count);
        if (event.source)
            rtr_live_step(live, &event);
        else
            pages_max = rtr_live_pages(live);
    }
}

typedef struct node_count {
    uint32_t prefill, decode;
} node_count;

static void count_node(void *context, const rtr_node_status *status)
{
    node_count *count = context;
    bool hybrid = strcmp(status->info->role, "hybrid") == 0;
    if (!status->usable)
        return;
    count->prefill += hybrid || strcmp(status->info->role, "prefill") == 0;
    count->decode += hybrid || strcmp(status->info->role, "decode") == 0;
}

static void show_nodes(rtr_front *front)
{
    node_count count = {0};
    rtr_nodes_visit(front->nodes, count_node, &count);
    sl_metric_set(front->shared->metrics.usable_nodes, "prefill", count.prefill);
    sl_metric_set(front->shared->metrics.usable_nodes, "decode", count.decode);
}

static void front_wake(void *context)
{
}

static void check_stopped(rtr_front *front)
{
    bool flushed = front->live_count == 0 && rtr_http_server_quiet(front->http);
    if (!front->stopping || front->stopped || !flushed || front->preparing_count)
        return;
    front->stopped = true;
    sl_timer_set(front->stop_timer, SL_NEVER);
    if (front->on_stopped)
        front->on_stopped(front->stop_context);
}

static void front_after(void *context)
{
    rtr_front *front = context;
    for (int i = 0; i < AFTER_ROUNDS_MAX; i++) {
        if (front->changed) {
            front->changed = false;
            show_nodes(front);
            queue_pump(front);
            leave_draining(front);
        }
        rtr_http_server_flush(front->http);
        if (!front->changed)
            break;
    }
    /* Full posts: the loop will not sleep then either. */
    bool posted = !front->changed || sl_loop_post(front->loop, front_wake, front);
    (void)posted;
    check_stopped(front);
}

static void on_http_error(void *context, int status)
{
    rtr_count_response(context, status);
}

/* ---- life */

sl_status rtr_front_create(const rtr_front_options *options, rtr_front **out_front, sl_err *err)
{
    static const rtr_nodes_events NODE_EVENTS = {
        .on_changed = on_changed,
        .on_decode_broken = on_decode_broken,
        .on_decode_back = on_decode_back,
        .on_decode_lost = on_decode_lost,
        .on_prefill_lost = on_prefill_lost,
        .on_prefill_rests = on_prefill_rests,
        .on_admitted = on_admitted,
        .on_refused = on_refused,
        .on_run = on_run,
        .on_broken = on_broken,
    };
    rtr_front *front = sl_alloc(1, sizeof *front, "router front");
    front->options = *options;
    front->shared = options->shared;
    front->loop = options->loop;
    front->next_id = sl_random_u64();
    front->tuning = front->shared->tuning;
    front->recovery.tokens_per_s = front->tuning.recovery_tokens_per_s;
    front->recovery_timer = sl_timer_create(front->loop, on_recovery_timer, front);
    front->prefixes = rtr_prefixes_create(front->shared->incarnation ^ front->next_id);
    front->trace = sl_trace_create(RTR_TRACE_EVENTS);
    front->choices = sl_trace_create(RTR_TRACE_EVENTS);
    rtr_http_server_options http = options->http;
    http.on_request = rtr_route;
    http.on_http_error = on_http_error;
    http.context = front;
    sl_status status = rtr_http_server_create(options->loop, &http, &front->http, err);
    if (!sl_is_ok(status)) {
        rtr_prefixes_destroy(front->prefixes);
        sl_trace_destroy(front->trace);
        sl_trace_destroy(front->choices);
        sl_timer_destroy(front->recovery_timer);
        sl_free(front);
        return status;
    }
    rtr_nodes_options nodes = {
        .runtime = options->runtime,
        .router_name = front->shared->router_name,
        .incarnation = front->shared->incarnation,
        .loop_index = options->index,
        .tls = front->shared->tls,
        .model_identity = front->shared->model_identity,
    };
    front->nodes = rtr_nodes_create(&nodes, &NODE_EVENTS, front);
    rtr_nodes_set_weights_min(front->nodes, front->tuning.weights_min);
    sl_loop_set_after(options->loop, front_after, front);
    *out_front = front;
    return sl_ok();
}

void rtr_front_destroy(rtr_front *front)
{
    if (!front)
        return;
    front->stopped = true;
    sl_loop_set_after(front->loop, NULL, NULL);
    rtr_http_server_destroy(front->http); /* their clients go: requests end */
    for (rtr_live *live = front->lives, *next; live; live = next) { /* leads go after followers */
        next = live->next;
        if (live->lead != live)
            rtr_live_destroy(live);
    }
    while (front->lives)
        rtr_live_destroy(front->lives);
    rtr_nodes_destroy(front->nodes);
    sl_timer_destroy(front->stop_timer);
    sl_timer_destroy(front->recovery_timer);
    rtr_prefixes_destroy(front->prefixes);
    sl_trace_destroy(front->trace);
    sl_trace_destroy(front->choices);
    sl_free(front);
}

rtr_nodes *rtr_front_nodes(rtr_front *front)
{
    return front->nodes;
}

void rtr_front_tune(rtr_front *front, const rtr_tuning *tuning)
{
    front->tuning = *tuning;
    rtr_nodes_set_weights_min(front->nodes, tuning->weights_min);
    front->recovery.tokens_per_s = tuning->recovery_tokens_per_s;
    on_changed(front); /* what waits may find a place now */
}

uint32_t rtr_front_live_count(const rtr_front *front)
{
    return front->live_count;
}

/* First at the deadline: give up what runs. Then, if clients do not even read that, leave them. */
static void stop_timer(void *context, sl_time_ns now)
{
    rtr_front *front = context;
    if (front->aborted) {
        front->stopped = front->preparing_count == 0;
        if (front->stopped && front->on_stopped)
            front->on_stopped(front->stop_context);
        else
            sl_timer_set(front->stop_timer, now + 100 * SL_MS_NS);
        return;
    }
    front->aborted = true;
    sl_timer_set(front->stop_timer, now + STOP_FLUSH_NS);
    rtr_event event = {
        .kind = RTR_EVENT_ABORT, .code = SL_UNAVAILABLE, .text = "the router is shutting down"};
    for (rtr_live *live = front->lives, *next; live; live = next) {
        next = live->next;
        if (live->started)
            rtr_live_step(live, &event);
    }
}

void rtr_front_leave(rtr_front *front)
{
    front->leaving = true;
    rtr_http_server_leave(front->http);
}

void rtr_front_stop(rtr_front *front, sl_time_ns deadline, void (*on_stopped)(void *context),
                    void *context)
{
    if (front->stopping)
        return;
    rtr_front_leave(front);
    front->stopping = true;
    front->on_stopped = on_stopped;
    front->stop_context = context;
    rtr_http_server_stop(front->http);
    front->stop_timer = sl_timer_create(front->loop, stop_timer, front);
    sl_timer_set(front->stop_timer, deadline);
    sl_info("stopping: %u requests to finish", front->live_count);
}
