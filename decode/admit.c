/* Admission: checks what a router asks for, takes a slot, prepares the job. Refuses early and says
 * why.
 *
 * Thread: control loop. Allocates per request (control plane); the cache's pages are bound by the
 * engine thread afterwards. */
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "decode/internal.h"

static sl_status sampling_from_wire(const Sluice__V1__Sampling *wire, int32_t vocab_size,
                                    mdl_sampling *out_sampling, sl_err *err)
{
    mdl_sampling sampling;
    mdl_sampling_init(&sampling);
    if (wire->n_stop_ids > MDL_STOP_IDS_MAX || wire->n_logit_bias > MDL_LOGIT_BIAS_MAX)
        return sl_fail(err, SL_TOO_LARGE, "sampling: more than %d stop ids or %d biases",
                       MDL_STOP_IDS_MAX, MDL_LOGIT_BIAS_MAX);
    sampling.temperature = wire->temperature;
    sampling.top_p = wire->top_p;
    sampling.min_p = wire->min_p;
    sampling.top_k = (int32_t)wire->top_k;
    sampling.presence_penalty = wire->presence_penalty;
    sampling.frequency_penalty = wire->frequency_penalty;
    sampling.repetition_penalty = wire->repetition_penalty;
    sampling.logprob_count = wire->want_logprobs ? (int32_t)wire->top_logprobs : -1;
    sampling.seed = wire->seed;
    sampling.seed_given = true;
    sampling.ignore_eos = wire->ignore_eos;
    sampling.max_tokens = (int32_t)wire->max_tokens;
    sampling.min_tokens = (int32_t)wire->min_tokens;
    sampling.stop_id_count = (int32_t)wire->n_stop_ids;
    for (size_t i = 0; i < wire->n_stop_ids; i++)
        sampling.stop_ids[i] = (int32_t)wire->stop_ids[i];
    sampling.bias_count = (int32_t)wire->n_logit_bias;
    for (size_t i = 0; i < wire->n_logit_bias; i++)
        sampling.bias[i] =
            (mdl_logit_bias){(int32_t)wire->logit_bias[i]->id, wire->logit_bias[i]->bias};
    SL_TRY(mdl_sampling_check(&sampling, vocab_size, err));
    *out_sampling = sampling;
    return sl_ok();
}

static dec_handout_options handout_options(const dec_service *service,
                                           const Sluice__V1__Admit *admit, uint32_t capacity)
{
    const Sluice__V1__Handout *wire = admit->handout;
    return (dec_handout_options){
        .routing = wire && wire->routing ? eng_engine_routing(service->options.engine) : NULL,
        .mask_vocab = wire && wire->sampling_mask ? (uint32_t)service->shape->vocab_size : 0,
        .token_capacity = capacity,
    };
}

static eng_prompt_want prompt_want(const Sluice__V1__Admit *admit)
{
    const Sluice__V1__PromptWant *wire = admit->prompt_want;
    if (!wire)
        return (eng_prompt_want){0};
    return (eng_prompt_want){wire->first, wire->end, wire->routing,
                             wire->logprobs ? (int32_t)wire->top_logprobs : -1};
}

static sl_status check(const dec_service *service, const Sluice__V1__Admit *admit,
                       mdl_sampling *out_sampling, sl_err *err)
{
    if (service->draining)
        return sl_fail(err, SL_UNAVAILABLE, "node %s is draining", service->options.name);
    if (service->fetches_only && !admit->fetch_only)
        return sl_fail(err, SL_UNAVAILABLE, "node %s generates nothing", service->options.name);
    if (admit->fetch_only && (!service->options.prefix_cache || admit->self_prefill ||
                              admit->n_tokens % ENG_PAGE_TOKENS != 0))
        return sl_fail(err, SL_UNSUPPORTED, "node %s keeps no such pages", service->options.name);
    if (service->held)
        return sl_fail(err, SL_FULL, "node %s takes nothing new now", service->options.name);
    size_t id_size = strlen(admit->request_id);
    if (id_size == 0 || id_size >= DEC_REQUEST_ID_MAX)
        return sl_fail(err, SL_INVALID, "request_id must have 1 to %u bytes",
                       DEC_REQUEST_ID_MAX - 1);
    if (!admit->sampling)
        return sl_fail(err, SL_INVALID, "sampling is missing");
    if (admit->n_tokens == 0 || admit->prompt_count == 0 || admit->prompt_count > admit->n_tokens)
        return sl_fail(err, SL_INVALID, "%zu tokens with a prompt of %u", admit->n_tokens,
                       admit->prompt_count);
    if (admit->n_tokens >= service->options.context_max)
        return sl_fail(err, SL_TOO_LARGE, "%zu tokens: this node's window is %u", admit->n_tokens,
                       service->options.context_max);
    for (size_t i = 0; i < admit->n_tokens; i++)
        if (admit->tokens[i] >= (uint32_t)service->shape->vocab_size)
            return sl_fail(err, SL_INVALID, "token %u at %zu is not in the vocabulary",
                           admit->tokens[i], i);
    SL_TRY(sampling_from_wire(admit->sampling, (int32_t)service->shape->vocab_size, out_sampling,
                              err));
    if (out_sampling->max_tokens <= 0 ||
        admit->n_tokens - admit->prompt_count >= (size_t)out_sampling->max_tokens)
        return sl_fail(err, SL_INVALID, "max_tokens %d with %zu tokens generated already",
                       out_sampling->max_tokens, admit->n_tokens - admit->prompt_count);
    dec_handout_options handout =
        handout_options(service, admit, (uint32_t)out_sampling->max_tokens);
    SL_TRY(dec_handout_check(&handout, err));
    eng_prompt_want want = prompt_want(admit);
    if (!admit->prompt_want)
        return sl_ok();
    return eng_prompt_want_check(&want, (uint32_t)admit->n_tokens,
                                 eng_engine_routing(service->options.engine), err);
}

/* The job whose prompt is to be copied: the same tokens, not at its end yet. */
static sl_status find_source(dec_service *service, const dec_stream *stream,
                             const Sluice__V1__Admit *admit, const dec_job **out_source,
                             sl_err *err)
{
    const dec_slot *slot = dec_slot_find(service, admit->fork_of);
    if (!slot || slot->stream != stream || slot->core.cancelled ||
        slot->core.state >= DEC_STATE_CLOSING)
        return sl_fail(err, SL_UNAVAILABLE,
                       "request %s, whose prompt was to be copied, is not here", admit->fork_of);
    bool routing = admit->handout && admit->handout->routing;
    if (!admit->self_prefill || slot->token_count != admit->n_tokens ||
        slot->job->cache_space != admit->cache_space ||
        routing != (slot->job->handout && slot->job->handout->o.routing) ||
        memcmp(slot->job->tokens, admit->tokens, admit->n_tokens * sizeof(admit->tokens[0])) != 0)
        return sl_fail(err, SL_INVALID, "request %s has another prompt, so it cannot be copied",
                       admit->fork_of);
    *out_source = slot->job;
    return sl_ok();
}

static dec_slot *take_slot(dec_service *service)
{
    for (uint32_t i = 0; i < service->options.sequences_max; i++)
        if (!service->slots[i].used)
            return &service->slots[i];
    return NULL;
}

static void fill_slot(dec_service *service, dec_slot *slot, dec_stream *stream,
                      const Sluice__V1__Admit *admit, const mdl_sampling *sampling)
{
    uint64_t capacity = (uint64_t)admit->prompt_count + (uint64_t)sampling->max_tokens;
    if (capacity > service->options.context_max)
        capacity = service->options.context_max;
    if (admit->fetch_only)
        capacity = admit->n_tokens;
    *slot = (dec_slot){.used = true, .stream = stream, .owner = stream->owner};
    memcpy(slot->request_id, admit->request_id, strlen(admit->request_id) + 1);
    slot->job = dec_job_create((uint32_t)admit->n_tokens, (uint32_t)capacity,
                               (uint32_t)service->shape->hidden_size);
    memcpy(slot->job->tokens, admit->tokens, admit->n_tokens * sizeof(admit->tokens[0]));
    slot->job->slot = (uint32_t)(slot - service->slots);
    slot->job->prompt_count = admit->prompt_count;
    slot->job->cache_space = admit->cache_space;
    slot->job->fetches = !admit->self_prefill;
    slot->job->fetch_only = admit->fetch_only;
    slot->job->rank.priority = admit->priority;
    slot->job->sampling = *sampling;
    slot->token_count = (uint32_t)admit->n_tokens;
    slot->prompt_blocks = eng_pages_of(slot->token_count);
    slot->groups_verified = sl_alloc(slot->prompt_blocks, sizeof(uint16_t), "decode slot blocks");
    slot->first_index = (uint32_t)admit->n_tokens - admit->prompt_count;
    slot->log_capacity = (uint32_t)capacity - slot->token_count;
    dec_handout_options handout = handout_options(service, admit, slot->log_capacity);
    if (handout.routing || handout.mask_vocab)
        slot->job->handout = dec_handout_create(&handout);
    slot->log = sl_alloc(slot->log_capacity, sizeof(*slot->log), "decode token log");
    if (sampling->logprob_count > 0)
        slot->log_top = sl_alloc((size_t)slot->log_capacity * (size_t)sampling->logprob_count,
                                 sizeof(*slot->log_top), "decode token log");
    eng_prompt_want want = prompt_want(admit);
    if (admit->prompt_want)
        slot->job->prompt_rows =
            eng_prompt_rows_create(&want, eng_engine_routing(service->options.engine));
    slot->rows_sent = want.first;
    slot->admitted_at = sl_loop_now(service->options.loop);
    dec_sequence_init(&slot->core, admit->epoch, admit->self_prefill,
                      (uint64_t)admit->prefill_deadline_ms * SL_MS_NS);
}

/* The admission's constraint; *out_waits: it must be compiled first, and the admission comes again
 * when it is. */
static sl_status take_constraint(dec_service *service, dec_stream *stream,
                                 const Sluice__V1__Admit *admit, dec_constraint **out_constraint,
                                 bool *out_waits, sl_err *err)
{
    if (!admit->constraint)
        return sl_ok();
    if (!service->masks)
        return sl_fail(err, SL_UNSUPPORTED, "constraint: this node's model has no tokenizer");
    if (admit->sampling->ignore_eos)
        return sl_fail(err, SL_INVALID,
                       "ignore_eos: a constrained answer ends where its form does");
    *out_constraint = dec_constraint_find(service->constraints, admit->constraint);
    *out_waits = !*out_constraint;
    return *out_waits ? dec_compiler_wait(service->compiler, stream, admit, err) : sl_ok();
}

static void refuse(dec_service *service, dec_stream *stream, const Sluice__V1__Admit *admit,
                   sl_status status, const sl_err *err)
{
    sl_metric_add(service->refused, sl_code_name(status.code), 1);
    sl_trace_note(service->options.trace, admit->request_id, "refused", "%s", err->text);
    dec_stream_send_refused(stream, admit->request_id, admit->epoch, err);
}

static bool same_tokens(const dec_slot *slot, const Sluice__V1__Admit *admit)
{
    return slot->token_count == admit->n_tokens &&
           memcmp(slot->job->tokens, admit->tokens, admit->n_tokens * sizeof(admit->tokens[0])) ==
               0;
}

/* An admission on another stream than the request's: its owner's new one, or none of its business.
 */
static bool take_over(dec_service *service, dec_stream *stream, dec_slot *slot,
                      const Sluice__V1__Admit *admit)
{
    if (slot->stream || !dec_sequence_is_parked(&slot->core) ||
        !dec_owner_equal(&slot->owner, &stream->owner))
        return false;
    bool waits = slot->core.state < DEC_STATE_RUNNING;
    bool known = admit->epoch == slot->core.epoch || (admit->epoch > slot->core.epoch && waits);
    uint32_t row = admit->prompt_want ? admit->prompt_want->first : 0;
    if (known && same_tokens(slot, admit) &&
        sl_is_ok(dec_slot_attach(service, slot, stream, slot->first_index, row)))
        return true;
    dec_slot_cancel(service, slot); /* the router has gone on elsewhere meanwhile */
    return false;
}

static void admit_again(dec_service *service, dec_stream *stream, dec_slot *slot,
                        const Sluice__V1__Admit *admit)
{
    sl_err err;
    if (slot->stream != stream && !take_over(service, stream, slot, admit)) {
        refuse(service, stream, admit,
               sl_fail(&err, SL_EXISTS, "request %s is still being closed here", admit->request_id),
               &err);
        return;
    }
    uint32_t old_epoch = slot->core.epoch;
    if (admit->epoch == old_epoch && !slot->core.cancelled && same_tokens(slot, admit)) {
        if (slot->core.state == DEC_STATE_FETCHING)
            dec_send_ticket(service, slot);
        return; /* other answers come, or have come, on their own */
    }
    dec_event event = {.kind = DEC_EVENT_ADMIT,
                       .epoch = admit->epoch,
                       .self_prefill = admit->self_prefill,
                       .prefill_ns = (uint64_t)admit->prefill_deadline_ms * SL_MS_NS};
    dec_slot_event(service, slot, &event);
    if (slot->core.epoch == old_epoch)
        refuse(service, stream, admit,
               sl_fail(&err, SL_CONFLICT, "request %s is %s in epoch %u", admit->request_id,
                       dec_state_name(slot->core.state), old_epoch),
               &err);
}

/* The slot is filled; the engine must bind its pages next. */
static sl_status open_slot(dec_service *service, dec_slot *slot, sl_err *err)
{
    dec_command command = {DEC_COMMAND_OPEN, slot->job};
    service->live_count++;
    sl_trace_note(service->options.trace, slot->request_id, "admitted",
                  "epoch %u: %u tokens, %u others are here", slot->core.epoch, slot->token_count,
                  service->live_count - 1);
    if (eng_worker_post(service->client, &command))
        return sl_ok();
    dec_event failed = {.kind = DEC_EVENT_OPEN_FAILED, .code = SL_FULL};
    (void)dec_sequence_handle(&slot->core, &failed, 0);
    slot->stream = NULL;
    dec_slot_settle(service, slot);
    return sl_fail(err, SL_FULL, "the engine's inbox is full");
}

void dec_admit(dec_service *service, dec_stream *stream, const Sluice__V1__Admit *admit)
{
    sl_err err;
    mdl_sampling sampling;
    dec_slot *slot = dec_slot_find(service, admit->request_id);
    if (slot) {
        admit_again(service, stream, slot, admit);
        return;
    }
    const dec_job *source = NULL;
    dec_constraint *constraint = NULL;
    bool waits = false;
    sl_status status = check(service, admit, &sampling, &err);
    if (sl_is_ok(status) && !(slot = take_slot(service)))
        status = sl_fail(&err, SL_FULL, "all %u slots are taken", service->options.sequences_max);
    if (sl_is_ok(status))
        status = take_constraint(service, stream, admit, &constraint, &waits, &err);
    if (sl_is_ok(status) && waits)
        return;
    if (sl_is_ok(status) && admit->fork_of[0])
        status = find_source(service, stream, admit, &source, &err);
    if (sl_is_ok(status)) {
        fill_slot(service, slot, stream, admit, &sampling);
        slot->job->source = source;
        slot->job->constraint = constraint;
        if (constraint)
            slot->job->cursor.matcher = dec_constraint_matcher(constraint);
        status = open_slot(service, slot, &err);
    } else {
        dec_constraint_give(constraint);
    }
    if (sl_is_ok(status))
        sl_metric_add(service->admitted, NULL, 1);
    else
        refuse(service, stream, admit, status, &err);
}

void dec_admit_compiled(void *context, void *stream, const Sluice__V1__Admit *admit,
                        sl_status status, const sl_err *err)
{
    if (sl_is_ok(status))
        dec_admit(context, stream, admit);
    else
        refuse(context, stream, admit, status, err);
}
