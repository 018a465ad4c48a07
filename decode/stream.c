/* One router loop's stream: hello, admissions, cancels and credits in; tickets and tokens out.
 *
 * A step's tokens of all its sequences travel in one message. When the router is slow its window
 * closes, and the next message carries more. Thread: control loop. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"
#include "decode/internal.h"

static void stream_write(dec_stream *stream, const Sluice__V1__DecodeMessage *message)
{
    sl_status status = rpc_server_call_write(stream->call, &message->base);
    if (sl_is_ok(status)) {
        stream->messages_sent++;
        return;
    }
    /* Windows are smaller than the queue, so this is a router that breaks the protocol, or one that
     * has gone. */
    sl_debug("router %s: stream write failed (%s)", stream->owner.router,
             sl_code_name(status.code));
    rpc_server_call_cancel(stream->call);
}

static void fill_load(const dec_service *service, Sluice__V1__Load *out_load)
{
    sluice__v1__load__init(out_load);
    dec_service_load(service, out_load);
    out_load->pages_total = service->layout->page_count;
    out_load->pages_free = eng_worker_pages_free(service->options.worker);
}

void dec_stream_send_hello(dec_stream *stream)
{
    const dec_service *service = stream->service;
    const eng_stamp *own = eng_engine_stamp(service->options.engine);
    Sluice__V1__Stamp stamp = SLUICE__V1__STAMP__INIT;
    stamp.numerics_id = (char *)own->numerics_id;
    stamp.model_hash = (char *)own->model_hash;
    stamp.weights_version = (char *)own->weights_version;
    stamp.cache_format = (char *)own->cache_format;
    Sluice__V1__Load load;
    fill_load(service, &load);
    Sluice__V1__HelloReply hello = SLUICE__V1__HELLO_REPLY__INIT;
    hello.node = (char *)service->options.name;
    hello.incarnation = service->options.incarnation;
    hello.stamp = &stamp;
    hello.window = DEC_WINDOW_MESSAGES;
    hello.load = &load;
    hello.context_max = service->options.context_max;
    Sluice__V1__DecodeMessage message = SLUICE__V1__DECODE_MESSAGE__INIT;
    message.body_case = SLUICE__V1__DECODE_MESSAGE__BODY_HELLO;
    message.hello = &hello;
    stream_write(stream, &message);
}

void dec_stream_send_admitted(dec_slot *slot, const Sluice__V1__Ticket *ticket)
{
    if (!slot->stream)
        return;
    Sluice__V1__Load load;
    fill_load(slot->stream->service, &load);
    Sluice__V1__Admitted admitted = SLUICE__V1__ADMITTED__INIT;
    admitted.ticket = (Sluice__V1__Ticket *)ticket;
    admitted.load = &load;
    Sluice__V1__DecodeMessage message = SLUICE__V1__DECODE_MESSAGE__INIT;
    message.body_case = SLUICE__V1__DECODE_MESSAGE__BODY_ADMITTED;
    message.admitted = &admitted;
    stream_write(slot->stream, &message);
}

void dec_stream_send_refused(dec_stream *stream, const char *request_id, uint32_t epoch,
                             const sl_err *err)
{
    if (!stream)
        return;
    Sluice__V1__Load load;
    fill_load(stream->service, &load);
    Sluice__V1__Failure failure = SLUICE__V1__FAILURE__INIT;
    failure.code = (uint32_t)err->code;
    failure.message = (char *)err->text;
    Sluice__V1__Refused refused = SLUICE__V1__REFUSED__INIT;
    refused.request_id = (char *)request_id;
    refused.epoch = epoch;
    refused.failure = &failure;
    refused.load = &load;
    Sluice__V1__DecodeMessage message = SLUICE__V1__DECODE_MESSAGE__INIT;
    message.body_case = SLUICE__V1__DECODE_MESSAGE__BODY_REFUSED;
    message.refused = &refused;
    stream_write(stream, &message);
}

/* ---- tokens out ---- */

/* One run with its arrays, built on the heap: a flush is control plane work, once a step. */
typedef struct run {
    Sluice__V1__TokenRun message;
    Sluice__V1__Failure failure;
    Sluice__V1__PromptRows rows;
    char weights_version[32];
    bool whole; /* all tokens of the slot, and its end */
} run;

static Sluice__V1__TokenLogprobs *make_logprobs(const dec_token *token)
{
    Sluice__V1__TokenLogprobs *out = sl_alloc(1, sizeof(*out), "decode flush");
    sluice__v1__token_logprobs__init(out);
    out->logprob = token->logprob;
    out->n_top = token->top_count;
    out->top = sl_alloc(token->top_count, sizeof(*out->top), "decode flush");
    for (uint32_t i = 0; i < token->top_count; i++) {
        out->top[i] = sl_alloc(1, sizeof(*out->top[i]), "decode flush");
        sluice__v1__logprob__init(out->top[i]);
        out->top[i]->id = token->top[i].id;
        out->top[i]->logprob = token->top[i].logprob;
    }
    return out;
}

static void free_logprobs(Sluice__V1__TokenLogprobs *logprobs)
{
    for (size_t i = 0; i < logprobs->n_top; i++)
        sl_free(logprobs->top[i]);
    sl_free(logprobs->top);
    sl_free(logprobs);
}

/* Those that the prompt's last step has noted, before the first token; none of them when it was
 * computed elsewhere. */
static uint32_t rows_left(const dec_slot *slot)
{
    const eng_prompt_rows *rows = slot->job->prompt_rows;
    return rows && slot->log_count > 0 ? rows->done - slot->rows_sent : 0;
}

/* Borrowed from the job; takes their bytes off the budget. */
static void fill_rows(const dec_slot *slot, uint32_t *budget, Sluice__V1__PromptRows *out)
{
    const eng_prompt_rows *rows = slot->job->prompt_rows;
    uint32_t at = slot->rows_sent - rows->want.first, left = rows_left(slot);
    uint32_t row_bytes = rows->routing ? rows->row_bytes : 0, bytes = row_bytes + rows->score_bytes;
    uint32_t count = (*budget + bytes - 1) / bytes;
    count = count < left ? count : left;
    sluice__v1__prompt_rows__init(out);
    out->first = slot->rows_sent;
    out->count = count;
    out->scores.data = rows->scores ? rows->scores + (size_t)at * rows->score_bytes : NULL;
    out->scores.len = (size_t)count * rows->score_bytes;
    out->routing.data = rows->routing ? rows->routing + (size_t)at * row_bytes : NULL;
    out->routing.len = (size_t)count * row_bytes;
    *budget -= count * bytes < *budget ? count * bytes : *budget;
}

/* How many tokens the next run may carry, of one version of the weights; takes their hand-outs'
 * bytes off the budget. */
static uint32_t tokens_to_send(const dec_slot *slot, uint32_t *budget)
{
    const dec_handout *handout = slot->job->handout;
    uint32_t left = slot->log_count - slot->log_sent, count = 0;
    if (!handout)
        return left;
    const dec_token *first = &slot->log[slot->log_sent];
    for (; count<left && * budget> 0; count++) {
        if (first[count].weights_version != first->weights_version)
            break;
        uint32_t bytes = dec_handout_bytes(handout, slot->log_sent + count);
        *budget -= bytes < *budget ? bytes : *budget;
    }
    return count;
}

/* Routing is borrowed from the job, masks too. */
static void add_handout(const dec_slot *slot, Sluice__V1__TokenRun *message)
{
    const dec_handout *handout = slot->job->handout;
    if (handout->o.routing) {
        size_t bytes = handout->o.routing->row_bytes;
        message->routing.data = handout->rows + slot->log_sent * bytes;
        message->routing.len = message->n_ids * bytes;
    }
    if (!handout->o.mask_vocab)
        return;
    message->n_sampling_masks = message->n_ids;
    message->sampling_masks =
        sl_alloc(message->n_ids, sizeof(*message->sampling_masks), "decode flush");
    for (size_t i = 0; i < message->n_ids; i++) {
        sl_span mask = dec_handout_mask(handout, slot->log_sent + (uint32_t)i);
        message->sampling_masks[i] = (ProtobufCBinaryData){mask.size, (uint8_t *)mask.data};
    }
}

static run *make_run(const dec_service *service, dec_slot *slot, uint32_t *budget)
{
    run *out = sl_alloc(1, sizeof(*out), "decode flush");
    Sluice__V1__TokenRun *message = &out->message;
    sluice__v1__token_run__init(message);
    message->request_id = slot->request_id;
    message->epoch = slot->core.epoch;
    message->first_index = slot->first_index + slot->log_sent;
    if (rows_left(slot) > 0 && *budget > 0) {
        fill_rows(slot, budget, &out->rows);
        message->prompt_rows = &out->rows;
        slot->rows_sent += out->rows.count;
    }
    if (rows_left(slot) == 0)
        message->n_ids = tokens_to_send(slot, budget);
    out->whole = slot->log_sent + message->n_ids == slot->log_count;
    if (slot->job->handout) {
        add_handout(slot, message);
        const eng_stamp *own = eng_engine_stamp(service->options.engine);
        snprintf(out->weights_version, sizeof(out->weights_version), "%s", own->weights_version);
        if (message->n_ids > 0) /* it may be another by now */
            snprintf(out->weights_version, sizeof(out->weights_version), "%u",
                     slot->log[slot->log_sent].weights_version);
        message->weights_version = out->weights_version;
    }
    message->ids = sl_alloc(message->n_ids, sizeof(uint32_t), "decode flush");
    bool logprobs = slot->job->sampling.logprob_count >= 0;
    if (logprobs) {
        message->n_logprobs = message->n_ids;
        message->logprobs = sl_alloc(message->n_ids, sizeof(*message->logprobs), "decode flush");
    }
    for (size_t i = 0; i < message->n_ids; i++) {
        const dec_token *token = &slot->log[slot->log_sent + i];
        message->ids[i] = token->id;
        if (logprobs)
            message->logprobs[i] = make_logprobs(token);
    }
    if (out->whole)
        message->finish = slot->finish;
    if (message->finish == SLUICE__V1__FINISH__FINISH_FAILED) {
        sluice__v1__failure__init(&out->failure);
        out->failure.code = (uint32_t)slot->err.code;
        out->failure.message = slot->err.text;
        message->failure = &out->failure;
    }
    return out;
}

static void free_run(run *out)
{
    for (size_t i = 0; i < out->message.n_logprobs; i++)
        free_logprobs(out->message.logprobs[i]);
    sl_free(out->message.logprobs);
    sl_free(out->message.sampling_masks);
    sl_free(out->message.ids);
    sl_free(out);
}

static bool has_news(const dec_slot *slot, const dec_stream *stream)
{
    return slot->used && slot->stream == stream &&
           (slot->log_sent < slot->log_count ||
            (slot->finish != SLUICE__V1__FINISH__FINISH_NONE && !slot->finish_sent));
}

/* One message with what the slots have, or with the load alone when that is due. */
static void flush_message(dec_stream *stream)
{
    dec_service *service = stream->service;
    stream->dirty = false;
    Sluice__V1__TokenRun *runs[DEC_SEQUENCES_MAX];
    dec_slot *slots[DEC_SEQUENCES_MAX];
    size_t count = 0;
    uint32_t budget = DEC_MESSAGE_HANDOUT_BYTES;
    for (uint32_t i = 0; i < service->options.sequences_max; i++) {
        if (!has_news(&service->slots[i], stream))
            continue;
        slots[count] = &service->slots[i];
        runs[count++] = &make_run(service, &service->slots[i], &budget)->message;
    }
    if (count == 0 && !(stream->greeted && stream->load_due))
        return;
    /* The last tokens of a sequence went out before its pages were free: without a message of its
     * own (no runs) that room would stay unknown until the next request. */
    stream->load_due = false;
    Sluice__V1__Load load;
    fill_load(service, &load);
    Sluice__V1__Step step = SLUICE__V1__STEP__INIT;
    step.n_runs = count;
    step.runs = runs;
    step.load = &load;
    Sluice__V1__DecodeMessage message = SLUICE__V1__DECODE_MESSAGE__INIT;
    message.body_case = SLUICE__V1__DECODE_MESSAGE__BODY_STEP;
    message.step = &step;
    stream_write(stream, &message);
    for (size_t i = 0; i < count; i++) {
        const run *sent = (run *)runs[i];
        slots[i]->log_sent += (uint32_t)sent->message.n_ids;
        slots[i]->finish_sent = sent->message.finish != SLUICE__V1__FINISH__FINISH_NONE;
        stream->dirty = stream->dirty || !sent->whole;
        free_run((run *)runs[i]);
        dec_slot_settle(service, slots[i]);
    }
}

void dec_stream_flush(dec_stream *stream)
{
    while ((stream->dirty || (stream->greeted && stream->load_due)) &&
           stream->messages_sent - stream->messages_taken < DEC_WINDOW_MESSAGES) {
        uint64_t sent = stream->messages_sent;
        flush_message(stream);
        if (stream->messages_sent == sent) /* nothing to say, or it broke */
            break;
    }
}

/* ---- messages in ---- */

bool dec_owner_equal(const dec_owner *a, const dec_owner *b)
{
    return a->incarnation == b->incarnation && a->loop == b->loop &&
           strcmp(a->router, b->router) == 0;
}

/* The sequences of a stream wait for its owner to come back. */
static void park_all(dec_stream *stream)
{
    dec_service *service = stream->service;
    for (uint32_t i = 0; i < service->options.sequences_max; i++) {
        dec_slot *slot = &service->slots[i];
        if (!slot->used || slot->stream != stream)
            continue;
        slot->stream = NULL;
        dec_event event = {.kind = DEC_EVENT_DETACH,
                           .park_ns = stream->left ? 0 : service->options.park_ns};
        dec_slot_event(service, slot, &event);
    }
}

/* Of the same loop: it knows that its old stream is broken before we do. Of a former life of the
 * router: nobody will come back for those. */
static void displace(dec_stream *stream)
{
    dec_service *service = stream->service;
    for (uint32_t i = 0; i < DEC_STREAMS_MAX; i++) {
        dec_stream *old = service->streams[i];
        if (!old || old == stream || !dec_owner_equal(&old->owner, &stream->owner))
            continue;
        old->left = false; /* it is back */
        park_all(old);
        rpc_server_call_cancel(old->call);
    }
    for (uint32_t i = 0; i < service->options.sequences_max; i++) {
        dec_slot *slot = &service->slots[i];
        if (slot->used && dec_sequence_is_parked(&slot->core) &&
            slot->owner.incarnation != stream->owner.incarnation &&
            strcmp(slot->owner.router, stream->owner.router) == 0)
            dec_slot_cancel(service, slot);
    }
}

static void on_hello(dec_stream *stream, const Sluice__V1__Hello *hello)
{
    size_t size = strlen(hello->router);
    if (stream->greeted || size == 0 || size >= DEC_ROUTER_MAX) {
        rpc_server_call_finish(stream->call, SL_INVALID,
                               "hello comes first, once, with the router's name");
        return;
    }
    memcpy(stream->owner.router, hello->router, size + 1);
    stream->owner.incarnation = hello->incarnation;
    stream->owner.loop = hello->loop;
    displace(stream);
    stream->greeted = true;
    dec_stream_send_hello(stream);
}

static void on_cancel(dec_stream *stream, const Sluice__V1__Cancel *cancel)
{
    dec_service *service = stream->service;
    for (uint32_t i = 0; i < service->options.sequences_max; i++) {
        dec_slot *slot = &service->slots[i];
        if (!slot->used || slot->stream != stream ||
            strcmp(slot->request_id, cancel->request_id) != 0)
            continue;
        sl_debug("request %s: cancelled by %s: %s", slot->request_id, stream->owner.router,
                 cancel->reason);
        if (cancel->moved && service->draining)
            dec_moves_add(&service->moves, slot->request_id,
                          sl_loop_now(service->options.loop) + DEC_MOVE_NS);
        dec_slot_cancel(service, slot);
        return;
    }
    if (service->compiler)
        dec_compiler_forget(service->compiler, stream, cancel->request_id);
}

static void on_extend(dec_stream *stream, const Sluice__V1__Extend *extend)
{
    dec_slot *slot = dec_slot_find(stream->service, extend->request_id);
    dec_event event = {.kind = DEC_EVENT_EXTEND,
                       .prefill_ns = (uint64_t)extend->prefill_deadline_ms * SL_MS_NS};
    if (slot && slot->stream == stream && slot->core.epoch == extend->epoch)
        dec_slot_event(stream->service, slot, &event);
}

static void on_attach(dec_stream *stream, const Sluice__V1__Attach *attach)
{
    dec_service *service = stream->service;
    dec_slot *slot = dec_slot_find(service, attach->request_id);
    bool ours = slot && dec_owner_equal(&slot->owner, &stream->owner);
    if (ours && slot->stream == stream)
        return;
    bool parked = ours && dec_sequence_is_parked(&slot->core);
    if (parked && slot->core.epoch <= attach->epoch &&
        sl_is_ok(dec_slot_attach(service, slot, stream, attach->next_index, attach->next_row)))
        return;
    if (parked)
        dec_slot_cancel(service, slot);
    sl_err err;
    err.code =
        sl_fail(&err, SL_NOT_FOUND, "request %s is not here any more", attach->request_id).code;
    dec_stream_send_refused(stream, attach->request_id, attach->epoch, &err);
}

static void on_message(void *context, rpc_server_call *call, const ProtobufCMessage *base)
{
    dec_stream *stream = context;
    const Sluice__V1__RouterMessage *message = (const Sluice__V1__RouterMessage *)base;
    bool is_hello = message->body_case == SLUICE__V1__ROUTER_MESSAGE__BODY_HELLO;
    if (!stream->greeted && !is_hello) {
        rpc_server_call_finish(call, SL_INVALID, "the first message must be hello");
        return;
    }
    switch (message->body_case) {
    case SLUICE__V1__ROUTER_MESSAGE__BODY_HELLO:
        on_hello(stream, message->hello);
        break;
    case SLUICE__V1__ROUTER_MESSAGE__BODY_ADMIT:
        dec_admit(stream->service, stream, message->admit);
        break;
    case SLUICE__V1__ROUTER_MESSAGE__BODY_CANCEL:
        on_cancel(stream, message->cancel);
        break;
    case SLUICE__V1__ROUTER_MESSAGE__BODY_ATTACH:
        on_attach(stream, message->attach);
        break;
    case SLUICE__V1__ROUTER_MESSAGE__BODY_EXTEND:
        on_extend(stream, message->extend);
        break;
    case SLUICE__V1__ROUTER_MESSAGE__BODY_CREDIT:
        if (message->credit->messages_taken > stream->messages_sent) {
            rpc_server_call_finish(call, SL_INVALID, "credit for messages that were never sent");
            return;
        }
        stream->messages_taken = message->credit->messages_taken;
        break;
    default:
        break; /* a newer router's message: fields are only appended */
    }
}

static void on_half_closed(void *context, rpc_server_call *call)
{
    dec_stream *stream = context;
    stream->left = true;
    rpc_server_call_finish(call, SL_OK, NULL);
}

/* The router is gone, or will be back in a moment. */
static void on_closed(void *context, rpc_server_call *call, bool cancelled)
{
    dec_stream *stream = context;
    dec_service *service = stream->service;
    /* A connection that breaks looks like an orderly end first, then as cancelled. */
    stream->left = stream->left && !cancelled;
    park_all(stream);
    if (service->compiler)
        dec_compiler_forget(service->compiler, stream, NULL);
    for (uint32_t i = 0; i < DEC_STREAMS_MAX; i++)
        if (service->streams[i] == stream)
            service->streams[i] = NULL;
    sl_free(stream);
}

const rpc_server_call_events DEC_STREAM_EVENTS = {
    .on_message = on_message,
    .on_half_closed = on_half_closed,
    .on_closed = on_closed,
};

void dec_stream_on_call(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    dec_service *service = context;
    for (uint32_t i = 0; i < DEC_STREAMS_MAX; i++) {
        if (service->streams[i])
            continue;
        dec_stream *stream = sl_alloc(1, sizeof(*stream), "decode stream");
        stream->service = service;
        stream->call = call;
        service->streams[i] = stream;
        rpc_server_call_set(call, &DEC_STREAM_EVENTS, stream);
        return;
    }
    rpc_server_call_finish(call, SL_FULL, "too many router streams");
}
