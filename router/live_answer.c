/* The client's side of a live request: tokens in store, what of them was given, headers, errors.
 *
 * A slow client never holds a decode rank: tokens are kept as numbers here and become text only as
 * fast as the client reads. Thread: the loop's. */
#include "router/front_internal.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"
#include "router/answer_json.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char KEEP_ALIVE[] = ": keep-alive\n\n"; /* a comment: clients skip it */

/* The caller holds the lead. */
static void deliver_all(rtr_live *lead)
{
    rtr_live_deliver(lead);
    for (rtr_live *live = lead->followers, *next; live; live = next) {
        next = live->follower_next;
        live->depth++;
        rtr_live_deliver(live);
        live->depth--;
        rtr_live_settle(live);
    }
}

/* ---- tokens in */

static void reserve(rtr_live *live, uint32_t count)
{
    if (live->token_count + count <= live->token_capacity)
        return;
    uint32_t capacity = live->token_capacity ? live->token_capacity * 2 : 64;
    while (capacity < live->token_count + count)
        capacity *= 2;
    live->tokens = sl_realloc(live->tokens, capacity, sizeof *live->tokens, "router tokens");
    if (live->request->sampling.logprob_count >= 0)
        live->logprobs =
            sl_realloc(live->logprobs, capacity, sizeof *live->logprobs, "router tokens");
    live->token_capacity = capacity;
}

static void copy_logprobs(const Sluice__V1__TokenRun *run, uint32_t index, rtr_token_logprobs *out)
{
    out->logprob = NAN;
    out->top_count = 0;
    if (index >= run->n_logprobs)
        return;
    const Sluice__V1__TokenLogprobs *wire = run->logprobs[index];
    out->logprob = wire->logprob;
    for (size_t i = 0; i < wire->n_top && i < MDL_LOGPROBS_MAX; i++) {
        out->top[i] = (rtr_logprob){wire->top[i]->id, wire->top[i]->logprob};
        out->top_count++;
    }
}

/* False: the rank did not send what the request wants; the answer has failed. */
static bool take_handout(rtr_live *live, uint32_t skip, uint32_t count)
{
    rtr_handout *handout =
        live->lead->exchange ? rtr_answer_handout(live->lead->answer, live->index) : NULL;
    rtr_api_error error;
    sl_err err;
    if (!handout || sl_is_ok(rtr_handout_take(handout, live->run, skip, count, &err)))
        return true;
    sl_warn("request %s: %s: %s", live->id, live->decode_name, err.text);
    rtr_api_error_set(&error, err.code, err.text);
    rtr_live_fail(live, &error);
    return false;
}

static void note_target(const rtr_live *live, uint64_t target_ns, uint64_t took_ns,
                        const char *kept, const char *missed)
{
    if (target_ns > 0)
        sl_metric_add(live->front->shared->metrics.targets, took_ns <= target_ns ? kept : missed,
                      1);
}

void rtr_live_take_tokens(rtr_live *live, uint32_t skip, uint32_t count)
{
    const Sluice__V1__TokenRun *run = live->run;
    sl_assert(run && skip + count <= run->n_ids);
    if (!take_handout(live, skip, count))
        return;
    reserve(live, count);
    memcpy(live->tokens + live->token_count, run->ids + skip, count * sizeof *live->tokens);
    for (uint32_t i = 0; live->logprobs && i < count; i++)
        copy_logprobs(run, skip + i, &live->logprobs[live->token_count + i]);
    live->token_count += count;
    sl_metric_add(live->front->shared->metrics.generation_tokens, NULL, count);
    live->last_token_at = sl_loop_now(live->front->loop);
    if (live->first_token_at)
        return;
    live->first_token_at = live->last_token_at;
    if (live->lead != live)
        return;
    uint64_t took_ns = live->first_token_at - live->arrived_at;
    sl_metric_observe(live->front->shared->metrics.ttft_seconds, (double)took_ns / 1e9);
    note_target(live, live->front->tuning.ttft_target_ns, took_ns, RTR_METRIC_TTFT_KEPT,
                RTR_METRIC_TTFT_MISSED);
}

void rtr_live_take_rows(rtr_live *live, const Sluice__V1__PromptRows *rows)
{
    rtr_prompt *prompt = live->lead->exchange ? rtr_answer_prompt(live->lead->answer) : NULL;
    rtr_api_error error;
    sl_err err;
    if (!prompt || rtr_prompt_complete(prompt) || live->lead != live)
        return;
    live->depth++;
    if (!sl_is_ok(rtr_prompt_take(prompt, rows, &err))) {
        sl_warn("request %s: %s", live->id, err.text);
        rtr_api_error_set(&error, err.code, err.text);
        rtr_live_fail(live, &error);
    } else if (rtr_prompt_complete(prompt)) {
        rtr_event event = {.kind = RTR_EVENT_ROWS_DONE};
        rtr_live_step(live, &event);
        deliver_all(live); /* they waited for it */
    }
    live->depth--;
    rtr_live_settle(live);
}

/* ---- the answer out */

/* placed: its nodes are told as well. */
static size_t fill_headers(const rtr_live *live, bool placed, char seed[24], rtr_http_pair *pairs)
{
    size_t count = 0;
    pairs[count++] = (rtr_http_pair){"x-request-id", live->id};
    if (placed && live->decode_name[0])
        pairs[count++] = (rtr_http_pair){"x-sluice-decode-node", live->decode_name};
    if (placed && live->prefill_name[0])
        pairs[count++] = (rtr_http_pair){"x-sluice-prefill-node", live->prefill_name};
    if (live->started) {
        snprintf(seed, 24, "%llu", (unsigned long long)live->request->sampling.seed);
        pairs[count++] = (rtr_http_pair){"x-sluice-seed", seed};
    }
    return count;
}

/* The exchange is over for us. */
static void exchange_done(rtr_live *lead, int status)
{
    rtr_count_response(lead->front, status);
    lead->exchange = NULL;
    rtr_live_wake_all(lead);
}

static void send_head(rtr_live *lead)
{
    char seed[24];
    rtr_http_pair pairs[8];
    size_t count = fill_headers(lead, lead->answer_begun, seed, pairs); /* else it may move yet */
    pairs[count++] = (rtr_http_pair){"cache-control", "no-cache"};
    pairs[count++] = (rtr_http_pair){"x-accel-buffering", "no"};
    rtr_http_stream_begin(lead->exchange, 200, "text/event-stream", pairs, count);
    lead->head_sent = true;
}

static void answer_begin(rtr_live *lead, const char *fingerprint)
{
    lead->answer_begun = true;
    rtr_answer_begin(lead->answer, fingerprint);
    if (lead->request->stream && !lead->head_sent)
        send_head(lead);
}

static void stream_out(rtr_live *lead)
{
    sl_buf *out = rtr_answer_output(lead->answer);
    if (out->size > 0)
        lead->written_at = sl_loop_now(lead->front->loop);
    rtr_http_stream_write(lead->exchange, out->data, out->size);
    sl_buf_clear(out);
}

/* Not moved at each write: when it wakes it looks how long ago the last one was. Whoever does not
 * read has bytes waiting and needs no more. */
static void on_silence(void *context, sl_time_ns now)
{
    rtr_live *lead = context;
    if (!lead->exchange)
        return;
    if (now >= lead->written_at + lead->keep_alive_ns) {
        bool reads = rtr_http_backlog(lead->exchange) == 0;
        if (!lead->head_sent)
            send_head(lead);
        if (reads)
            rtr_http_stream_write(lead->exchange, KEEP_ALIVE, sizeof KEEP_ALIVE - 1);
        lead->written_at = now;
    }
    sl_timer_set(lead->silence, lead->written_at + lead->keep_alive_ns);
}

void rtr_live_keep_alive(rtr_live *lead)
{
    sl_assert(lead->lead == lead && !lead->silence);
    lead->keep_alive_ns = lead->front->tuning.keep_alive_ns;
    if (!lead->request->stream || lead->keep_alive_ns == 0)
        return;
    lead->written_at = lead->arrived_at;
    lead->silence = sl_timer_create(lead->front->loop, on_silence, lead);
    sl_timer_set(lead->silence, lead->written_at + lead->keep_alive_ns);
}

static void note_finish(const rtr_live *live)
{
    const rtr_metrics *m = &live->front->shared->metrics;
    if (live->token_count < 2)
        return;
    uint64_t took_ns = (live->last_token_at - live->first_token_at) / (live->token_count - 1);
    sl_metric_observe(m->tpot_seconds, (double)took_ns / 1e9);
    note_target(live, live->front->tuning.tpot_target_ns, took_ns, RTR_METRIC_TPOT_KEPT,
                RTR_METRIC_TPOT_MISSED);
}

/* The choice is complete; with the last one the answer is. */
static void answer_finish(rtr_live *live, mdl_finish cause)
{
    char seed[24];
    rtr_http_pair pairs[8];
    rtr_live *lead = live->lead;
    live->answered = true;
    rtr_answer_set_cached(lead->answer, lead->cached_tokens);
    bool last = rtr_answer_finish(lead->answer, live->index, cause);
    note_finish(live);
    if (lead->request->stream)
        stream_out(lead);
    if (!last)
        return;
    const rtr_metrics *m = &lead->front->shared->metrics;
    const rtr_answer_usage *usage = rtr_answer_usage_get(lead->answer);
    sl_metric_add(m->prefix_hit_tokens, NULL, usage->cached_tokens);
    if (lead->request->stream) {
        rtr_http_stream_end(lead->exchange);
    } else {
        size_t count = fill_headers(lead, true, seed, pairs);
        const sl_buf *body = rtr_answer_output(lead->answer);
        rtr_http_respond(lead->exchange, 200, "application/json", pairs, count, body->data,
                         body->size);
    }
    exchange_done(lead, 200);
}

/* False: the client must read first, or the choice is complete. */
static bool deliver_some(rtr_live *live)
{
    rtr_live *lead = live->lead;
    if (lead->request->stream && rtr_http_backlog(lead->exchange) > RTR_HTTP_BACKLOG_HIGH)
        return false; /* the drained call goes on */
    uint32_t count = live->token_count - live->delivered;
    if (count > RTR_DELIVER_BATCH)
        count = RTR_DELIVER_BATCH;
    bool go_on = rtr_answer_push(lead->answer, live->index, live->tokens + live->delivered,
                                 live->logprobs ? live->logprobs + live->delivered : NULL, count);
    live->delivered += count;
    if (!go_on) {
        answer_finish(live, MDL_FINISH_STOP);
        return false;
    }
    if (lead->request->stream)
        stream_out(lead);
    return true;
}

void rtr_live_deliver(rtr_live *live)
{
    rtr_live *lead = live->lead;
    if (!lead->exchange || !lead->answer || live->answered)
        return;
    const rtr_prompt *prompt = rtr_answer_prompt(lead->answer);
    if (prompt && !rtr_prompt_complete(prompt))
        return; /* it comes first */
    if (live->delivered == live->token_count && !live->finished)
        return;
    if (!lead->answer_begun)
        answer_begin(lead, live->fingerprint);
    while (!live->answered && live->delivered < live->token_count) {
        if (!deliver_some(live))
            break;
    }
    if (!live->answered && live->finished && live->delivered == live->token_count)
        answer_finish(live, live->finish);
    if (live->answered && !rtr_request_over(&live->core)) {
        rtr_event event = {.kind = RTR_EVENT_STOPPED}; /* a stop string ended it */
        rtr_live_step(live, &event);
    }
}

void rtr_live_fail(rtr_live *live, const rtr_api_error *error)
{
    char seed[24];
    rtr_http_pair pairs[9];
    rtr_live *lead = live->lead;
    if (!lead->exchange)
        return;
    if (lead->head_sent) {
        rtr_answer_fail(lead->answer, error);
        stream_out(lead);
        rtr_http_stream_end(lead->exchange);
        exchange_done(lead, error->status);
        return;
    }
    size_t count = fill_headers(lead, true, seed, pairs);
    if (error->status == 503 || error->status == 429)
        pairs[count++] = (rtr_http_pair){"retry-after", error->status == 503 ? "5" : "1"};
    rtr_http_respond_error(lead->exchange, error->status, error->type,
                           error->param[0] ? error->param : NULL, error->code, error->message,
                           pairs, count);
    exchange_done(lead, error->status);
}

void rtr_live_answer_tokens(rtr_live *live)
{
    sl_buf out, text;
    sl_err err;
    const mdl_ids *ids = &live->request->prompt;
    sl_buf_init(&out, 0);
    sl_buf_init(&text, 0);
    if (live->kind == RTR_API_TOKENIZE) {
        sl_buf_printf(&out, "{\"count\":%zu,\"max_model_len\":%u,\"tokens\":", ids->count,
                      live->context_max);
        rtr_json_ids(&out, (const uint32_t *)ids->data, ids->count);
        sl_buf_putc(&out, '}');
    } else if (sl_is_ok(mdl_tokenizer_decode(live->front->shared->api.tokenizer, ids->data,
                                             ids->count, &text, &err))) {
        sl_buf_puts(&out, "{\"prompt\":");
        rtr_json_text(&out, text.data, text.size);
        sl_buf_putc(&out, '}');
    } else {
        rtr_api_error_set(&live->error, err.code, err.text);
        snprintf(live->error.param, sizeof live->error.param, "tokens");
        rtr_live_fail(live, &live->error);
    }
    if (live->exchange) {
        rtr_http_pair pair = {"x-request-id", live->id};
        rtr_http_respond(live->exchange, 200, "application/json", &pair, 1, out.data, out.size);
        exchange_done(live, 200);
    }
    sl_buf_fini(&text);
    sl_buf_fini(&out);
}

/* ---- the exchange's own events */

static void on_gone(void *owner)
{
    rtr_live *live = owner;
    live->exchange = NULL;
    rtr_count_response(live->front, 499);
    sl_info("request %s: the client is gone", live->id);
    rtr_live_wake_all(live);
    if (live->started && !rtr_request_over(&live->core)) {
        rtr_event event = {.kind = RTR_EVENT_CLIENT_GONE};
        rtr_live_step(live, &event);
        return;
    }
    rtr_live_settle(live);
}

static void on_drained(void *owner)
{
    rtr_live *lead = owner;
    lead->depth++; /* it goes last */
    deliver_all(lead);
    lead->depth--;
    rtr_live_settle(lead);
}

static const rtr_http_owner_ops OWNER_OPS = {on_gone, on_drained};

void rtr_live_claim(rtr_live *live)
{
    rtr_http_exchange_claim(live->exchange, &OWNER_OPS, live);
}
