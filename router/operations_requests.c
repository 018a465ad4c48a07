/* Requests of all loops, listed, ended or remembered: each loop is asked by a post and answers by
 * one to the main loop. */
#include "router/operations_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "proto/sluice/v1/cluster.pb-c.h"
#include "router/live_list.h"
#include "rpc/methods.h"

#define LIST_DEFAULT 1000u
#define LIST_MAX     4096u
#define GATHERS_MAX  8u

/* One loop's part. */
typedef struct part {
    rtr_gather *gather;
    rtr_loop_ref at;
    rtr_request_row *rows;
    uint32_t count, total;
    sl_trace_event *events; /* what happened, then why nodes were chosen */
    uint32_t event_count, choice_count;
    uint64_t since_us;
} part;

typedef enum gather_kind { GATHER_LIST, GATHER_CANCEL, GATHER_TRACE } gather_kind;

struct rtr_gather {
    rtr_gather *next;
    rtr_operations *operations;
    rpc_server_call *call; /* NULL: who asked has gone */
    gather_kind kind;
    uint32_t limit;
    char id[RTR_ID_SIZE];
    char text[RTR_EVENT_TEXT_MAX];
    uint32_t open; /* loops that have not answered */
    part parts[RTR_LOOPS_MAX];
};

static void gather_free(rtr_gather *gather)
{
    for (uint32_t i = 0; i < gather->operations->options.loop_count; i++) {
        sl_free(gather->parts[i].rows);
        sl_free(gather->parts[i].events);
    }
    sl_free(gather);
}

static void gather_unlink(rtr_gather *gather)
{
    for (rtr_gather **at = &gather->operations->gathers; *at; at = &(*at)->next) {
        if (*at == gather) {
            *at = gather->next;
            break;
        }
    }
}

void rtr_gathers_destroy(rtr_operations *operations)
{
    for (rtr_gather *gather = operations->gathers, *next; gather; gather = next) {
        next = gather->next;
        gather_free(gather);
    }
    operations->gathers = NULL;
}

/* ---- replies ---- */

static void fill_info(const rtr_request_row *row, Sluice__V1__RequestInfo *out)
{
    sluice__v1__request_info__init(out);
    out->id = (char *)row->id;
    out->kind = (char *)row->kind;
    out->state = (char *)row->state;
    out->age_ms = row->age_ms;
    out->prompt_tokens = row->prompt_tokens;
    out->generated_tokens = row->generated_tokens;
    out->max_tokens = row->max_tokens;
    out->choices = row->choices;
    out->priority = row->priority;
    out->decode = (char *)row->decode;
    out->prefill = (char *)row->prefill;
}

static int oldest_first(const void *a, const void *b)
{
    const rtr_request_row *x = *(rtr_request_row *const *)a, *y = *(rtr_request_row *const *)b;
    if (x->age_ms != y->age_ms)
        return x->age_ms > y->age_ms ? -1 : 1;
    return strcmp(x->id, y->id);
}

static void reply_list(rtr_gather *gather)
{
    uint32_t count = 0, loops = gather->operations->options.loop_count;
    Sluice__V1__ListRequestsReply reply = SLUICE__V1__LIST_REQUESTS_REPLY__INIT;
    for (uint32_t i = 0; i < loops; i++) {
        count += gather->parts[i].count;
        reply.total += gather->parts[i].total;
    }
    rtr_request_row **rows = sl_alloc(count, sizeof *rows, "router requests");
    Sluice__V1__RequestInfo *infos = sl_alloc(count, sizeof *infos, "router requests");
    reply.requests = sl_alloc(count, sizeof *reply.requests, "router requests");
    uint32_t at = 0;
    for (uint32_t i = 0; i < loops; i++)
        for (uint32_t j = 0; j < gather->parts[i].count; j++)
            rows[at++] = &gather->parts[i].rows[j];
    if (count > 0)
        qsort(rows, count, sizeof *rows, oldest_first);
    reply.n_requests = count < gather->limit ? count : gather->limit;
    for (uint32_t i = 0; i < reply.n_requests; i++) {
        fill_info(rows[i], &infos[i]);
        reply.requests[i] = &infos[i];
    }
    reply.router = (char *)gather->operations->options.router;
    rpc_server_call_reply(gather->call, &reply.base);
    sl_free(reply.requests);
    sl_free(infos);
    sl_free(rows);
}

static void reply_cancel(rtr_gather *gather)
{
    rtr_operations *operations = gather->operations;
    char text[160];
    for (uint32_t i = 0; i < operations->options.loop_count; i++) {
        if (gather->parts[i].count == 0)
            continue;
        rtr_events_add(&operations->events, "request", gather->id, "%s", gather->text);
        if (!gather->call)
            return;
        Sluice__V1__CancelRequestReply reply = SLUICE__V1__CANCEL_REQUEST_REPLY__INIT;
        Sluice__V1__RequestInfo info;
        fill_info(&gather->parts[i].rows[0], &info);
        reply.request = &info;
        rpc_server_call_reply(gather->call, &reply.base);
        return;
    }
    snprintf(text, sizeof text, "%s has no request %s: it ended, or is another router's",
             operations->options.router, gather->id);
    if (gather->call)
        rpc_server_call_finish(gather->call, SL_NOT_FOUND, text);
}

static void fill_event(const sl_trace_event *event, Sluice__V1__TraceEvent *out)
{
    sluice__v1__trace_event__init(out);
    out->time_us = event->time_us;
    out->id = (char *)event->id;
    out->what = (char *)event->what;
    out->text = (char *)event->text;
}

/* A request is of one loop. */
static void reply_trace(rtr_gather *gather)
{
    const rtr_operations_options *options = &gather->operations->options;
    Sluice__V1__TraceReply reply = SLUICE__V1__TRACE_REPLY__INIT;
    const part *found = &gather->parts[0];
    for (uint32_t i = 0; i < options->loop_count; i++) {
        const part *p = &gather->parts[i];
        found = p->event_count + p->choice_count > 0 ? p : found;
        reply.since_us = p->since_us > reply.since_us ? p->since_us : reply.since_us;
    }
    size_t count = found->event_count + found->choice_count;
    Sluice__V1__TraceEvent *events = sl_alloc(count, sizeof *events, "router trace");
    Sluice__V1__TraceEvent **pointers = sl_alloc(count, sizeof *pointers, "router trace");
    for (size_t i = 0; i < count; i++) {
        fill_event(&found->events[i], &events[i]);
        pointers[i] = &events[i];
    }
    reply.name = (char *)options->router;
    reply.n_events = found->event_count;
    reply.events = pointers;
    reply.n_choices = found->choice_count;
    reply.choices = pointers + found->event_count;
    rpc_server_call_reply(gather->call, &reply.base);
    sl_free(pointers);
    sl_free(events);
}

/* ---- the loops ---- */

static void count_event(void *context, const sl_trace_event *event)
{
    part *p = context;
    p->total++;
}

static void copy_event(void *context, const sl_trace_event *event)
{
    part *p = context;
    p->events[p->count++] = *event;
}

static void part_trace(part *p)
{
    const char *id = p->gather->id;
    (void)rtr_front_trace(p->at.front, false, id, count_event, p);
    (void)rtr_front_trace(p->at.front, true, id, count_event, p);
    p->events = sl_alloc(p->total, sizeof *p->events, "router trace");
    p->event_count = rtr_front_trace(p->at.front, false, id, copy_event, p);
    p->choice_count = rtr_front_trace(p->at.front, true, id, copy_event, p);
    p->since_us = rtr_front_trace_since_us(p->at.front);
}

static void part_done(void *context)
{
    rtr_gather *gather = ((part *)context)->gather;
    if (--gather->open > 0)
        return;
    if (gather->call) /* its end comes after the reply, and finds no gather */
        rpc_server_call_set(gather->call, &(rpc_server_call_events){0}, NULL);
    if (gather->kind == GATHER_CANCEL)
        reply_cancel(gather);
    else if (gather->call && gather->kind == GATHER_TRACE)
        reply_trace(gather);
    else if (gather->call)
        reply_list(gather);
    gather_unlink(gather);
    gather_free(gather);
}

/* On the part's loop. */
static void part_work(void *context)
{
    part *p = context;
    rtr_gather *gather = p->gather;
    if (gather->kind == GATHER_TRACE) {
        part_trace(p);
    } else if (gather->kind == GATHER_CANCEL) {
        p->count = rtr_front_cancel(p->at.front, gather->id, "cancelled by an operator", p->rows);
    } else {
        p->total = rtr_front_list(p->at.front, p->rows, gather->limit);
        p->count = p->total < gather->limit ? p->total : gather->limit;
    }
    bool posted = sl_loop_post(gather->operations->options.loops[0].loop, part_done, p);
    sl_assert(posted); /* a loop this far behind is stuck */
}

static void on_closed(void *context, rpc_server_call *call, bool cancelled)
{
    rtr_gather *gather = context;
    gather->call = NULL;
}

/* NULL: too many at once; the call has its answer. */
static rtr_gather *gather_create(rtr_operations *operations, rpc_server_call *call)
{
    static const rpc_server_call_events EVENTS = {.on_closed = on_closed};
    uint32_t count = 0;
    for (rtr_gather *at = operations->gathers; at; at = at->next)
        count++;
    if (count == GATHERS_MAX) {
        rpc_server_call_finish(call, SL_FULL, "too many operators ask at once; try again");
        return NULL;
    }
    rtr_gather *gather = sl_alloc(1, sizeof *gather, "router gather");
    gather->operations = operations;
    gather->call = call;
    gather->next = operations->gathers;
    operations->gathers = gather;
    rpc_server_call_set(call, &EVENTS, gather);
    return gather;
}

static void gather_start(rtr_gather *gather, uint32_t rows)
{
    const rtr_operations_options *options = &gather->operations->options;
    gather->open = options->loop_count;
    for (uint32_t i = 0; i < options->loop_count; i++) {
        part *p = &gather->parts[i];
        p->gather = gather;
        p->at = options->loops[i];
        p->rows = sl_alloc(rows, sizeof *p->rows, "router gather");
        bool posted = sl_loop_post(p->at.loop, part_work, p);
        sl_assert(posted);
    }
}

void rtr_on_list_requests(rtr_operations *operations, rpc_server_call *call,
                          const ProtobufCMessage *base)
{
    const Sluice__V1__ListRequestsRequest *request = (const void *)base;
    if (request->limit > LIST_MAX) {
        rpc_server_call_finish(call, SL_INVALID, "limit: at most 4096");
        return;
    }
    rtr_gather *gather = gather_create(operations, call);
    if (!gather)
        return;
    gather->limit = request->limit ? request->limit : LIST_DEFAULT;
    gather_start(gather, gather->limit);
}

void rtr_on_cancel_request(rtr_operations *operations, rpc_server_call *call,
                           const ProtobufCMessage *base)
{
    const Sluice__V1__CancelRequestRequest *request = (const void *)base;
    char actor[RPC_ACTOR_MAX];
    if (!*request->id || strlen(request->id) >= RTR_ID_SIZE) {
        rpc_server_call_finish(call, SL_INVALID, "id: want a request's, as `requests` lists them");
        return;
    }
    rtr_gather *gather = gather_create(operations, call);
    if (!gather)
        return;
    rpc_server_call_actor(call, actor, sizeof actor);
    gather->kind = GATHER_CANCEL;
    snprintf(gather->id, sizeof gather->id, "%s", request->id);
    snprintf(gather->text, sizeof gather->text, "cancelled by %.120s", actor);
    gather_start(gather, 1);
}

void rtr_on_trace(rtr_operations *operations, rpc_server_call *call, const ProtobufCMessage *base)
{
    const Sluice__V1__TraceRequest *request = (const void *)base;
    if (!*request->id || strlen(request->id) >= RTR_ID_SIZE) {
        rpc_server_call_finish(call, SL_INVALID, "id: want a request's, as `requests` lists them");
        return;
    }
    rtr_gather *gather = gather_create(operations, call);
    if (!gather)
        return;
    gather->kind = GATHER_TRACE;
    snprintf(gather->id, sizeof gather->id, "%s", request->id);
    gather_start(gather, 1);
}
