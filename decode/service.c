/* The Decode service: see service.h. Carries out what the sequences' state machines ask for, and
 * feeds them what the engine and kvtransfer report. */
#include "decode/service.h"

#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"
#include "base/rng.h"
#include "decode/internal.h"

/* ---- actions ---- */

/* Blocks whose every group is verified, from the start. */
static uint32_t watermark(const dec_service *service, const dec_slot *slot)
{
    uint32_t block = 0;
    while (block < slot->prompt_blocks &&
           slot->groups_verified[block] == service->layout->group_count)
        block++;
    /* The last block always comes again: with it comes the commit that carries h_final. */
    return block < slot->prompt_blocks ? block : slot->prompt_blocks - 1;
}

static void post(dec_service *service, dec_slot *slot, dec_command_kind kind)
{
    dec_command command = {kind, slot->job};
    /* At most four commands a sequence are ever waiting, and the inbox holds so many for each. */
    bool posted = eng_worker_post(service->client, &command);
    sl_assert(posted);
}

static sl_status open_transfer(dec_service *service, dec_slot *slot, sl_err *err)
{
    if (!slot->job->fetches) /* it was opened to compute its prompt here */
        return sl_fail(err, SL_FULL, "no place was taken for the prompt's blocks");
    slot->first_block = watermark(service, slot);
    if (slot->first_block > slot->job->known_blocks && !slot->keeping) {
        slot->keeping = true; /* another node may start from there */
        slot->job->verified_blocks = slot->first_block;
        post(service, slot, DEC_COMMAND_KEEP);
    }
    slot->nonce.high = sl_random_u64();
    slot->nonce.low = sl_random_u64();
    uint32_t count = slot->prompt_blocks - slot->first_block;
    memset(slot->groups_verified + slot->first_block, 0, count * sizeof(slot->groups_verified[0]));
    void **pages = sl_alloc(count, sizeof(*pages), "decode transfer pages");
    for (uint32_t i = 0; i < count; i++)
        pages[i] = slot->job->places[slot->first_block + i];
    kvt_recv_options options = {
        .nonce = slot->nonce,
        .deadline = SL_NEVER, /* the state machine's own, which a pause moves */
        .first_block = slot->first_block,
        .block_count = count,
        .group_count = service->layout->group_count,
        .pages = pages,
        .slices = service->slices,
        .sums = service->options.sums,
        .sum_key = eng_engine_sum_key(service->options.engine),
        .piece_events = true,
        .cookie = slot,
    };
    sl_status status = kvt_recv_open(service->options.kvt, &options, &slot->recv, err);
    sl_free(pages);
    return status;
}

void dec_send_ticket(dec_service *service, dec_slot *slot)
{
    const eng_stamp *own = eng_engine_stamp(service->options.engine);
    Sluice__V1__Stamp stamp = SLUICE__V1__STAMP__INIT;
    stamp.numerics_id = (char *)own->numerics_id;
    stamp.model_hash = (char *)own->model_hash;
    stamp.weights_version = (char *)own->weights_version;
    stamp.cache_format = (char *)own->cache_format;
    Sluice__V1__Ticket ticket = SLUICE__V1__TICKET__INIT;
    ticket.request_id = slot->request_id;
    ticket.epoch = slot->core.epoch;
    ticket.nonce_high = slot->nonce.high;
    ticket.nonce_low = slot->nonce.low;
    ticket.node = (char *)service->options.name;
    ticket.kv_address = (char *)kvt_context_address(service->options.kvt);
    ticket.first_block = slot->first_block;
    ticket.block_count = slot->prompt_blocks;
    ticket.token_count = slot->token_count;
    ticket.deadline_ms = (uint32_t)(slot->core.prefill_ns / SL_MS_NS);
    ticket.stamp = &stamp;
    dec_stream_send_admitted(slot, &ticket);
}

static void end_with(dec_slot *slot, Sluice__V1__Finish finish)
{
    slot->finish = finish;
    if (slot->stream)
        slot->stream->dirty = true;
}

static void run_actions(dec_service *service, dec_slot *slot, dec_outcome outcome)
{
    uint32_t actions = outcome.actions;
    if (actions & DEC_ACTION_REVOKE_TRANSFER)
        kvt_recv_revoke(slot->recv);
    if (actions & DEC_ACTION_OPEN_TRANSFER) {
        sl_status status = open_transfer(service, slot, &slot->err);
        if (!sl_is_ok(status)) {
            /* Nothing was opened: the machine hears of a transfer that failed and closed at once.
             */
            dec_event failed = {.kind = DEC_EVENT_TRANSFER_FAILED, .code = status.code};
            dec_slot_event(service, slot, &failed);
            dec_event closed = {.kind = DEC_EVENT_TRANSFER_CLOSED};
            dec_slot_event(service, slot, &closed);
            return;
        }
    }
    if (actions & DEC_ACTION_SEND_ADMITTED)
        dec_send_ticket(service, slot);
    if (actions & DEC_ACTION_SEND_REFUSED) {
        if (outcome.code == SL_DEADLINE)
            slot->err.code = sl_fail(&slot->err, SL_DEADLINE, "the prefill did not arrive in %u ms",
                                     (uint32_t)(slot->core.prefill_ns / SL_MS_NS))
                                 .code;
        dec_stream_send_refused(slot->stream, slot->request_id, slot->core.epoch, &slot->err);
    }
    if (actions & DEC_ACTION_ADOPT)
        post(service, slot, DEC_COMMAND_ADOPT);
    if (actions & DEC_ACTION_RUN_SELF)
        post(service, slot, DEC_COMMAND_RUN_SELF);
    if (actions & DEC_ACTION_CLOSE_ENGINE)
        post(service, slot, DEC_COMMAND_CLOSE);
    if (actions & DEC_ACTION_SEND_FAILED) {
        slot->err.code = sl_fail(&slot->err, outcome.code, "no prefill node took over").code;
        end_with(slot, SLUICE__V1__FINISH__FINISH_FAILED);
    }
}

/* For whoever asks what happened to a request. */
static void note_state(dec_service *service, const dec_slot *slot, const dec_event *event,
                       sl_code code)
{
    sl_trace *trace = service->options.trace;
    code = event->code != SL_OK ? event->code : code;
    const char *state = dec_state_name(slot->core.state);
    switch (slot->core.state) {
    case DEC_STATE_FETCHING:
        sl_trace_note(trace, slot->request_id, state,
                      "epoch %u: %u of %u blocks were known here, the rest is awaited",
                      slot->core.epoch, slot->first_block, slot->prompt_blocks);
        break;
    case DEC_STATE_RUNNING:
        sl_trace_note(trace, slot->request_id, state, "%s",
                      event->kind == DEC_EVENT_COMMITTED ? "all pieces are here and verified"
                                                         : "computes the prompt itself");
        break;
    case DEC_STATE_CLOSING:
    case DEC_STATE_DONE:
        sl_trace_note(trace, slot->request_id, state, "%u tokens drawn here%s%s%s", slot->log_count,
                      slot->core.cancelled ? ", cancelled" : "", code != SL_OK ? ": " : "",
                      code != SL_OK ? sl_code_name(code) : "");
        break;
    default:
        sl_trace_note(trace, slot->request_id, state, "epoch %u: %s", slot->core.epoch,
                      slot->core.reopen ? "gives way to it" : sl_code_name(code));
    }
}

void dec_slot_event(dec_service *service, dec_slot *slot, const dec_event *event)
{
    dec_state before = slot->core.state;
    dec_outcome outcome =
        dec_sequence_handle(&slot->core, event, sl_loop_now(service->options.loop));
    if (slot->core.state != before)
        sl_debug("request %s epoch %u: %s -> %s", slot->request_id, slot->core.epoch,
                 dec_state_name(before), dec_state_name(slot->core.state));
    if (slot->core.state != before)
        note_state(service, slot, event, outcome.code);
    run_actions(service, slot, outcome);
    if (slot->core.state == DEC_STATE_DONE && slot->core.cancelled &&
        slot->finish == SLUICE__V1__FINISH__FINISH_NONE)
        end_with(slot, SLUICE__V1__FINISH__FINISH_CANCELLED);
    dec_slot_settle(service, slot);
    dec_service_arm_timer(service);
}

dec_slot *dec_slot_find(dec_service *service, const char *request_id)
{
    for (uint32_t i = 0; i < service->options.sequences_max; i++)
        if (service->slots[i].used && strcmp(service->slots[i].request_id, request_id) == 0)
            return &service->slots[i];
    return NULL;
}

void dec_slot_cancel(dec_service *service, dec_slot *slot)
{
    dec_event event = {.kind = DEC_EVENT_CANCEL};
    dec_slot_event(service, slot, &event);
}

sl_status dec_slot_attach(dec_service *service, dec_slot *slot, dec_stream *stream,
                          uint32_t next_index, uint32_t next_row)
{
    sl_assert(!slot->stream && dec_sequence_is_parked(&slot->core));
    if (next_index < slot->first_index || next_index - slot->first_index > slot->log_count)
        return (sl_status){SL_INVALID};
    const eng_prompt_rows *rows = slot->job->prompt_rows;
    slot->stream = stream;
    slot->log_sent = next_index - slot->first_index;
    slot->finish_sent = false;
    if (rows && next_row >= rows->want.first && next_row < slot->rows_sent)
        slot->rows_sent = next_row;
    stream->dirty = true;
    sl_metric_add(service->parked, "attached", 1);
    dec_event event = {.kind = DEC_EVENT_ATTACH};
    dec_slot_event(service, slot, &event);
    return sl_ok();
}

void dec_slot_settle(dec_service *service, dec_slot *slot)
{
    bool heard = slot->stream || dec_sequence_is_parked(&slot->core);
    bool unsent = heard && slot->finish != SLUICE__V1__FINISH__FINISH_NONE && !slot->finish_sent;
    if (!slot->used || slot->core.state != DEC_STATE_DONE || slot->recv || unsent)
        return;
    dec_constraint_give(slot->job->constraint);
    dec_job_destroy(slot->job);
    sl_free(slot->groups_verified);
    sl_free(slot->log);
    sl_free(slot->log_top);
    memset(slot, 0, sizeof(*slot));
    sl_assert(service->live_count > 0);
    service->live_count--;
    for (uint32_t i = 0; i < DEC_STREAMS_MAX; i++)
        if (service->streams[i])
            service->streams[i]->load_due = true;
}

/* ---- what kvtransfer reports ---- */

static void on_commit(dec_service *service, dec_slot *slot, const kvt_event *event)
{
    if (!event->final)
        return;
    dec_handout *handout = slot->job->handout;
    size_t hidden = (size_t)service->shape->hidden_size * sizeof(uint16_t);
    size_t row = handout && handout->o.routing ? handout->o.routing->row_bytes : 0;
    size_t expected = hidden + row;
    if (event->payload_bytes != expected || event->tokens != slot->token_count) {
        /* The sender speaks the protocol but not about this prompt: as a failed transfer. */
        slot->err.code =
            sl_fail(&slot->err, SL_CORRUPT, "final commit of %llu tokens and %zu bytes",
                    (unsigned long long)event->tokens, event->payload_bytes)
                .code;
        dec_event failed = {.kind = DEC_EVENT_TRANSFER_FAILED, .code = SL_CORRUPT};
        dec_slot_event(service, slot, &failed);
        return;
    }
    memcpy(slot->job->h_final, event->payload, hidden);
    if (row)
        memcpy(handout->first_row, (const uint8_t *)event->payload + hidden, row);
    sl_metric_observe(service->transfer_seconds,
                      (double)(sl_loop_now(service->options.loop) - slot->admitted_at) / 1e9);
    dec_event committed = {.kind = DEC_EVENT_COMMITTED};
    dec_slot_event(service, slot, &committed);
}

static void on_transfer_closed(dec_service *service, dec_slot *slot, const kvt_event *event)
{
    if (event->code != SL_OK && slot->core.state == DEC_STATE_FETCHING) {
        slot->err.code = sl_fail(&slot->err, event->code, "transfer: %s", event->text).code;
        dec_event failed = {.kind = DEC_EVENT_TRANSFER_FAILED, .code = event->code};
        dec_slot_event(service, slot, &failed);
    }
    kvt_recv_release(slot->recv);
    slot->recv = NULL;
    dec_event closed = {.kind = DEC_EVENT_TRANSFER_CLOSED};
    dec_slot_event(service, slot, &closed);
}

void dec_service_on_transfer(dec_service *service, const kvt_event *event)
{
    dec_slot *slot = event->cookie;
    sl_assert(slot->used && slot->recv == event->recv);
    if (event->type == KVT_EVENT_RECV_PIECE) {
        sl_assert(event->block < slot->prompt_blocks);
        slot->groups_verified[event->block]++;
    } else if (event->type == KVT_EVENT_RECV_COMMIT) {
        on_commit(service, slot, event);
    } else if (event->type == KVT_EVENT_RECV_CLOSED) {
        on_transfer_closed(service, slot, event);
    }
}

/* ---- what the engine reports ---- */

static void on_token(dec_service *service, dec_slot *slot, const dec_batch_event *event)
{
    const eng_sampled *sampled = &event->sampled;
    sl_assert(slot->log_count < slot->log_capacity);
    dec_token *token = &slot->log[slot->log_count];
    *token = (dec_token){
        .id = sampled->id, .logprob = sampled->logprob, .weights_version = event->weights_version};
    if (slot->log_top) {
        token->top_count = sampled->top_count;
        token->top =
            slot->log_top + (size_t)slot->log_count * (size_t)slot->job->sampling.logprob_count;
        memcpy(token->top, sampled->top, sampled->top_count * sizeof(*token->top));
    }
    if (slot->log_count++ == 0)
        sl_trace_note(
            service->options.trace, slot->request_id, "first token",
            "number %u, %u ms after admission", slot->first_index,
            (unsigned)((sl_loop_now(service->options.loop) - slot->admitted_at) / SL_MS_NS));
    sl_metric_add(service->generated, NULL, 1);
    if (slot->stream)
        slot->stream->dirty = true;
}

static void on_finished(dec_service *service, dec_slot *slot, dec_finish finish)
{
    static const Sluice__V1__Finish WIRE[] = {
        [DEC_FINISH_NONE] = SLUICE__V1__FINISH__FINISH_NONE,
        [DEC_FINISH_STOP] = SLUICE__V1__FINISH__FINISH_STOP,
        [DEC_FINISH_LENGTH] = SLUICE__V1__FINISH__FINISH_LENGTH,
        [DEC_FINISH_FAILED] = SLUICE__V1__FINISH__FINISH_FAILED,
    };
    if (finish == DEC_FINISH_FAILED)
        slot->err = slot->job->err;
    if (slot->core.state == DEC_STATE_RUNNING)
        end_with(slot, WIRE[finish]);
    dec_event event = {.kind = DEC_EVENT_FINISHED};
    dec_slot_event(service, slot, &event);
}

static void on_engine_event(void *context, const void *item)
{
    dec_service *service = context;
    const dec_batch_event *event = item;
    dec_slot *slot = &service->slots[event->job->slot];
    sl_assert(slot->used && slot->job == event->job);
    dec_event out = {.kind = DEC_EVENT_TICK};
    switch (event->kind) {
    case DEC_BATCH_TOKEN:
        on_token(service, slot, event);
        return;
    case DEC_BATCH_FINISHED:
        on_finished(service, slot, event->finish);
        return;
    case DEC_BATCH_KEPT:
        slot->keeping = false;
        return;
    case DEC_BATCH_OPENED:
        /* Known blocks count as verified: the transfer starts behind them. */
        for (uint32_t block = 0; block < event->job->known_blocks; block++)
            slot->groups_verified[block] = (uint16_t)service->layout->group_count;
        slot->first_block = event->job->known_blocks;
        out.kind = DEC_EVENT_OPENED;
        break;
    case DEC_BATCH_OPEN_FAILED:
        slot->err = slot->job->err;
        out.kind = DEC_EVENT_OPEN_FAILED;
        out.code = slot->err.code;
        break;
    case DEC_BATCH_CLOSED:
        out.kind = DEC_EVENT_ENGINE_CLOSED;
        break;
    }
    dec_slot_event(service, slot, &out);
}

/* Twice: what a flush settles is room that all streams hear of. */
void dec_service_flush(dec_service *service)
{
    for (uint32_t i = 0; i < 2 * DEC_STREAMS_MAX; i++)
        if (service->streams[i % DEC_STREAMS_MAX])
            dec_stream_flush(service->streams[i % DEC_STREAMS_MAX]);
}

static void on_engine(void *context, uint32_t events)
{
    dec_service *service = context;
    eng_worker_poll(service->client, on_engine_event, service);
}

/* ---- time ---- */

void dec_service_arm_timer(dec_service *service)
{
    sl_time_ns next = dec_moves_due(&service->moves);
    for (uint32_t i = 0; i < service->options.sequences_max; i++)
        if (service->slots[i].used && dec_sequence_due(&service->slots[i].core) < next)
            next = dec_sequence_due(&service->slots[i].core);
    sl_timer_set(service->timer, next);
}

static void on_timer(void *context, sl_time_ns now)
{
    dec_service *service = context;
    dec_moves_expire(&service->moves, now);
    for (uint32_t i = 0; i < service->options.sequences_max; i++) {
        dec_slot *slot = &service->slots[i];
        if (!slot->used || dec_sequence_due(&slot->core) > now)
            continue;
        if (slot->core.park_deadline <= now) {
            sl_info("request %s: router %s did not come back", slot->request_id,
                    slot->owner.router);
            sl_metric_add(service->parked, "freed", 1);
        }
        dec_event event = {.kind = DEC_EVENT_TICK};
        dec_slot_event(service, slot, &event);
    }
    dec_service_arm_timer(service);
}

/* ---- life ---- */

static void create_metrics(dec_service *service, dec_batch_options *out_batch)
{
    static const double BATCH_BOUNDS[] = {1, 2, 4, 8, 16, 32, 64, 128, 256};
    static const double DEPTH_BOUNDS[] = {0, 1, 2, 3};
    sl_metrics *metrics = service->options.metrics;
    service->generated = sl_counter(metrics, "sluice_generation_tokens_total",
                                    "tokens generated by this rank", NULL);
    service->admitted =
        sl_counter(metrics, "sluice_decode_admitted_total", "sequences admitted", NULL);
    service->refused = sl_counter(metrics, "sluice_decode_refused_total",
                                  "admissions refused, by reason", "reason");
    service->parked =
        sl_counter(metrics, "sluice_decode_parked_total",
                   "sequences whose router's stream broke, by what came of them", "outcome");
    sl_metric_add(service->parked, "attached", 0);
    sl_metric_add(service->parked, "freed", 0);
    service->transfer_seconds = sl_histogram(metrics, "sluice_kv_transfer_seconds",
                                             "from admission to the last verified piece",
                                             SL_SECONDS_BOUNDS, SL_SECONDS_BOUND_COUNT);
    out_batch->step_batch_size =
        sl_histogram(metrics, "sluice_step_batch_size", "sequences in one decode step",
                     BATCH_BOUNDS, sizeof(BATCH_BOUNDS) / sizeof(BATCH_BOUNDS[0]));
    out_batch->depth =
        sl_histogram(metrics, "sluice_mtp_depth", "drafts of one sequence in one step",
                     DEPTH_BOUNDS, sizeof(DEPTH_BOUNDS) / sizeof(DEPTH_BOUNDS[0]));
    out_batch->drafted =
        sl_counter(metrics, "sluice_mtp_drafted_total", "tokens drafted by the MTP layer", NULL);
    out_batch->preempted = sl_counter(metrics, "sluice_decode_preempted_total",
                                      "sequences that gave their pages to others", NULL);
    out_batch->recomputed = sl_counter(metrics, "sluice_decode_recomputed_tokens_total",
                                       "tokens computed again when sequences came back", NULL);
    out_batch->accepted = sl_counter(metrics, "sluice_mtp_accepted_total",
                                     "drafts that were the token which the model drew", NULL);
}

sl_status dec_service_create(const dec_service_options *options, dec_service **out_service,
                             sl_err *err)
{
    sl_assert(options->sequences_max > 0 && options->sequences_max <= DEC_SEQUENCES_MAX);
    dec_service *service = sl_alloc(1, sizeof(*service), "decode service");
    service->options = *options;
    service->shape = eng_model_shape(options->model);
    service->layout = eng_engine_layout(options->engine);
    for (uint32_t group = 0; group < service->layout->group_count; group++)
        eng_layout_piece(service->layout, service->shape, group, &service->slices[group].offset,
                         &service->slices[group].bytes);
    service->constraints = dec_constraints_create(options->sequences_max);
    const mdl_tokenizer *tokenizer = eng_model_tokenizer(options->model);
    if (tokenizer)
        service->masks = mdl_masks_create(tokenizer, (uint32_t)service->shape->vocab_size, 0);
    dec_batch_options batch = {
        .masks = service->masks,
        .sequences_max = options->sequences_max,
        .chunk_tokens = options->chunk_tokens,
        .chunk_ns = options->chunk_ns,
        .draft_depth = service->shape->mtp_layer_count > 0 ? options->draft_depth : 0,
        .rows_max = options->rows_max,
        .prefix_cache = options->prefix_cache,
        .eos_id = (uint32_t)service->shape->eos_id,
        .hidden_size = (uint32_t)service->shape->hidden_size,
    };
    create_metrics(service, &batch);
    sl_status status =
        dec_batch_create(options->engine, options->worker, &batch, &service->batch, err);
    if (!sl_is_ok(status))
        goto err_free;
    service->client = dec_batch_client(service->batch);
    if (service->masks)
        status = dec_compiler_create(options->loop, service->constraints, options->sequences_max,
                                     dec_admit_compiled, service, &service->compiler, err);
    if (!sl_is_ok(status))
        goto err_batch;
    status = sl_watch_create(options->loop, eng_worker_fd(service->client), EPOLLIN, on_engine,
                             service, &service->engine_watch, err);
    if (!sl_is_ok(status))
        goto err_compiler;
    service->timer = sl_timer_create(options->loop, on_timer, service);
    *out_service = service;
    return sl_ok();

err_compiler:
    dec_compiler_destroy(service->compiler);
err_batch:
    dec_batch_destroy(service->batch);
err_free:
    mdl_masks_destroy(service->masks);
    dec_constraints_destroy(service->constraints);
    sl_free(service);
    return status;
}

void dec_service_destroy(dec_service *service)
{
    if (!service)
        return;
    sl_timer_destroy(service->timer);
    sl_watch_destroy(service->engine_watch);
    dec_compiler_destroy(service->compiler);
    for (uint32_t i = 0; i < DEC_STREAMS_MAX; i++)
        sl_free(service->streams[i]);
    for (uint32_t i = 0; i < service->options.sequences_max; i++) {
        dec_slot *slot = &service->slots[i];
        if (!slot->used)
            continue;
        /* The engine thread has ended: this thread may touch the engine. */
        if (slot->job->sequence)
            eng_sequence_close(slot->job->sequence);
        slot->job->sequence = NULL;
        dec_constraint_give(slot->job->constraint);
        dec_job_destroy(slot->job);
        sl_free(slot->groups_verified);
        sl_free(slot->log);
        sl_free(slot->log_top);
    }
    dec_batch_destroy(service->batch);
    mdl_masks_destroy(service->masks);
    dec_constraints_destroy(service->constraints);
    sl_free(service);
}

rpc_handler dec_service_handler(dec_service *service)
{
    return (rpc_handler){&rpc_method_decode_serve, dec_stream_on_call, service};
}

static void tell_load(dec_service *service)
{
    for (uint32_t i = 0; i < DEC_STREAMS_MAX; i++)
        if (service->streams[i])
            service->streams[i]->load_due = true;
}

void dec_service_set_fetches_only(dec_service *service, bool fetches_only)
{
    service->fetches_only = fetches_only;
}

void dec_service_drain(dec_service *service, bool draining)
{
    service->draining = draining;
    tell_load(service);
}

void dec_service_hold(dec_service *service, bool held)
{
    service->held = held;
    tell_load(service);
}

void dec_service_set_pause(dec_service *service, sl_time_ns until, bool rests)
{
    service->pause_until = until;
    service->rests = rests;
    tell_load(service);
}

static void fill_transfer(const dec_service *service, const dec_slot *slot,
                          Sluice__V1__LedgerTransfer *out)
{
    sluice__v1__ledger_transfer__init(out);
    out->nonce_high = slot->nonce.high;
    out->nonce_low = slot->nonce.low;
    out->receives = true;
    out->first_block = slot->first_block;
    out->block_count = slot->prompt_blocks - slot->first_block;
    for (uint32_t block = slot->first_block; block < slot->prompt_blocks; block++)
        out->pieces += slot->groups_verified[block];
}

void dec_service_holders(const dec_service *service,
                         void (*fn)(void *context, const Sluice__V1__LedgerHolder *holder),
                         void *context)
{
    sl_time_ns now = sl_loop_now(service->options.loop);
    for (uint32_t i = 0; i < service->options.sequences_max; i++) {
        const dec_slot *slot = &service->slots[i];
        if (!slot->used)
            continue;
        Sluice__V1__LedgerTransfer transfer;
        Sluice__V1__LedgerHolder holder = SLUICE__V1__LEDGER_HOLDER__INIT;
        holder.id = DEC_OWNER_FIRST + i;
        holder.kind = (char *)"sequence";
        holder.request_id = (char *)slot->request_id;
        holder.epoch = slot->core.epoch;
        holder.state = (char *)dec_state_name(slot->core.state);
        sl_time_ns due = dec_sequence_due(&slot->core);
        if (due != SL_NEVER && due > now)
            holder.deadline_ms = (uint32_t)((due - now) / SL_MS_NS);
        holder.router = slot->stream ? slot->stream->owner.router : (char *)"";
        if (slot->recv) {
            fill_transfer(service, slot, &transfer);
            holder.transfer = &transfer;
        }
        fn(context, &holder);
    }
}

/* ---- other weights ---- */

static bool has_generated(const dec_slot *slot)
{
    return slot->core.state == DEC_STATE_RUNNING && slot->log_count > 0;
}

void dec_service_clear(dec_service *service)
{
    for (uint32_t i = 0; i < service->options.sequences_max; i++) {
        dec_slot *slot = &service->slots[i];
        bool waits = slot->core.state == DEC_STATE_OPENING || slot->core.state >= DEC_STATE_CLOSING;
        if (!slot->used || slot->core.cancelled || waits || has_generated(slot))
            continue;
        slot->err.code = sl_fail(&slot->err, SL_CONFLICT, "the weights are replaced").code;
        end_with(slot, SLUICE__V1__FINISH__FINISH_FAILED);
        dec_slot_cancel(service, slot);
    }
}

bool dec_service_is_clear(const dec_service *service)
{
    for (uint32_t i = 0; i < service->options.sequences_max; i++) {
        const dec_slot *slot = &service->slots[i];
        bool holds = slot->recv || slot->core.transfer_open || !has_generated(slot);
        if (slot->used && holds && slot->core.state != DEC_STATE_OPENING &&
            slot->core.state != DEC_STATE_DONE)
            return false;
    }
    return true;
}

void dec_service_give_up_all(dec_service *service)
{
    dec_batch_give_up_all(service->batch);
}

void dec_service_note_weights(dec_service *service)
{
    dec_batch_note_weights(service->batch);
}

void dec_service_tell_stamp(dec_service *service)
{
    for (uint32_t i = 0; i < DEC_STREAMS_MAX; i++)
        if (service->streams[i] && service->streams[i]->greeted)
            dec_stream_send_hello(service->streams[i]);
}

void dec_service_renew(dec_service *service)
{
    sl_assert(service->live_count == 0);
    for (uint32_t i = 0; i < DEC_STREAMS_MAX; i++)
        if (service->streams[i])
            rpc_server_call_finish(service->streams[i]->call, SL_UNAVAILABLE,
                                   "the weights were replaced: say hello again");
}

uint32_t dec_service_live(const dec_service *service)
{
    return service->live_count;
}

uint32_t dec_service_moves(const dec_service *service)
{
    return service->moves.count;
}

void dec_service_note_asked(dec_service *service, const char *request_id)
{
    dec_moves_remove(&service->moves, request_id);
}

void dec_service_load(const dec_service *service, Sluice__V1__Load *out_load)
{
    uint32_t running = 0;
    for (uint32_t i = 0; i < service->options.sequences_max; i++)
        running += service->slots[i].used && service->slots[i].core.state == DEC_STATE_RUNNING;
    out_load->slots_total = service->options.sequences_max;
    out_load->slots_free = service->draining || service->held
                               ? 0
                               : service->options.sequences_max - service->live_count;
    out_load->running = running;
    out_load->waiting = service->live_count - running;
    sl_time_ns now = sl_loop_now(service->options.loop);
    if (service->pause_until > now)
        out_load->pause_ms = (uint32_t)((service->pause_until - now) / SL_MS_NS) + 1;
    out_load->rests = service->rests;
}
