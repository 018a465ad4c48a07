/* One request on its loop: prepares it, feeds its state machine, carries the actions out.
 *
 * The machine (request.h) decides; here are the messages, calls and timers. A live request is freed
 * in rtr_live_settle, once its client has its answer, its machine is over and no pool thread has
 * it. Thread: the loop's (live_work: a pool thread). */
#include "router/front_internal.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"

#include <stdio.h>
#include <string.h>

static sl_time_ns live_now(const rtr_live *live)
{
    return sl_loop_now(live->front->loop);
}

/* ---- finding by id */

static uint32_t bucket_of(const char *id)
{
    uint32_t hash = 2166136261u; /* FNV-1a; the ids are our own */
    for (; *id; id++)
        hash = (hash ^ (unsigned char)*id) * 16777619u;
    return hash & (RTR_LIVE_BUCKETS - 1);
}

rtr_live *rtr_live_find(rtr_front *front, const char *id)
{
    rtr_live *live = front->buckets[bucket_of(id)];
    while (live && strcmp(live->id, id) != 0)
        live = live->hash_next;
    return live;
}

static void live_link(rtr_live *live)
{
    rtr_front *front = live->front;
    uint32_t bucket = bucket_of(live->id);
    live->hash_next = front->buckets[bucket];
    front->buckets[bucket] = live;
    live->next = front->lives;
    if (live->next)
        live->next->prev = live;
    front->lives = live;
    front->live_count++;
}

static void live_unlink(rtr_live *live)
{
    rtr_front *front = live->front;
    for (rtr_live **at = &front->buckets[bucket_of(live->id)]; *at; at = &(*at)->hash_next) {
        if (*at == live) {
            *at = live->hash_next;
            break;
        }
    }
    if (live->prev)
        live->prev->next = live->next;
    else
        front->lives = live->next;
    if (live->next)
        live->next->prev = live->prev;
    front->live_count--;
}

static void live_set_gauge(rtr_live *live, rtr_live_gauge gauge)
{
    const rtr_metrics *m = &live->front->shared->metrics;
    if (live->gauge == gauge)
        return;
    if (live->gauge == RTR_GAUGE_WAITING)
        sl_metric_add(m->waiting, NULL, -1);
    if (live->gauge == RTR_GAUGE_RUNNING)
        sl_metric_add(m->running, NULL, -1);
    if (gauge == RTR_GAUGE_WAITING)
        sl_metric_add(m->waiting, NULL, 1);
    if (gauge == RTR_GAUGE_RUNNING)
        sl_metric_add(m->running, NULL, 1);
    live->gauge = gauge;
}

/* ---- actions */

uint32_t rtr_live_pages(const rtr_live *live)
{
    uint64_t tokens = live->request->prompt.count + live->limits.max_tokens;
    return (uint32_t)((tokens + RTR_PAGE_TOKENS - 1) / RTR_PAGE_TOKENS);
}

/* A request that lost a node waits while too much is computed again already. One that moves brings
 * its pages. */
static bool may_recover(rtr_live *live)
{
    rtr_front *front = live->front;
    bool computes = live->core.migration && !live->core.source;
    if (!computes)
        live->paid = false;
    else if (!live->paid)
        live->paid = rtr_budget_take(
            &front->recovery, live->request->prompt.count + live->token_count, live_now(live));
    if (!computes || live->paid)
        return true;
    sl_timer_set(front->recovery_timer, rtr_budget_next(&front->recovery));
    return false;
}

static void act_place(rtr_live *live)
{
    rtr_front *front = live->front;
    rtr_place_result place = {.lack = RTR_LACK_ROOM};
    if (!may_recover(live))
        place.lack = RTR_LACK_BUDGET;
    else if (live->forks && live->lead->core.decode)
        place = (rtr_place_result){.decode = live->lead->core.decode};
    else if (live->core.decode || !rtr_queue_must_wait(&front->queue, &live->waiter))
        rtr_nodes_place(front->nodes, &live->core, rtr_live_pages(live),
                        (uint32_t)live->request->prompt.count + live->token_count,
                        front->tuning.self_prefill, &place);
    rtr_event event = {.kind = RTR_EVENT_UNPLACED, .lack = place.lack, .until = place.until};
    rtr_live_note_choice(live, &place);
    if (place.lack == RTR_LACK_NONE) {
        if (!live->core.decode)
            rtr_queue_note_placed(&front->queue, &live->waiter);
        event.kind = RTR_EVENT_PLACED;
        event.decode = place.decode;
        event.prefill = place.prefill;
        const clu_stamp *stamp = rtr_nodes_decode_stamp(front->nodes, place.decode);
        const char *decode = rtr_nodes_decode_name(front->nodes, place.decode);
        const char *prefill = rtr_nodes_prefill_name(front->nodes, place.prefill);
        snprintf(live->decode_name, sizeof live->decode_name, "%s", decode);
        snprintf(live->prefill_name, sizeof live->prefill_name, "%s",
                 place.prefill ? prefill : decode);
        snprintf(live->fingerprint, sizeof live->fingerprint, "%s", stamp->numerics_id);
        sl_debug("request %s: placed on %s, prefill on %s", live->id, live->decode_name,
                 live->prefill_name);
    }
    rtr_live_step(live, &event);
}

static void fill_sampling(const rtr_live *live, Sluice__V1__Sampling *out)
{
    const mdl_sampling *s = &live->request->sampling;
    sluice__v1__sampling__init(out);
    out->temperature = s->temperature;
    out->top_p = s->top_p;
    out->top_k = (uint32_t)s->top_k;
    out->min_p = s->min_p;
    out->presence_penalty = s->presence_penalty;
    out->frequency_penalty = s->frequency_penalty;
    out->repetition_penalty = s->repetition_penalty;
    out->seed = mdl_choice_seed(s->seed, live->index);
    out->max_tokens = (uint32_t)s->max_tokens;
    out->min_tokens = (uint32_t)s->min_tokens;
    out->n_stop_ids = (size_t)s->stop_id_count;
    out->stop_ids = (uint32_t *)s->stop_ids;
    out->ignore_eos = s->ignore_eos;
    out->want_logprobs = s->logprob_count >= 0;
    out->top_logprobs = s->logprob_count > 0 ? (uint32_t)s->logprob_count : 0;
}

/* NULL: nothing is constrained. */
static Sluice__V1__Constraint *fill_constraint(const rtr_live *live, Sluice__V1__Constraint *out)
{
    const mdl_constraint *c = &live->request->constraint;
    if (!mdl_constraint_is_set(c))
        return NULL;
    sluice__v1__constraint__init(out);
    out->kind = (uint32_t)c->kind;
    out->calls = (uint32_t)c->calls;
    out->text = (ProtobufCBinaryData){c->text.size, (uint8_t *)c->text.data};
    out->tools = (ProtobufCBinaryData){c->tools.size, (uint8_t *)c->tools.data};
    out->reasoning = c->reasoning;
    out->strict = c->strict;
    out->one_call = c->one_call;
    return out;
}

uint32_t *rtr_live_tokens(const rtr_live *live, size_t *out_count)
{
    size_t prompt = live->request->prompt.count;
    uint32_t *tokens = sl_alloc(prompt + live->token_count, sizeof *tokens, "router admit");
    memcpy(tokens, live->request->prompt.data, prompt * sizeof *tokens);
    if (live->token_count)
        memcpy(tokens + prompt, live->tokens, live->token_count * sizeof *tokens);
    *out_count = prompt + live->token_count;
    return tokens;
}

static void begin_followers(rtr_live *lead);

/* What of the prompt is to be told yet; false: nothing. The lead asks for all choices. */
static bool fill_want(const rtr_live *live, Sluice__V1__PromptWant *out_want)
{
    const rtr_prompt *prompt = live->lead == live ? rtr_answer_prompt(live->answer) : NULL;
    if (!prompt || rtr_prompt_complete(prompt))
        return false;
    rtr_prompt_fill_want(prompt, out_want);
    return true;
}

bool rtr_live_wants_rows(const rtr_live *live)
{
    Sluice__V1__PromptWant want;
    return fill_want(live, &want);
}

static void act_admit(rtr_live *live, const rtr_action *action)
{
    const mdl_sampling *s = &live->request->sampling;
    Sluice__V1__LogitBias *biases = sl_alloc((size_t)s->bias_count, sizeof *biases, "router admit");
    Sluice__V1__LogitBias **pointers =
        sl_alloc((size_t)s->bias_count, sizeof *pointers, "router admit");
    for (int32_t i = 0; i < s->bias_count; i++) {
        sluice__v1__logit_bias__init(&biases[i]);
        biases[i].id = (uint32_t)s->bias[i].id;
        biases[i].bias = s->bias[i].bias;
        pointers[i] = &biases[i];
    }
    Sluice__V1__Sampling sampling;
    fill_sampling(live, &sampling);
    sampling.n_logit_bias = (size_t)s->bias_count;
    sampling.logit_bias = pointers;
    Sluice__V1__Constraint constraint;
    Sluice__V1__Admit admit = SLUICE__V1__ADMIT__INIT;
    admit.constraint = fill_constraint(live, &constraint);
    admit.request_id = live->id;
    admit.epoch = action->epoch;
    admit.tokens = rtr_live_tokens(live, &admit.n_tokens);
    admit.prompt_count = (uint32_t)live->request->prompt.count;
    admit.sampling = &sampling;
    admit.prefill_deadline_ms = live->front->shared->prefill_deadline_ms;
    admit.self_prefill = live->core.prefill == 0;
    admit.cache_space = live->request->cache_space;
    admit.priority = live->request->priority;
    Sluice__V1__Handout handout = SLUICE__V1__HANDOUT__INIT;
    handout.routing = live->request->want_routing;
    handout.sampling_mask = live->request->want_mask;
    admit.handout = &handout;
    Sluice__V1__PromptWant want;
    if (fill_want(live, &want))
        admit.prompt_want = &want;
    if (live->forks)
        admit.fork_of = live->lead->id;
    live->forks = false; /* refused, it is a sequence like any other */
    rtr_live_note_admit(live, action->node);
    sl_status status =
        rtr_nodes_admit(live->front->nodes, action->node, &admit, rtr_live_pages(live));
    sl_free(admit.tokens);
    sl_free(pointers);
    sl_free(biases);
    if (!sl_is_ok(status)) { /* not from inside this step: the timer tells */
        live->admit_error = status.code;
        sl_debug("request %s: not sent to %s: %s", live->id, live->decode_name,
                 sl_code_name(status.code));
    } else if (admit.self_prefill) { /* no ticket will tell that it took it */
        begin_followers(live);
    }
}

static void act_attach(rtr_live *live, const rtr_action *action)
{
    Sluice__V1__Attach attach = SLUICE__V1__ATTACH__INIT;
    Sluice__V1__PromptWant want;
    attach.request_id = live->id;
    attach.epoch = action->epoch;
    attach.next_index = live->core.token_count;
    attach.next_row = fill_want(live, &want) ? want.first : UINT32_MAX;
    sl_info("request %s: attached to %s again at token %u", live->id, live->decode_name,
            attach.next_index);
    sl_metric_add(live->front->shared->metrics.attaches, NULL, 1);
    rtr_nodes_attach(live->front->nodes, action->node, &attach);
}

static void act_extend(rtr_live *live, const rtr_action *action)
{
    uint64_t span_ms = action->span_ns / SL_MS_NS;
    Sluice__V1__Extend extend = SLUICE__V1__EXTEND__INIT;
    extend.request_id = live->id;
    extend.epoch = action->epoch;
    extend.prefill_deadline_ms = span_ms < UINT32_MAX ? (uint32_t)span_ms : UINT32_MAX;
    rtr_nodes_extend(live->front->nodes, action->node, &extend);
}

static void on_prefill_progress(void *context)
{
    rtr_live *live = context;
    rtr_event event = {.kind = RTR_EVENT_PREFILL_PROGRESS, .epoch = live->core.epoch};
    rtr_live_step(live, &event);
}

static void note_migrated(rtr_live *live, uint32_t computed)
{
    sl_metric *tokens = live->front->shared->metrics.migrated_tokens;
    if (live->migrated && computed <= live->prefill_tokens) {
        sl_metric_add(tokens, "computed", computed);
        sl_metric_add(tokens, "kept", live->prefill_tokens - computed);
    }
    live->migrated = false;
}

static void on_prefill_done(void *context, const Sluice__V1__PrefillDone *done)
{
    rtr_live *live = context;
    uint32_t prompt = (uint32_t)live->request->prompt.count;
    live->prefill_call = NULL;
    note_migrated(live, done->tokens_computed);
    /* The first tokens may be here already; a prefill with some of them in it says nothing. */
    if (live->prefill_tokens == prompt && done->tokens_computed < prompt &&
        prompt - done->tokens_computed > live->cached_tokens)
        live->cached_tokens = prompt - done->tokens_computed;
    rtr_live_note_prefill(live);
    sl_trace_note(live->front->trace, live->id, "prefilled",
                  "by %s: %u tokens computed in %.1f ms, %llu bytes, last piece %.1f ms later",
                  live->prefill_name, done->tokens_computed, (double)done->compute_us / 1e3,
                  (unsigned long long)done->bytes_sent, (double)done->tail_us / 1e3);
    rtr_event event = {.kind = RTR_EVENT_PREFILL_DONE, .epoch = live->core.epoch};
    rtr_live_step(live, &event);
}

static void on_prefill_failed(void *context, sl_code code, const char *text)
{
    rtr_live *live = context;
    live->prefill_call = NULL;
    live->prefill_by = 0;
    sl_info("request %s: prefill on %s failed: %s", live->id, live->prefill_name, text);
    rtr_event event = {
        .kind = RTR_EVENT_PREFILL_FAILED, .epoch = live->core.epoch, .code = code, .text = text};
    rtr_live_step(live, &event);
}

static void on_prefill_rows(void *context, const Sluice__V1__PromptRows *rows)
{
    rtr_live *live = context;
    live->depth++;
    on_prefill_progress(live);
    rtr_live_take_rows(live, rows);
    live->depth--;
    rtr_live_settle(live);
}

static const rtr_prefill_events PREFILL_EVENTS = {on_prefill_progress, on_prefill_rows,
                                                  on_prefill_done, on_prefill_failed};

void rtr_live_run_prefill(rtr_live *live, uint64_t node, uint32_t epoch, Sluice__V1__Ticket *ticket)
{
    sl_err err;
    sl_assert(!live->prefill_call);
    Sluice__V1__PrefillRequest request = SLUICE__V1__PREFILL_REQUEST__INIT;
    request.request_id = live->id;
    request.epoch = epoch;
    request.ticket = ticket;
    request.cache_space = live->request->cache_space;
    request.priority = live->request->priority;
    request.offer = node == live->core.source;
    live->prefill_tokens = (uint32_t)live->request->prompt.count + live->token_count;
    request.last_routing = live->request->want_routing;
    Sluice__V1__PromptWant want;
    if (fill_want(live, &want))
        request.prompt_want = &want;
    request.tokens = rtr_live_tokens(live, &request.n_tokens);
    sl_status status = rtr_nodes_run_prefill(live->front->nodes, node, &request, &PREFILL_EVENTS,
                                             live, &live->prefill_call, &err);
    sl_free(request.tokens);
    if (sl_is_ok(status)) {
        live->prefill_by = rtr_nodes_incarnation(live->front->nodes, node);
        return;
    }
    rtr_event event = {
        .kind = RTR_EVENT_PREFILL_FAILED, .epoch = epoch, .code = status.code, .text = err.text};
    rtr_live_step(live, &event);
}

static void act_run_prefill(rtr_live *live, const rtr_action *action)
{
    sl_assert(live->ticket && !live->prefill_call && !live->pull);
    begin_followers(live); /* before the prompt can be complete there */
    if (!rtr_live_pull(live, action))
        rtr_live_run_prefill(live, action->node, action->epoch, live->ticket);
}

static void act_cancel_prefill(rtr_live *live)
{
    rtr_live_pull_drop(live);
    rtr_prefill_drop(live->prefill_call);
    live->prefill_call = NULL;
    live->prefill_by = 0;
}

static void act_fail(rtr_live *live, const rtr_action *action)
{
    rtr_api_error error;
    rtr_api_error_set(&error, action->code, action->text);
    if (action->code != SL_CANCELLED)
        sl_info("request %s: failed: %s", live->id, action->text);
    rtr_live_fail(live, &error);
}

static void live_act(rtr_live *live, const rtr_action *action)
{
    rtr_front *front = live->front;
    if (action->kind != RTR_ACTION_DELIVER)
        rtr_live_note_action(live, action);
    switch (action->kind) {
    case RTR_ACTION_PLACE:
        act_place(live);
        break;
    case RTR_ACTION_ADMIT:
        act_admit(live, action);
        break;
    case RTR_ACTION_RUN_PREFILL:
        act_run_prefill(live, action);
        break;
    case RTR_ACTION_ATTACH:
        act_attach(live, action);
        break;
    case RTR_ACTION_EXTEND:
        act_extend(live, action);
        break;
    case RTR_ACTION_CANCEL_DECODE:
        rtr_nodes_cancel(front->nodes, action->node, live->id, rtr_state_name(live->core.state),
                         action->moved);
        break;
    case RTR_ACTION_CANCEL_PREFILL:
        act_cancel_prefill(live);
        break;
    case RTR_ACTION_DELIVER:
        if (live->run->epoch == live->core.epoch) /* the first token may come before the end */
            rtr_live_note_prefill(live);
        rtr_live_take_tokens(live, action->skip, action->count);
        rtr_live_note_action(live, action);
        break;
    case RTR_ACTION_MIGRATED:
        live->migrated = true;
        sl_metric_add(front->shared->metrics.migrations, action->text, 1);
        sl_info("request %s: goes on at token %u on %s (%s)", live->id, live->token_count,
                live->decode_name, action->text);
        break;
    case RTR_ACTION_FINISH:
        rtr_live_note_answer(live);
        live->finished = true;
        live->finish = action->finish == RTR_FINISH_LENGTH ? MDL_FINISH_LENGTH : MDL_FINISH_STOP;
        break;
    case RTR_ACTION_FAIL:
        act_fail(live, action);
        break;
    }
}

/* ---- stepping */

static bool live_is_over(const rtr_live *live)
{
    if (live->preparing || (live->started && !rtr_request_over(&live->core)))
        return false;
    if (live->lead != live)
        return live->answered || !live->lead->exchange;
    return !live->exchange && !live->followers;
}

/* Nobody waits for it any more. */
static bool live_is_orphan(const rtr_live *live)
{
    return live->started && !live->lead->exchange && !rtr_request_over(&live->core);
}

void rtr_live_wake_all(rtr_live *lead)
{
    sl_timer_set(lead->timer, live_now(lead));
    for (rtr_live *live = lead->followers; live; live = live->follower_next)
        sl_timer_set(live->timer, live_now(live));
}

void rtr_live_settle(rtr_live *live)
{
    if (live->depth > 0)
        return;
    if (live_is_over(live)) {
        rtr_live_destroy(live);
        return;
    }
    bool over = live->started && rtr_request_over(&live->core);
    bool waits = !live->started || live->core.state == RTR_STATE_QUEUED;
    live->waiter.lacks_room = waits && live->started && live->core.lack == RTR_LACK_ROOM &&
                              live->core.refused_decode_count == 0;
    if (waits)
        rtr_queue_insert(&live->front->queue, &live->waiter);
    else
        rtr_queue_remove(&live->front->queue, &live->waiter);
    live_set_gauge(live, over ? RTR_GAUGE_NONE : waits ? RTR_GAUGE_WAITING : RTR_GAUGE_RUNNING);
    sl_time_ns at = live->started ? rtr_request_deadline(&live->core) : SL_NEVER;
    bool now = live->admit_error || live_is_orphan(live);
    sl_timer_set(live->timer, now ? live_now(live) : at);
}

void rtr_live_step(rtr_live *live, const rtr_event *event)
{
    rtr_actions actions;
    live->depth++;
    rtr_live_note_event(live, event);
    rtr_request_step(&live->core, event, live_now(live), &actions);
    if (!live->admitted && live->core.last_granted) {
        live->admitted = true;
        if (live->lead == live)
            sl_metric_observe(live->front->shared->metrics.queue_seconds,
                              (double)(live_now(live) - live->arrived_at) / 1e9);
    }
    if (actions.blame.decode || actions.blame.prefill)
        rtr_nodes_note_blame(live->front->nodes, &actions.blame);
    for (uint32_t i = 0; i < actions.count; i++)
        live_act(live, &actions.at[i]);
    if (live->depth == 1)
        rtr_live_deliver(live);
    live->depth--;
    rtr_live_settle(live);
}

static void live_timer(void *context, sl_time_ns now)
{
    rtr_live *live = context;
    rtr_event event = {.kind = RTR_EVENT_TIMER};
    if (live_is_over(live)) {
        rtr_live_settle(live);
        return;
    }
    if (!live->started)
        return;
    event.until = rtr_nodes_rested_until(live->front->nodes, live->core.decode, live->core.prefill);
    if (live_is_orphan(live)) {
        event.kind = RTR_EVENT_CLIENT_GONE;
    } else if (live->admit_error) {
        event = (rtr_event){.kind = RTR_EVENT_REFUSED,
                            .decode = live->core.decode,
                            .epoch = live->core.epoch,
                            .code = live->admit_error,
                            .text = "the decode node's stream takes no more messages"};
        live->admit_error = SL_OK;
    }
    rtr_live_step(live, &event);
}

/* ---- beginning */

static void live_begin(rtr_live *live)
{
    live->limits = live->front->tuning.limits;
    live->limits.max_tokens = (uint32_t)live->request->sampling.max_tokens;
    live->limits.prompt_rows = live->lead == live && rtr_answer_prompt(live->answer);
    rtr_request_init(&live->core, &live->limits);
    live->started = true;
    rtr_event event = {.kind = RTR_EVENT_SUBMIT};
    rtr_live_step(live, &event);
}

static rtr_live *live_create(rtr_front *front)
{
    rtr_live *live = sl_alloc(1, sizeof *live, "router request");
    live->front = front;
    live->lead = live;
    live->timer = sl_timer_create(front->loop, live_timer, live);
    return live;
}

/* Once: when the lead is refused later on, each looks for a place of its own; those that ended
 * meanwhile have answered. */
static void begin_followers(rtr_live *lead)
{
    if (lead->lead != lead || lead->followers_begun || lead->token_count || lead->answered)
        return;
    lead->followers_begun = true;
    for (uint32_t i = lead->request->choice_count; i-- > 1;) {
        rtr_live *live = live_create(lead->front);
        snprintf(live->id, sizeof live->id, "%.18s-%u", lead->id, i);
        live->lead = lead;
        live->index = i;
        live->kind = lead->kind;
        live->request = lead->request;
        live->arrived_at = live->waiter.since = lead->arrived_at;
        live->waiter.priority = lead->waiter.priority;
        live->forks = true;
        live->follower_next = lead->followers;
        lead->followers = live;
        live_link(live);
    }
    for (rtr_live *live = lead->followers, *next; live; live = next) {
        next = live->follower_next;
        live_begin(live);
    }
}

/* ---- preparing */

/* At the door only the first choice was counted. */
static bool choices_fit(rtr_live *live)
{
    const rtr_front *front = live->front;
    uint32_t more = live->request->choice_count - 1;
    if (more == 0 || front->queue.count + more <= front->tuning.queue_max)
        return true;
    rtr_api_error_set(&live->error, SL_FULL,
                      "too many requests are waiting for so many choices; try again later");
    return false;
}

static void live_prepared(rtr_live *live)
{
    const rtr_shared *shared = live->front->shared;
    sl_err err;
    if (live->front->aborted) {
        live->prepared_ok = false;
        rtr_api_error_set(&live->error, SL_UNAVAILABLE, "the router is shutting down");
    }
    if (!live->prepared_ok) {
        rtr_live_fail(live, &live->error);
        rtr_live_settle(live);
        return;
    }
    if (live->kind == RTR_API_TOKENIZE || live->kind == RTR_API_DETOKENIZE) {
        rtr_live_answer_tokens(live);
        rtr_live_settle(live);
        return;
    }
    uint64_t cache_tokens = rtr_nodes_cache_tokens(live->front->nodes);
    if (cache_tokens > 0)
        rtr_api_fit_default(live->request, cache_tokens);
    if (cache_tokens > 0 &&
        !rtr_api_check_fits(live->request, cache_tokens, live->context_max, &live->error)) {
        rtr_live_fail(live, &live->error);
        rtr_live_settle(live);
        return;
    }
    rtr_answer_options options = {
        .request = live->request,
        .tokenizer = shared->api.tokenizer,
        .shape = shared->api.shape,
        .request_id = live->id,
        .model = shared->api.model_name,
        .created = live->created,
    };
    if (!sl_is_ok(rtr_answer_create(&options, &live->answer, &err))) {
        rtr_api_error_set(&live->error, err.code, err.text);
        rtr_live_fail(live, &live->error);
        rtr_live_settle(live);
        return;
    }
    if (!choices_fit(live)) {
        rtr_live_fail(live, &live->error);
        rtr_live_settle(live);
        return;
    }
    sl_metric_add(shared->metrics.prompt_tokens, NULL, (double)live->request->prompt.count);
    if (live->request->chat)
        sl_metric_add(shared->metrics.calls_without_reasoning, NULL,
                      (double)mdl_chat_calls_without_reasoning(live->request->chat));
    rtr_queue_remove(&live->front->queue, &live->waiter); /* to its place by priority */
    live->waiter.priority = live->request->priority;
    sl_trace_note(live->front->trace, live->id, "prepared", "%zu tokens, at most %d to come",
                  live->request->prompt.count, live->request->sampling.max_tokens);
    rtr_live_keep_alive(live);
    live_begin(live);
}

static void live_work(rtr_pool_job *job)
{
    rtr_live *live = (rtr_live *)job;
    live->prepared_ok =
        rtr_api_prepare(&live->front->shared->api, live->kind, live->body, live->body_size,
                        live->context_max, &live->request, &live->error);
}

static void live_work_done(rtr_pool_job *job)
{
    rtr_live *live = (rtr_live *)job;
    live->preparing = false;
    live->front->preparing_count--;
    sl_free(live->body);
    live->body = NULL;
    if (live->exchange)
        live_prepared(live);
    else
        rtr_live_settle(live); /* the client did not wait */
}

static void live_prepare(rtr_live *live, rtr_http_exchange *exchange)
{
    const rtr_shared *shared = live->front->shared;
    sl_span body = rtr_http_exchange_body(exchange);
    if (body.size <= shared->inline_bytes && !rtr_api_may_be_slow(body.data, body.size)) {
        live->prepared_ok = rtr_api_prepare(&shared->api, live->kind, body.data, body.size,
                                            live->context_max, &live->request, &live->error);
        rtr_http_exchange_drop_body(exchange);
        live_prepared(live);
        return;
    }
    live->body = rtr_http_exchange_take_body(exchange, &live->body_size);
    live->job.loop = live->front->loop;
    live->job.work = live_work;
    live->job.done = live_work_done;
    if (!rtr_pool_submit(shared->pool, &live->job)) {
        rtr_api_error_set(&live->error, SL_FULL, "too many long prompts are being encoded");
        rtr_live_fail(live, &live->error);
        rtr_live_settle(live);
        return;
    }
    live->preparing = true;
    live->front->preparing_count++;
    rtr_live_settle(live);
}

static uint32_t context_max(const rtr_front *front)
{
    uint32_t nodes = rtr_nodes_context_max(front->nodes);
    return nodes && nodes < front->shared->context_max ? nodes : front->shared->context_max;
}

void rtr_live_start(rtr_front *front, rtr_http_exchange *exchange, rtr_api_kind kind)
{
    rtr_live *live = live_create(front);
    live->exchange = exchange;
    live->kind = kind;
    live->arrived_at = live->waiter.since = sl_loop_now(front->loop);
    live->created = sl_wall_ns() / SL_S_NS;
    live->context_max = context_max(front);
    snprintf(live->id, sizeof live->id, "r-%016llx", (unsigned long long)front->next_id++);
    live_link(live);
    rtr_live_claim(live);
    sl_trace_note(front->trace, live->id, "arrived", "%u requests are here", front->live_count);
    live_prepare(live, exchange);
}

/* The lead goes last: it is looked at again when it has no followers any more. */
static void leave_lead(rtr_live *live)
{
    rtr_live *lead = live->lead;
    if (lead == live) {
        sl_assert(!live->followers);
        return;
    }
    for (rtr_live **at = &lead->followers; *at; at = &(*at)->follower_next) {
        if (*at == live) {
            *at = live->follower_next;
            break;
        }
    }
    if (!lead->followers && !lead->exchange)
        sl_timer_set(lead->timer, live_now(lead));
}

void rtr_live_destroy(rtr_live *live)
{
    sl_assert(!live->preparing);
    rtr_queue_remove(&live->front->queue, &live->waiter);
    live_set_gauge(live, RTR_GAUGE_NONE);
    act_cancel_prefill(live);
    sl_timer_destroy(live->timer);
    sl_timer_destroy(live->silence);
    leave_lead(live);
    if (live->lead->answer)
        rtr_metrics_note_output(&live->front->shared->metrics,
                                rtr_answer_counts(live->lead->answer, live->index));
    if (live->lead == live) {
        rtr_answer_destroy(live->answer); /* borrows from the request */
        rtr_api_request_destroy(live->request);
    }
    sl_free(live->body);
    sl_free(live->tokens);
    sl_free(live->logprobs);
    live_unlink(live);
    sl_free(live);
}
