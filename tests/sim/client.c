/* See client.h. Owns the requests until the world ends. */
#include "tests/sim/client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "tests/sim/checker.h"
#include "tests/sim/engine.h"

#define TOPICS      4u /* prompts of one begin alike */
#define SLOW_BYTES  3000u
#define LATE_MAX_NS (4 * SL_S_NS)

sim_clients sim_cls;
static sim_load planned; /* of the requests that are still to be asked */

void sim_clients_init(void)
{
    sim_cls = (sim_clients){0};
}

void sim_clients_fini(void)
{
    for (uint32_t i = 0; i < sim_cls.count; i++) {
        sim_request *request = sim_cls.requests[i];
        if (request->call)
            sim_http_hang_up(request->call);
        sl_buf_fini(&request->text);
        sl_free(request);
    }
    sim_cls.count = 0;
}

/* ---- what a client hears */

static void ended(sim_request *request, sim_outcome outcome, int status)
{
    if (request->outcome != SIM_WAITING)
        sim_violation("every request ends once", "request %u ended twice", request->number);
    request->outcome = outcome;
    request->status = status;
    request->ended_at = sim.now;
    sim_cls.open--;
    sim_cls.answered += outcome == SIM_ANSWERED;
    sim_cls.refused += outcome == SIM_REFUSED;
    sim_cls.broken += outcome == SIM_BROKEN;
    sim_cls.hung_up += outcome == SIM_HUNG_UP;
    static const char *const NAMES[] = {"", "answered", "refused", "broken", "hung up"};
    sim_trace("request %u: %s (%d)", request->number, NAMES[outcome], status);
    sim_checker_request_ended(request);
}

static void take_token(sim_request *request, sim_choice *choice, uint32_t id)
{
    if (request->first_token_at == 0)
        request->first_token_at = sim.now;
    if (choice->got >= choice->expected_count || choice->expected[choice->got] != id)
        sim_violation(
            "tokens are right", "request %u choice %u: token %u is %u, must be %d (of %u)",
            request->number, (unsigned)(choice - request->choices), choice->got, id,
            choice->got < choice->expected_count ? (int)choice->expected[choice->got] : -1,
            choice->expected_count);
    choice->got++;
    sim_cls.tokens++;
}

/* A complete piece of JSON of the answer: its choices' tokens and ends. */
static void take_json(sim_request *request, const char *text)
{
    static const char INDEX[] = "{\"index\":", FINISH[] = "\"finish_reason\":\"",
                      IDS[] = "\"token_ids\":[";
    if (strncmp(text, "{\"error\"", 8) == 0) {
        request->error_told = true;
        return;
    }
    for (const char *at = strstr(text, INDEX); at; at = strstr(at, INDEX)) {
        at += sizeof(INDEX) - 1;
        char *end;
        unsigned long index = strtoul(at, &end, 10);
        const char *next = strstr(at, INDEX);
        const char *finish = strstr(at, FINISH), *ids = strstr(at, IDS);
        if (index >= request->choice_count)
            sim_violation("tokens are right", "request %u has no choice %lu", request->number,
                          index);
        sim_choice *choice = &request->choices[index];
        for (ids = ids && (!next || ids < next) ? ids + sizeof(IDS) - 1 : NULL; ids && *ids != ']';
             ids = *end == ',' ? end + 1 : end)
            take_token(request, choice, (uint32_t)strtoul(ids, &end, 10));
        if (finish && (!next || finish < next)) {
            if (choice->finished)
                sim_violation("every request ends once", "request %u choice %lu", request->number,
                              index);
            choice->finished = true;
            choice->finished_by_stop = finish[sizeof(FINISH) - 1] == 's';
        }
    }
}

static void take_line(sim_request *request, char *line)
{
    if (strcmp(line, ": keep-alive") == 0) {
        request->comments++;
        request->comment_at = sim.now;
    }
    if (strncmp(line, "data: ", 6) != 0)
        return;
    if (request->done_line)
        sim_violation("every request ends once", "request %u: more behind the end",
                      request->number);
    if (strcmp(line + 6, "[DONE]") == 0)
        request->done_line = true;
    else
        take_json(request, line + 6);
}

static void on_data(void *context, const char *data, size_t size)
{
    sim_request *request = context;
    request->heard_at = sim.now;
    sl_buf_append(&request->text, data, size);
    while (request->stream && request->text.size > 0) {
        char *end = memchr(request->text.data, '\n', request->text.size);
        if (!end)
            return;
        *end = 0;
        take_line(request, request->text.data);
        sl_buf_consume(&request->text, (size_t)(end - request->text.data) + 1);
    }
}

/* The last token may be EOS, which is no part of what is shown. */
static bool is_complete(const sim_choice *choice)
{
    return choice->got + choice->stops >= choice->expected_count && choice->finished &&
           choice->finished_by_stop == choice->stops;
}

static void on_end(void *context, int status)
{
    sim_request *request = context;
    bool event_stream = request->stream && status == 200;
    if (!event_stream && request->text.size > 0)
        take_json(request, request->text.data);
    bool complete = status == 200 && !request->error_told && (!event_stream || request->done_line);
    for (uint32_t i = 0; i < request->choice_count; i++)
        complete = complete && is_complete(&request->choices[i]);
    if (status == 200 && !complete && !request->error_told)
        sim_violation("every request ends once", "request %u ended without its end",
                      request->number);
    ended(request, complete ? SIM_ANSWERED : SIM_REFUSED, status);
}

static void on_broken(void *context)
{
    ended(context, SIM_BROKEN, 0);
}

void sim_clients_hang_up(sim_request *request)
{
    if (request->outcome != SIM_WAITING)
        return;
    sim_http_hang_up(request->call);
    request->call = NULL;
    ended(request, SIM_HUNG_UP, 499);
}

static void on_hang_up(void *context, uint64_t tag)
{
    sim_clients_hang_up(context);
}

/* ---- what a client asks */

static void make_prompt(sim_request *request, uint32_t prompt_min, uint32_t prompt_max)
{
    uint64_t topic = sim_draw(TOPICS);
    uint32_t shared = (uint32_t)sim_draw(prompt_max);
    request->prompt_count = (uint32_t)sim_between(prompt_min ? prompt_min : 1, prompt_max);
    for (uint32_t i = 0; i < request->prompt_count; i++) {
        uint64_t word = i < shared ? sim_mix(topic + 1, i) : sim_draw(UINT64_MAX);
        request->prompt[i] = 32 + (uint32_t)(word % (SIM_VOCAB - 32));
    }
}

static void make_answers(sim_request *request)
{
    uint64_t seed = request->sampling.seed;
    for (uint32_t i = 0; i < request->choice_count; i++) {
        sim_choice *choice = &request->choices[i];
        mdl_sampling sampling = request->sampling;
        sampling.seed = mdl_choice_seed(seed, i);
        choice->expected_count = sim_engine_reference(request->prompt, request->prompt_count,
                                                      &sampling, choice->expected, &choice->stops);
    }
}

static void write_body(const sim_request *request, int priority, sl_buf *out)
{
    sl_buf_puts(out, "{\"prompt\":[");
    for (uint32_t i = 0; i < request->prompt_count; i++)
        sl_buf_printf(out, "%s%u", i ? "," : "", request->prompt[i]);
    sl_buf_printf(out,
                  "],\"max_tokens\":%d,\"temperature\":%d,\"top_p\":1,\"seed\":%llu,\"n\":%u,"
                  "\"priority\":%d,\"stream\":%s,\"return_token_ids\":true}",
                  request->sampling.max_tokens, (int)request->sampling.temperature,
                  (unsigned long long)request->sampling.seed, request->choice_count, priority,
                  request->stream ? "true" : "false");
}

sim_request *sim_clients_ask(const sim_load *load, sim_process *router)
{
    static const sim_http_client CLIENT = {on_data, on_end, on_broken};
    sl_assert(sim_cls.count < SIM_REQUESTS_MAX);
    sim_request *request = sl_alloc(1, sizeof(*request), "sim request");
    sim_cls.requests[sim_cls.count] = request;
    request->number = sim_cls.count++;
    request->router = router;
    request->stream = sim_draw(4) > 0;
    request->must_succeed = load->calm;
    make_prompt(request, load->prompt_min, load->prompt_max);
    mdl_sampling_init(&request->sampling);
    request->sampling.temperature = (float)sim_draw(2);
    request->sampling.max_tokens =
        (int32_t)sim_between(load->tokens_min ? load->tokens_min : 1, load->tokens_max);
    request->sampling.seed = sim_draw(1u << 30);
    request->choice_count = sim_draw(8) == 0 ? 2 + (uint32_t)sim_draw(SIM_CHOICES_MAX - 1) : 1;
    make_answers(request);
    sl_buf_init(&request->text, 0);
    request->asked_at = sim.now;
    request->faults_before = sim_checker_faults();
    sl_buf body;
    sl_buf_init(&body, 0);
    write_body(request, (int)sim_draw(3) - 1, &body);
    uint64_t speed = !load->calm && sim_chance(load->slow_ppm) ? SLOW_BYTES : 0;
    sim_cls.open++;
    sim_trace("request %u: %u tokens, at most %d more, %u choices, to %s", request->number,
              request->prompt_count, request->sampling.max_tokens, request->choice_count,
              router->name);
    request->call = sim_http_post(router, "/v1/completions", body.data, speed, &CLIENT, request);
    sl_buf_fini(&body);
    if (!load->calm && sim_chance(load->hang_up_ppm))
        sim_post(sim.now + sim_draw(LATE_MAX_NS), on_hang_up, request, 0);
    return request;
}

/* A client whose router is down looks for another one; if none is there it waits. */
static sim_process *some_router(void)
{
    sim_process *routers[SIM_PROCESSES_MAX];
    uint32_t count = 0;
    for (uint32_t i = 0; i < sim.process_count; i++)
        if (sim.processes[i].role == SIM_ROUTER && sim.processes[i].alive)
            routers[count++] = &sim.processes[i];
    return count ? routers[sim_draw(count)] : NULL;
}

static void on_ask(void *context, uint64_t tag)
{
    sim_process *router = some_router();
    if (router)
        (void)sim_clients_ask(&planned, router);
}

void sim_clients_plan(const sim_load *load)
{
    planned = *load;
    for (uint32_t i = 0; i < load->requests; i++)
        sim_post(sim_between(load->first_at, load->last_at), on_ask, NULL, 0);
}
