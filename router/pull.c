/* Prefix pulls: see pull.h. */
#include "router/pull.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"

#include <stdio.h>
#include <string.h>

#define PULL_MARK '~' /* in its id, which no request's has */

struct rtr_pull {
    rtr_pulls *pulls;
    rtr_pull *prev, *next;
    rtr_pull_options options;
    uint32_t *tokens;
    char id[RTR_ID_SIZE];
    bool asked; /* the taker may hold something for it */
    rtr_prefill_call *call;
    sl_timer *timer;
};

const char *rtr_pull_end_name(rtr_pull_end end)
{
    static const char *const NAMES[] = {
        [RTR_PULL_FETCHED] = "fetched", [RTR_PULL_KNOWN] = "known",   [RTR_PULL_STALE] = "stale",
        [RTR_PULL_LATE] = "late",       [RTR_PULL_FAILED] = "failed",
    };
    return NAMES[end];
}

static rtr_pull *pull_find(const rtr_pulls *pulls, const char *id)
{
    rtr_pull *pull = strchr(id, PULL_MARK) ? pulls->first : NULL;
    while (pull && strcmp(pull->id, id) != 0)
        pull = pull->next;
    return pull;
}

void rtr_pull_drop(rtr_pull *pull)
{
    if (!pull)
        return;
    if (pull->asked)
        rtr_nodes_cancel(pull->options.nodes, pull->options.taker, pull->id, "pull", false);
    rtr_prefill_drop(pull->call);
    if (pull->prev)
        pull->prev->next = pull->next;
    else
        pull->pulls->first = pull->next;
    if (pull->next)
        pull->next->prev = pull->prev;
    sl_timer_destroy(pull->timer);
    sl_free(pull->tokens);
    sl_free(pull);
}

static void pull_end(rtr_pull *pull, rtr_pull_end end)
{
    rtr_pull_options options = pull->options;
    sl_debug("request %s: pull of %u tokens: %s", options.request_id, options.token_count,
             rtr_pull_end_name(end));
    rtr_pull_drop(pull);
    options.on_end(options.context, end);
}

static void on_timer(void *context, sl_time_ns now)
{
    pull_end(context, RTR_PULL_LATE);
}

/* ---- the source's call */

static void on_progress(void *context)
{
}

static void on_rows(void *context, const Sluice__V1__PromptRows *rows)
{
}

/* It has everything acknowledged; the taker says when it is in its cache. */
static void on_done(void *context, const Sluice__V1__PrefillDone *done)
{
    rtr_pull *pull = context;
    pull->call = NULL;
}

static void on_failed(void *context, sl_code code, const char *text)
{
    rtr_pull *pull = context;
    pull->call = NULL;
    sl_debug("request %s: the pages are not offered: %s", pull->options.request_id, text);
    pull_end(pull, code == SL_NOT_FOUND ? RTR_PULL_STALE : RTR_PULL_FAILED);
}

static void ask_source(rtr_pull *pull, Sluice__V1__Ticket *ticket)
{
    static const rtr_prefill_events EVENTS = {on_progress, on_rows, on_done, on_failed};
    const rtr_pull_options *o = &pull->options;
    sl_err err;
    Sluice__V1__PrefillRequest request = SLUICE__V1__PREFILL_REQUEST__INIT;
    request.request_id = pull->id;
    request.epoch = ticket->epoch;
    request.tokens = pull->tokens;
    request.n_tokens = o->token_count;
    request.ticket = ticket;
    request.cache_space = o->cache_space;
    request.priority = o->priority;
    request.offer = true;
    if (!sl_is_ok(
            rtr_nodes_run_prefill(o->nodes, o->source, &request, &EVENTS, pull, &pull->call, &err)))
        pull_end(pull, RTR_PULL_FAILED);
}

/* ---- the taker's answers */

bool rtr_pulls_admitted(rtr_pulls *pulls, const Sluice__V1__Admitted *admitted)
{
    Sluice__V1__Ticket *ticket = admitted->ticket;
    rtr_pull *pull = pull_find(pulls, ticket->request_id);
    if (!pull)
        return strchr(ticket->request_id, PULL_MARK) != NULL;
    /* The last page always comes again: with the final commit. */
    if ((ticket->first_block + 1) * RTR_PAGE_TOKENS >= pull->options.token_count)
        pull_end(pull, RTR_PULL_KNOWN);
    else if (!pull->call)
        ask_source(pull, ticket);
    return true;
}

bool rtr_pulls_refused(rtr_pulls *pulls, const Sluice__V1__Refused *refused)
{
    rtr_pull *pull = pull_find(pulls, refused->request_id);
    if (pull)
        pull_end(pull, RTR_PULL_FAILED);
    return pull || strchr(refused->request_id, PULL_MARK);
}

bool rtr_pulls_run(rtr_pulls *pulls, const Sluice__V1__TokenRun *run)
{
    rtr_pull *pull = pull_find(pulls, run->request_id);
    if (pull && run->finish != SLUICE__V1__FINISH__FINISH_NONE) {
        pull->asked = false;
        pull_end(pull, run->finish == SLUICE__V1__FINISH__FINISH_STOP ? RTR_PULL_FETCHED
                                                                      : RTR_PULL_FAILED);
    }
    return pull || strchr(run->request_id, PULL_MARK);
}

/* An end may end others: looks anew after each. */
void rtr_pulls_broken(rtr_pulls *pulls, uint64_t stream)
{
    for (rtr_pull *pull = pulls->first; pull;) {
        bool broken = pull->options.taker == stream;
        rtr_pull *next = pull->next;
        if (broken)
            pull_end(pull, RTR_PULL_FAILED);
        pull = broken ? pulls->first : next;
    }
}

/* ---- start */

static sl_status ask_taker(rtr_pull *pull)
{
    const rtr_pull_options *o = &pull->options;
    Sluice__V1__Sampling sampling = SLUICE__V1__SAMPLING__INIT;
    sampling.top_p = 1.0f;
    sampling.repetition_penalty = 1.0f;
    sampling.max_tokens = 1; /* of none */
    Sluice__V1__Admit admit = SLUICE__V1__ADMIT__INIT;
    admit.request_id = pull->id;
    admit.epoch = 1;
    admit.tokens = pull->tokens;
    admit.n_tokens = o->token_count;
    admit.prompt_count = o->token_count;
    admit.sampling = &sampling;
    admit.prefill_deadline_ms = (uint32_t)(o->timeout_ns / SL_MS_NS);
    admit.cache_space = o->cache_space;
    admit.priority = o->priority;
    admit.fetch_only = true;
    return rtr_nodes_admit(o->nodes, o->taker, &admit, o->token_count / RTR_PAGE_TOKENS);
}

rtr_pull *rtr_pull_start(rtr_pulls *pulls, const rtr_pull_options *options)
{
    sl_assert(options->token_count > 0 && options->token_count % RTR_PAGE_TOKENS == 0);
    rtr_pull *pull = sl_alloc(1, sizeof *pull, "router pull");
    pull->pulls = pulls;
    pull->options = *options;
    pull->tokens = sl_alloc(options->token_count, sizeof *pull->tokens, "router pull");
    memcpy(pull->tokens, options->tokens, options->token_count * sizeof *pull->tokens);
    snprintf(pull->id, sizeof pull->id, "%.22s%c%04x", options->request_id, PULL_MARK,
             ++pulls->begun & 0xffffu);
    pull->timer = sl_timer_create(options->loop, on_timer, pull);
    sl_timer_set(pull->timer, sl_loop_now(options->loop) + options->timeout_ns);
    pull->next = pulls->first;
    if (pull->next)
        pull->next->prev = pull;
    pulls->first = pull;
    pull->asked = sl_is_ok(ask_taker(pull));
    if (pull->asked)
        return pull;
    rtr_pull_drop(pull);
    return NULL;
}
