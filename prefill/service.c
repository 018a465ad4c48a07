/* The Prefill service: see service.h. One job is one Run call; a job holds a place in the queue,
 * then pages, until the decode node has everything. */
#include "prefill/service.h"

#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"
#include "prefill/job.h"
#include "proto/sluice/v1/prefill.pb-c.h"

#define PRE_REQUEST_ID_MAX 128u
/* A head that found no pages asks again: in a hybrid node decoding sequences give pages back
 * without our knowing. */
#define PRE_PAGES_RETRY_NS (20 * SL_MS_NS)
/* Of prompt rows in one message. */
#define PRE_ROWS_BYTES    (256u << 10)
#define PRE_ROWS_RETRY_NS (20 * SL_MS_NS)

typedef struct slot {
    bool used;
    pre_service *service;
    char request_id[PRE_REQUEST_ID_MAX];
    uint32_t epoch;
    uint64_t order; /* of arrival */
    uint64_t since; /* eng_turn */
    uint32_t tokens_done;
    rpc_server_call *call; /* NULL: the router is gone or has its answer */
    pre_job_state core;
    pre_task *task;
    kvt_send *send;
    kvt_nonce nonce;
    uint32_t ready[PRE_GROUPS_MAX];     /* blocks whose rows of the group are complete */
    uint32_t announced[PRE_GROUPS_MAX]; /* blocks offered so far */
    uint32_t rows_ready;                /* prompt rows before it are noted */
    uint32_t rows_sent;
    bool offer;    /* PrefillRequest.offer */
    bool done_due; /* all is done but telling the router, which does not read */
    bool computed;
    bool committed;
    sl_time_ns arrived_at;
    sl_time_ns computed_at;
    uint64_t bytes_announced;
    char peer[KVT_NAME_MAX]; /* the decode node */
    sl_err err;
} slot;

struct pre_service {
    pre_service_options options;
    const mdl_shape *shape;
    const eng_cache_layout *layout;
    pre_compute *compute;
    eng_worker_client *client;
    sl_watch *engine_watch;
    sl_timer *timer;
    slot slots[PRE_JOBS_MAX];
    uint32_t live_count;
    uint64_t next_order;
    uint64_t rows;     /* of prompts computed here: ages those that wait */
    bool opening_full; /* the head waits for pages: nobody overtakes it until some come back */
    bool draining;
    bool offers_only;
    bool held;
    sl_metric *prompt_tokens, *queue_seconds, *refused, *transfer_bytes;
};

static void handle(slot *job, const pre_event *event);

/* ---- queue ---- */

static eng_turn turn_of(const slot *job)
{
    return (eng_turn){job->task->priority, job->task->token_count, job->since, job->order};
}

/* In the order of engine/schedule.h. One job opens at a time: if the first one finds no pages, none
 * behind it does, so that it gets those that come back. */
static void start_next(pre_service *service)
{
    slot *head = NULL;
    eng_turn first = {0};
    for (uint32_t i = 0; i < service->options.queue_max; i++) {
        slot *job = &service->slots[i];
        if (!job->used)
            continue;
        if (job->core.state == PRE_STATE_OPENING)
            return;
        if (job->core.state != PRE_STATE_QUEUED)
            continue;
        eng_turn turn = turn_of(job);
        if (head && !eng_turn_before(&turn, &first, service->rows))
            continue;
        head = job;
        first = turn;
    }
    if (!head || service->opening_full)
        return;
    pre_event event = {.kind = PRE_EVENT_START};
    handle(head, &event);
}

static uint32_t jobs_ahead(const pre_service *service, const slot *job)
{
    uint32_t ahead = 0;
    for (uint32_t i = 0; i < service->options.queue_max; i++) {
        const slot *other = &service->slots[i];
        ahead +=
            other->used && other->order < job->order && other->core.state <= PRE_STATE_COMPUTING;
    }
    return ahead;
}

/* ---- replies ---- */

static sl_status write_event(slot *job, Sluice__V1__PrefillEvent *event)
{
    if (!job->call)
        return sl_ok();
    Sluice__V1__Load load = SLUICE__V1__LOAD__INIT;
    pre_service_load(job->service, &load);
    load.pages_total = job->service->layout->page_count;
    load.pages_free = eng_worker_pages_free(job->service->options.worker);
    event->load = &load;
    /* A full queue means a router that does not read: progress may be dropped, the end is told by
     * the status. */
    sl_status status = rpc_server_call_write(job->call, &event->base);
    if (!sl_is_ok(status))
        sl_debug("request %s: event not sent (%s)", job->request_id, sl_code_name(status.code));
    return status;
}

/* Tells the prompt's rows that are noted; false: the router does not keep up, again later. */
static bool send_rows(slot *job)
{
    const eng_prompt_rows *rows = job->task->prompt_rows;
    uint32_t end = rows && job->rows_ready > rows->want.end ? rows->want.end : job->rows_ready;
    while (rows && job->call && job->rows_sent < end) {
        uint32_t at = job->rows_sent - rows->want.first;
        uint32_t row_bytes = rows->routing ? rows->row_bytes : 0;
        uint32_t count = PRE_ROWS_BYTES / (row_bytes + rows->score_bytes) + 1;
        count = count < end - job->rows_sent ? count : end - job->rows_sent;
        Sluice__V1__PromptRows wire = SLUICE__V1__PROMPT_ROWS__INIT;
        wire.first = job->rows_sent;
        wire.count = count;
        wire.scores.data = rows->scores ? rows->scores + (size_t)at * rows->score_bytes : NULL;
        wire.scores.len = (size_t)count * rows->score_bytes;
        wire.routing.data = rows->routing ? rows->routing + (size_t)at * row_bytes : NULL;
        wire.routing.len = (size_t)count * row_bytes;
        Sluice__V1__PrefillEvent event = SLUICE__V1__PREFILL_EVENT__INIT;
        event.body_case = SLUICE__V1__PREFILL_EVENT__BODY_ROWS;
        event.rows = &wire;
        if (!sl_is_ok(write_event(job, &event)))
            return false;
        job->rows_sent += count;
    }
    return true;
}

static void reply_progress(slot *job, uint32_t tokens)
{
    Sluice__V1__PrefillProgress progress = SLUICE__V1__PREFILL_PROGRESS__INIT;
    progress.tokens_done = tokens;
    progress.tokens_total = job->task->token_count;
    Sluice__V1__PrefillEvent event = SLUICE__V1__PREFILL_EVENT__INIT;
    event.body_case = SLUICE__V1__PREFILL_EVENT__BODY_PROGRESS;
    event.progress = &progress;
    sl_status status = write_event(job, &event);
    (void)status; /* only a sign of life */
}

static void reply_done(slot *job)
{
    job->done_due = !send_rows(job);
    if (job->done_due)
        return;
    Sluice__V1__PrefillDone done = SLUICE__V1__PREFILL_DONE__INIT;
    done.tokens_computed = job->task->token_count - job->task->tokens_known;
    done.bytes_sent = job->bytes_announced;
    done.compute_us = job->task->compute_ns / 1000;
    done.tail_us = (sl_loop_now(job->service->options.loop) - job->computed_at) / 1000;
    Sluice__V1__PrefillEvent event = SLUICE__V1__PREFILL_EVENT__INIT;
    event.body_case = SLUICE__V1__PREFILL_EVENT__BODY_DONE;
    event.done = &done;
    sl_status status = write_event(job, &event);
    (void)status; /* the end of the call says it too */
    rpc_server_call_finish(job->call, SL_OK, NULL);
    job->call = NULL;
}

static void reply_failed(slot *job, sl_code code)
{
    if (job->err.code != code)
        job->err.code =
            sl_fail(&job->err, code, "%s",
                    code == SL_DEADLINE ? "the prefill did not end before the ticket's deadline"
                                        : sl_code_name(code))
                .code;
    rpc_server_call_finish(job->call, code, job->err.text);
    job->call = NULL;
}

/* ---- actions ---- */

static void settle(slot *job)
{
    pre_service *service = job->service;
    if (job->core.state != PRE_STATE_DONE || job->done_due)
        return;
    sl_assert(!job->send && !job->task->sequence);
    sl_assert(!job->call);
    pre_task_destroy(job->task);
    memset(job, 0, sizeof(*job));
    service->live_count--;
    service->opening_full = false; /* its pages may be what the head waits for */
}

static void post(slot *job, pre_command_kind kind)
{
    pre_command command = {kind, job->task};
    /* At most three commands a job are ever waiting, and the inbox holds four for each. */
    bool posted = eng_worker_post(job->service->client, &command);
    sl_assert(posted);
}

static void arm_timer(pre_service *service)
{
    sl_time_ns next = SL_NEVER;
    if (service->opening_full)
        next = sl_loop_now(service->options.loop) + PRE_PAGES_RETRY_NS;
    for (uint32_t i = 0; i < service->options.queue_max; i++) {
        const slot *job = &service->slots[i];
        if (job->used && pre_job_due(&job->core) < next)
            next = pre_job_due(&job->core);
        if (job->used && job->done_due)
            next = sl_loop_now(service->options.loop) + PRE_ROWS_RETRY_NS;
    }
    sl_timer_set(service->timer, next);
}

static uint32_t ms_since(const slot *job, sl_time_ns at)
{
    return (uint32_t)((sl_loop_now(job->service->options.loop) - at) / SL_MS_NS);
}

/* For whoever asks what happened to a request. */
static void note_state(const slot *job, pre_state before, sl_code code)
{
    sl_trace *trace = job->service->options.trace;
    const char *state = pre_state_name(job->core.state);
    if (job->core.state == PRE_STATE_COMPUTING)
        sl_trace_note(trace, job->request_id, state, "%u of %u tokens were known, %u ms in queue",
                      job->task->tokens_known, job->task->token_count,
                      ms_since(job, job->arrived_at));
    else if (job->core.state == PRE_STATE_DRAINING)
        sl_trace_note(trace, job->request_id, "computed", "%.1f ms, %llu bytes offered",
                      (double)job->task->compute_ns / 1e6,
                      (unsigned long long)job->bytes_announced);
    else if (before == PRE_STATE_DRAINING && code == SL_OK)
        sl_trace_note(trace, job->request_id, "fetched", "by %s, %u ms after it was computed",
                      job->peer, ms_since(job, job->computed_at));
    else if (job->core.state == PRE_STATE_CLOSING)
        sl_trace_note(trace, job->request_id, "failed", "%s: %s", sl_code_name(code),
                      job->err.code == code ? job->err.text : "");
}

static void handle(slot *job, const pre_event *event)
{
    pre_service *service = job->service;
    pre_state before = job->core.state;
    pre_outcome outcome = pre_job_handle(&job->core, event, sl_loop_now(service->options.loop));
    if (job->core.state != before)
        sl_debug("request %s epoch %u: %s -> %s", job->request_id, job->epoch,
                 pre_state_name(before), pre_state_name(job->core.state));
    if (job->core.state != before)
        note_state(job, before, outcome.code);
    if (outcome.actions & PRE_ACTION_OPEN_ENGINE)
        post(job, PRE_COMMAND_OPEN);
    if (outcome.actions & PRE_ACTION_COMPUTE) {
        sl_metric_observe(service->queue_seconds,
                          (double)(sl_loop_now(service->options.loop) - job->arrived_at) / 1e9);
        post(job, PRE_COMMAND_COMPUTE);
    }
    if (outcome.actions & PRE_ACTION_CANCEL_SEND)
        kvt_send_cancel(job->send);
    if (outcome.actions & PRE_ACTION_CLOSE_ENGINE)
        post(job, PRE_COMMAND_CLOSE);
    if (job->call && (outcome.actions & PRE_ACTION_REPLY_DONE))
        reply_done(job);
    if (job->call && (outcome.actions & PRE_ACTION_REPLY_FAILED))
        reply_failed(job, outcome.code);
    settle(job);
    start_next(service);
    arm_timer(service);
}

/* ---- announcing ---- */

static void fail_send(slot *job, sl_status status)
{
    pre_event failed = {.kind = PRE_EVENT_COMPUTE_FAILED, .code = status.code};
    handle(job, &failed);
}

/* Offers what is ready of one group; block order, so that the receiver's watermark rises evenly. */
static sl_status announce(slot *job, uint32_t group, sl_err *err)
{
    pre_service *service = job->service;
    uint64_t offset, bytes;
    eng_layout_piece(service->layout, service->shape, group, &offset, &bytes);
    for (uint32_t block = job->announced[group]; block < job->ready[group]; block++) {
        uint64_t sum = job->task->sums[(size_t)block * service->layout->group_count + group];
        SL_TRY(kvt_send_announce(job->send, block, group, job->task->places[block] + offset, bytes,
                                 sum, err));
        job->announced[group] = block + 1;
        job->bytes_announced += bytes;
    }
    return sl_ok();
}

static void on_group(slot *job, uint32_t group, uint32_t blocks)
{
    if (job->core.state != PRE_STATE_COMPUTING)
        return;
    job->ready[group] = blocks;
    sl_status status = announce(job, group, &job->err);
    if (!sl_is_ok(status))
        fail_send(job, status);
}

static void on_progress(slot *job, uint32_t tokens)
{
    if (job->core.state != PRE_STATE_COMPUTING)
        return;
    uint32_t before = job->tokens_done ? job->tokens_done : job->task->tokens_known;
    job->service->rows += tokens - before;
    job->tokens_done = tokens;
    job->rows_ready = tokens;
    sl_trace_note(job->service->options.trace, job->request_id, "chunk",
                  "%u of %u tokens, %llu bytes offered", tokens, job->task->token_count,
                  (unsigned long long)job->bytes_announced);
    bool sent = send_rows(job);
    (void)sent; /* the next chunk or the end tries again */
    reply_progress(job, tokens);
    if (tokens == job->task->token_count)
        return; /* the final commit says it */
    kvt_commit commit = {.tokens = tokens};
    sl_status status = kvt_send_commit(job->send, &commit, &job->err);
    /* Cumulative: one that finds no place is skipped. A closed send tells by its own event. */
    if (!sl_is_ok(status) && status.code != SL_FULL)
        sl_debug("request %s: commit: %s", job->request_id, job->err.text);
}

static void on_computed(slot *job)
{
    pre_service *service = job->service;
    if (job->core.state != PRE_STATE_COMPUTING)
        return;
    job->computed_at = sl_loop_now(service->options.loop);
    sl_metric_add(service->prompt_tokens, NULL, job->task->token_count - job->task->tokens_known);
    kvt_commit commit = {.tokens = job->task->token_count,
                         .final = true,
                         .payload = job->task->final,
                         .payload_bytes = job->task->final_bytes};
    sl_status status = kvt_send_commit(job->send, &commit, &job->err);
    if (!sl_is_ok(status)) {
        fail_send(job, status);
        return;
    }
    pre_event event = {.kind = PRE_EVENT_COMPUTED};
    handle(job, &event);
}

/* ---- what the engine reports ---- */

static void on_open_failed(slot *job)
{
    pre_service *service = job->service;
    job->err = job->task->err;
    pre_event event = {.kind = PRE_EVENT_OPEN_FAILED, .code = job->err.code};
    if (job->err.code == SL_FULL) {
        event.kind = PRE_EVENT_OPEN_FULL;
        service->opening_full = true;
    }
    handle(job, &event);
}

/* Who asks for pages that are known computes them elsewhere if they are not. */
static bool is_too_much(const slot *job, sl_err *err)
{
    uint32_t left = job->task->token_count - job->task->tokens_known;
    uint32_t chunk = job->service->options.chunk_tokens;
    if (!job->offer || left <= (chunk > ENG_PAGE_TOKENS ? chunk : ENG_PAGE_TOKENS))
        return false;
    err->code =
        sl_fail(err, SL_NOT_FOUND, "%u of the request's %u tokens are not known here any more",
                left, job->task->token_count)
            .code;
    sl_info("request %s: %s", job->request_id, err->text);
    return true;
}

static void on_engine_event(void *context, const void *item)
{
    pre_service *service = context;
    const pre_compute_event *event = item;
    slot *job = &service->slots[event->task->slot];
    sl_assert(job->used && job->task == event->task);
    pre_event out = {.kind = PRE_EVENT_TICK};
    switch (event->kind) {
    case PRE_COMPUTE_GROUP:
        on_group(job, event->group, event->blocks);
        return;
    case PRE_COMPUTE_PROGRESS:
        on_progress(job, event->tokens);
        return;
    case PRE_COMPUTE_DONE:
        on_computed(job);
        return;
    case PRE_COMPUTE_OPEN_FAILED:
        on_open_failed(job);
        return;
    case PRE_COMPUTE_OPENED:
        out.kind = PRE_EVENT_OPENED;
        if (is_too_much(job, &job->err)) {
            out.kind = PRE_EVENT_COMPUTE_FAILED;
            out.code = job->err.code;
        }
        break;
    case PRE_COMPUTE_FAILED:
        job->err = job->task->err;
        out.kind = PRE_EVENT_COMPUTE_FAILED;
        out.code = job->err.code;
        break;
    case PRE_COMPUTE_CLOSED:
        out.kind = PRE_EVENT_ENGINE_CLOSED;
        break;
    }
    handle(job, &out);
}

static void on_engine(void *context, uint32_t events)
{
    pre_service *service = context;
    eng_worker_poll(service->client, on_engine_event, service);
}

/* ---- what kvtransfer reports ---- */

void pre_service_on_transfer(pre_service *service, const kvt_event *event)
{
    if (event->type != KVT_EVENT_SEND_CLOSED)
        return;
    slot *job = event->cookie;
    sl_assert(job->used && job->send == event->send);
    pre_event out = {.kind = PRE_EVENT_ACKNOWLEDGED};
    if (event->code != SL_OK) {
        out.kind = PRE_EVENT_SEND_FAILED;
        out.code = event->code;
        if (job->core.state < PRE_STATE_CLOSING)
            job->err.code = sl_fail(&job->err, event->code, "transfer: %s", event->text).code;
    }
    if (event->code == SL_OK)
        sl_metric_add(service->transfer_bytes, job->peer, (double)job->bytes_announced);
    kvt_send_release(job->send);
    job->send = NULL;
    handle(job, &out);
}

/* ---- what the router asks ---- */

static void on_call_closed(void *context, rpc_server_call *call, bool cancelled)
{
    slot *job = context;
    if (!job || job->call != call)
        return; /* answered: the job goes on without its call */
    job->call = NULL;
    job->done_due = false;
    pre_event event = {.kind = PRE_EVENT_CANCEL};
    handle(job, &event);
}

static const rpc_server_call_events CALL_EVENTS = {.on_closed = on_call_closed};

static bool stamp_equal(const Sluice__V1__Stamp *wire, const eng_stamp *own)
{
    return wire && strcmp(wire->numerics_id, own->numerics_id) == 0 &&
           strcmp(wire->model_hash, own->model_hash) == 0 &&
           strcmp(wire->weights_version, own->weights_version) == 0 &&
           strcmp(wire->cache_format, own->cache_format) == 0;
}

static eng_prompt_want prompt_want(const Sluice__V1__PrefillRequest *request)
{
    const Sluice__V1__PromptWant *wire = request->prompt_want;
    if (!wire)
        return (eng_prompt_want){0};
    return (eng_prompt_want){wire->first, wire->end, wire->routing,
                             wire->logprobs ? (int32_t)wire->top_logprobs : -1};
}

static sl_status check(const pre_service *service, const Sluice__V1__PrefillRequest *request,
                       sl_err *err)
{
    const Sluice__V1__Ticket *ticket = request->ticket;
    if (service->draining && !request->offer)
        return sl_fail(err, SL_UNAVAILABLE, "node %s is draining", service->options.name);
    if (service->offers_only && !request->offer)
        return sl_fail(err, SL_UNAVAILABLE, "node %s computes no prompts", service->options.name);
    if (service->held)
        return sl_fail(err, SL_FULL, "node %s takes nothing new now", service->options.name);
    size_t id_size = strlen(request->request_id);
    if (id_size == 0 || id_size >= PRE_REQUEST_ID_MAX)
        return sl_fail(err, SL_INVALID, "request_id must have 1 to %u bytes",
                       PRE_REQUEST_ID_MAX - 1);
    if (!ticket)
        return sl_fail(err, SL_INVALID, "ticket is missing");
    if (request->n_tokens == 0 || request->n_tokens > service->options.context_max)
        return sl_fail(err, SL_TOO_LARGE, "%zu tokens: this node takes 1 to %u", request->n_tokens,
                       service->options.context_max);
    uint32_t blocks = eng_pages_of((uint32_t)request->n_tokens);
    if (ticket->token_count != request->n_tokens || ticket->block_count != blocks ||
        ticket->first_block >= blocks)
        return sl_fail(err, SL_INVALID, "ticket of %u tokens, blocks %u to %u, for %zu tokens",
                       ticket->token_count, ticket->first_block, ticket->block_count,
                       request->n_tokens);
    if (!stamp_equal(ticket->stamp, eng_engine_stamp(service->options.engine)))
        return sl_fail(err, SL_INCOMPATIBLE,
                       "node %s (numerics %s) and %s (%s) differ in numerics, model, weights or "
                       "cache format; SLUICE_CPU=<numerics id> makes CPU nodes alike",
                       service->options.name,
                       eng_engine_stamp(service->options.engine)->numerics_id, ticket->node,
                       ticket->stamp ? ticket->stamp->numerics_id : "none");
    for (size_t i = 0; i < request->n_tokens; i++)
        if (request->tokens[i] >= (uint32_t)service->shape->vocab_size)
            return sl_fail(err, SL_INVALID, "token %u at %zu is not in the vocabulary",
                           request->tokens[i], i);
    eng_prompt_want want = prompt_want(request);
    if (!request->prompt_want)
        return sl_ok();
    return eng_prompt_want_check(&want, (uint32_t)request->n_tokens,
                                 eng_engine_routing(service->options.engine), err);
}

static sl_status open_send(slot *job, const Sluice__V1__Ticket *ticket, sl_err *err)
{
    pre_service *service = job->service;
    kvt_send_options options = {
        .address = ticket->kv_address,
        .nonce = {ticket->nonce_high, ticket->nonce_low},
        .deadline = SL_NEVER, /* the state machine's own, which a pause moves */
        .first_block = ticket->first_block,
        .block_count = ticket->block_count - ticket->first_block,
        .group_count = service->layout->group_count,
        .cookie = job,
    };
    SL_TRY(kvt_send_open(service->options.kvt, &options, &job->send, err));
    pre_job_init(&job->core,
                 sl_loop_now(service->options.loop) + (uint64_t)ticket->deadline_ms * SL_MS_NS);
    return sl_ok();
}

static void fill_slot(slot *job, rpc_server_call *call, const Sluice__V1__PrefillRequest *request)
{
    pre_service *service = job->service;
    memcpy(job->request_id, request->request_id, strlen(request->request_id) + 1);
    job->nonce = (kvt_nonce){request->ticket->nonce_high, request->ticket->nonce_low};
    job->epoch = request->epoch;
    job->order = service->next_order++;
    job->since = service->rows;
    job->call = call;
    job->offer = request->offer;
    job->arrived_at = sl_loop_now(service->options.loop);
    snprintf(job->peer, sizeof(job->peer), "%s", request->ticket->node);
    for (uint32_t group = 0; group < service->layout->group_count; group++)
        job->announced[group] = request->ticket->first_block;
    size_t final_bytes = (size_t)service->shape->hidden_size * sizeof(uint16_t);
    if (request->last_routing)
        final_bytes += eng_engine_routing(service->options.engine)->row_bytes;
    job->task = pre_task_create(request->tokens, (uint32_t)request->n_tokens,
                                service->layout->group_count, final_bytes);
    job->task->last_routing = request->last_routing;
    eng_prompt_want want = prompt_want(request);
    if (request->prompt_want)
        job->task->prompt_rows =
            eng_prompt_rows_create(&want, eng_engine_routing(service->options.engine));
    job->rows_sent = want.first;
    job->task->first_block = request->ticket->first_block;
    job->task->cache_space = request->cache_space;
    job->task->priority = request->priority;
    job->task->slot = (uint32_t)(job - service->slots);
}

static void on_run(void *context, rpc_server_call *call, const ProtobufCMessage *base)
{
    pre_service *service = context;
    const Sluice__V1__PrefillRequest *request = (const Sluice__V1__PrefillRequest *)base;
    sl_err err;
    slot *job = NULL;
    sl_status status = check(service, request, &err);
    for (uint32_t i = 0; i < service->options.queue_max && !job; i++)
        if (!service->slots[i].used)
            job = &service->slots[i];
    if (sl_is_ok(status) && !job)
        status =
            sl_fail(&err, SL_FULL, "the prefill queue is full (%u)", service->options.queue_max);
    if (sl_is_ok(status)) {
        *job = (slot){.service = service};
        status = open_send(job, request->ticket, &err);
    }
    if (request->offer && service->options.on_offer)
        service->options.on_offer(service->options.context, request->request_id);
    if (!sl_is_ok(status)) {
        sl_metric_add(service->refused, sl_code_name(status.code), 1);
        rpc_server_call_finish(call, status.code, err.text);
        return;
    }
    fill_slot(job, call, request);
    job->used = true;
    service->live_count++;
    rpc_server_call_set(call, &CALL_EVENTS, job);
    Sluice__V1__PrefillQueued queued = SLUICE__V1__PREFILL_QUEUED__INIT;
    queued.ahead = jobs_ahead(service, job);
    sl_trace_note(service->options.trace, job->request_id, request->offer ? "to offer" : "queued",
                  "epoch %u: %u tokens for %s, %u ahead", job->epoch, job->task->token_count,
                  job->peer, queued.ahead);
    Sluice__V1__PrefillEvent event = SLUICE__V1__PREFILL_EVENT__INIT;
    event.body_case = SLUICE__V1__PREFILL_EVENT__BODY_QUEUED;
    event.queued = &queued;
    sl_status queued_status = write_event(job, &event);
    (void)queued_status; /* only a sign of life */
    start_next(service);
    arm_timer(service);
}

/* ---- time, life ---- */

static void on_timer(void *context, sl_time_ns now)
{
    pre_service *service = context;
    service->opening_full = false;
    start_next(service);
    for (uint32_t i = 0; i < service->options.queue_max; i++) {
        slot *job = &service->slots[i];
        if (job->used && job->done_due && job->call) {
            reply_done(job);
            settle(job);
        }
        if (!job->used || pre_job_due(&job->core) > now)
            continue;
        pre_event event = {.kind = PRE_EVENT_TICK};
        handle(job, &event);
    }
    arm_timer(service);
}

sl_status pre_service_create(const pre_service_options *options, pre_service **out_service,
                             sl_err *err)
{
    sl_assert(options->queue_max > 0 && options->queue_max <= PRE_JOBS_MAX);
    pre_service *service = sl_alloc(1, sizeof(*service), "prefill service");
    service->options = *options;
    service->shape = eng_model_shape(options->model);
    service->layout = eng_engine_layout(options->engine);
    service->prompt_tokens = sl_counter(options->metrics, "sluice_prompt_tokens_total",
                                        "prompt tokens computed by this rank", NULL);
    service->queue_seconds =
        sl_histogram(options->metrics, "sluice_prefill_queue_seconds",
                     "from arrival to the first chunk", SL_SECONDS_BOUNDS, SL_SECONDS_BOUND_COUNT);
    service->transfer_bytes = sl_counter(options->metrics, "sluice_kv_transfer_bytes_total",
                                         "cache bytes handed over and verified", "peer");
    service->refused = sl_counter(options->metrics, "sluice_prefill_refused_total",
                                  "prefills refused, by reason", "reason");
    const pre_compute_options compute = {options->chunk_tokens, options->prefix_cache,
                                         options->chunk_ns};
    sl_status status = pre_compute_create(options->engine, options->model, options->worker,
                                          &compute, &service->compute, err);
    if (!sl_is_ok(status))
        goto err_free;
    service->client = pre_compute_client(service->compute);
    status = sl_watch_create(options->loop, eng_worker_fd(service->client), EPOLLIN, on_engine,
                             service, &service->engine_watch, err);
    if (!sl_is_ok(status))
        goto err_compute;
    service->timer = sl_timer_create(options->loop, on_timer, service);
    *out_service = service;
    return sl_ok();

err_compute:
    pre_compute_destroy(service->compute);
err_free:
    sl_free(service);
    return status;
}

void pre_service_destroy(pre_service *service)
{
    if (!service)
        return;
    sl_timer_destroy(service->timer);
    sl_watch_destroy(service->engine_watch);
    for (uint32_t i = 0; i < service->options.queue_max; i++) {
        slot *job = &service->slots[i];
        if (!job->used)
            continue;
        /* The engine thread has ended: this thread may touch the engine. */
        if (job->task->sequence)
            eng_sequence_close(job->task->sequence);
        job->task->sequence = NULL;
        pre_task_destroy(job->task);
    }
    pre_compute_destroy(service->compute);
    sl_free(service);
}

rpc_handler pre_service_handler(pre_service *service)
{
    return (rpc_handler){&rpc_method_prefill_run, on_run, service};
}

void pre_service_set_offers_only(pre_service *service, bool offers_only)
{
    service->offers_only = offers_only;
}

void pre_service_drain(pre_service *service, bool draining)
{
    service->draining = draining;
}

static void fill_transfer(const pre_service *service, const slot *job,
                          Sluice__V1__LedgerTransfer *out)
{
    sluice__v1__ledger_transfer__init(out);
    out->nonce_high = job->nonce.high;
    out->nonce_low = job->nonce.low;
    out->peer = (char *)job->peer;
    out->first_block = job->task->first_block;
    out->block_count = job->task->block_count - job->task->first_block;
    for (uint32_t group = 0; group < service->layout->group_count; group++)
        out->pieces += job->announced[group] - job->task->first_block;
}

void pre_service_holders(const pre_service *service,
                         void (*fn)(void *context, const Sluice__V1__LedgerHolder *holder),
                         void *context)
{
    sl_time_ns now = sl_loop_now(service->options.loop);
    for (uint32_t i = 0; i < service->options.queue_max; i++) {
        const slot *job = &service->slots[i];
        if (!job->used)
            continue;
        Sluice__V1__LedgerTransfer transfer;
        Sluice__V1__LedgerHolder holder = SLUICE__V1__LEDGER_HOLDER__INIT;
        holder.id = PRE_OWNER_FIRST + i;
        holder.kind = (char *)"job";
        holder.request_id = (char *)job->request_id;
        holder.epoch = job->epoch;
        holder.state = (char *)pre_state_name(job->core.state);
        sl_time_ns due = pre_job_due(&job->core);
        if (due != SL_NEVER && due > now)
            holder.deadline_ms = (uint32_t)((due - now) / SL_MS_NS);
        holder.router = (char *)(job->call ? rpc_server_call_peer(job->call) : "");
        if (job->send) {
            fill_transfer(service, job, &transfer);
            holder.transfer = &transfer;
        }
        fn(context, &holder);
    }
}

void pre_service_hold(pre_service *service, bool held)
{
    service->held = held;
}

void pre_service_set_rest(pre_service *service, bool rests)
{
    pre_event event = {.kind = rests ? PRE_EVENT_REST : PRE_EVENT_GO};
    for (uint32_t i = 0; i < service->options.queue_max; i++)
        if (service->slots[i].used)
            handle(&service->slots[i], &event);
}

void pre_service_clear(pre_service *service)
{
    for (uint32_t i = 0; i < service->options.queue_max; i++) {
        slot *job = &service->slots[i];
        if (!job->used || job->core.state >= PRE_STATE_CLOSING)
            continue;
        job->err.code = sl_fail(&job->err, SL_CONFLICT, "the weights are replaced").code;
        pre_event event = {.kind = PRE_EVENT_COMPUTE_FAILED, .code = SL_CONFLICT};
        handle(job, &event);
    }
}

bool pre_service_is_clear(const pre_service *service)
{
    for (uint32_t i = 0; i < service->options.queue_max; i++)
        if (service->slots[i].used && service->slots[i].core.state != PRE_STATE_DONE)
            return false;
    return true;
}

uint32_t pre_service_live(const pre_service *service)
{
    return service->live_count;
}

void pre_service_load(const pre_service *service, Sluice__V1__Load *out_load)
{
    uint64_t queued_tokens = 0;
    uint32_t running = 0, waiting = 0;
    for (uint32_t i = 0; i < service->options.queue_max; i++) {
        const slot *job = &service->slots[i];
        if (!job->used)
            continue;
        running += job->core.state == PRE_STATE_COMPUTING;
        waiting += job->core.state < PRE_STATE_COMPUTING;
        if (job->core.state <= PRE_STATE_COMPUTING)
            queued_tokens += job->task->token_count;
    }
    out_load->slots_total = service->options.queue_max;
    bool closed = service->draining || service->held;
    out_load->slots_free = closed ? 0 : service->options.queue_max - service->live_count;
    out_load->running = running;
    out_load->waiting = waiting;
    out_load->queued_tokens = queued_tokens;
}
