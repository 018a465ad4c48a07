/* The request machine by scripts: each line is an event and the whole of what must follow. */
#ifndef TESTS_UNIT_ROUTER_REQUEST_KIT_H
#define TESTS_UNIT_ROUTER_REQUEST_KIT_H

#include "tests/unit/test.h"

#include "router/request.h"

#define MS(n) ((sl_time_ns)(n)*SL_MS_NS)

static inline rtr_request_limits limits_of_test(void)
{
    rtr_request_limits limits = {
        .place_timeout_ns = MS(5000),
        .queue_timeout_ns = MS(60000),
        .admit_timeout_ns = MS(1000),
        .progress_timeout_ns = MS(3000),
        .self_timeout_ns = MS(20000),
        .token_timeout_ns = MS(4000),
        .attach_timeout_ns = MS(2000),
        .refusal_pause_ns = MS(100),
        .attempts_max = 3,
        .max_tokens = 10,
    };
    return limits;
}

/* ---- a script: "verb arguments => actions | state"; time moves with "wait MS" */

typedef struct script {
    rtr_request_limits limits;
    rtr_request request;
    sl_time_ns now;
} script;

static inline void render(const script *s, const rtr_actions *actions, char *out, size_t size)
{
    size_t at = 0;
    out[0] = 0;
    for (uint32_t i = 0; i < actions->count; i++) {
        const rtr_action *a = &actions->at[i];
        const char *sep = i ? ", " : "";
        switch (a->kind) {
        case RTR_ACTION_PLACE:
            at += (size_t)snprintf(out + at, size - at, "%splace", sep);
            break;
        case RTR_ACTION_ADMIT:
            at += (size_t)snprintf(out + at, size - at, "%sadmit d%d e%u", sep, (int)a->node,
                                   a->epoch);
            break;
        case RTR_ACTION_RUN_PREFILL:
            at += (size_t)snprintf(out + at, size - at, "%sprefill p%d e%u", sep, (int)a->node,
                                   a->epoch);
            break;
        case RTR_ACTION_ATTACH:
            at += (size_t)snprintf(out + at, size - at, "%sattach d%d e%u", sep, (int)a->node,
                                   a->epoch);
            break;
        case RTR_ACTION_EXTEND:
            at += (size_t)snprintf(out + at, size - at, "%sextend d%d e%u by %u", sep, (int)a->node,
                                   a->epoch, (unsigned)(a->span_ns / SL_MS_NS));
            break;
        case RTR_ACTION_CANCEL_DECODE:
            at += (size_t)snprintf(out + at, size - at, "%s%s d%d", sep,
                                   a->moved ? "move from" : "cancel", (int)a->node);
            break;
        case RTR_ACTION_CANCEL_PREFILL:
            at += (size_t)snprintf(out + at, size - at, "%scancel p%d", sep, (int)a->node);
            break;
        case RTR_ACTION_DELIVER:
            at += (size_t)snprintf(out + at, size - at, "%sdeliver %u+%u", sep, a->skip, a->count);
            break;
        case RTR_ACTION_MIGRATED:
            at += (size_t)snprintf(out + at, size - at, "%smigrated %s", sep, a->text);
            break;
        case RTR_ACTION_FINISH:
            at += (size_t)snprintf(out + at, size - at, "%sfinish %s", sep,
                                   a->finish == RTR_FINISH_LENGTH ? "length" : "stop");
            break;
        case RTR_ACTION_FAIL:
            at += (size_t)snprintf(out + at, size - at, "%sfail %s (%s)", sep,
                                   sl_code_name(a->code), a->text);
            break;
        }
    }
    snprintf(out + at, size - at, "%s| %s", at ? " " : "", rtr_state_name(s->request.state));
}

static inline sl_code code_of(const char *name)
{
    for (int code = 0; code < 64; code++) {
        if (strcmp(sl_code_name((sl_code)code), name) == 0)
            return (sl_code)code;
    }
    fail_msg("no code %s", name);
    return SL_INTERNAL;
}

static inline rtr_finish finish_of(const char *name)
{
    static const char *const NAMES[] = {"none", "stop", "length", "failed", "cancelled"};
    for (int i = 0; i < 5; i++) {
        if (strcmp(NAMES[i], name) == 0)
            return (rtr_finish)i;
    }
    fail_msg("no finish %s", name);
    return RTR_FINISH_NONE;
}

static inline bool parse_lack(const char *line, rtr_event *e)
{
    static const struct {
        const char *text;
        rtr_lack lack;
    } LACKS[] = {{"no decode", RTR_LACK_DECODE}, {"no prefill", RTR_LACK_PREFILL},
                 {"no budget", RTR_LACK_BUDGET}, {"no node works", RTR_LACK_PAUSED},
                 {"no room", RTR_LACK_ROOM},     {"too large", RTR_LACK_SIZE}};
    unsigned until = 0;
    for (size_t i = 0; i < sizeof(LACKS) / sizeof(LACKS[0]); i++)
        if (strncmp(line, LACKS[i].text, strlen(LACKS[i].text)) == 0)
            e->lack = LACKS[i].lack;
    if (sscanf(line, "no node works until %u", &until) == 1)
        e->until = MS(until);
    return e->lack != RTR_LACK_NONE;
}

static inline bool parse_event(const char *line, rtr_event *e, char words[2][32])
{
    int d = 0, p = 0, again = 0, source = 0;
    memset(e, 0, sizeof *e);
    words[0][0] = words[1][0] = 0;
    if (strncmp(line, "submit", 6) == 0) {
        e->kind = RTR_EVENT_SUBMIT;
    } else if (sscanf(line, "placed d%d p%d", &d, &p) >= 1) {
        e->kind = RTR_EVENT_PLACED;
    } else if (parse_lack(line, e)) {
        e->kind = RTR_EVENT_UNPLACED;
    } else if (strncmp(line, "changed", 7) == 0) {
        e->kind = RTR_EVENT_NODES_CHANGED;
    } else if (sscanf(line, "admitted d%d e%u", &d, &e->epoch) == 2) {
        e->kind = RTR_EVENT_ADMITTED;
    } else if (sscanf(line, "refused d%d e%u %31s", &d, &e->epoch, words[0]) == 3) {
        e->kind = RTR_EVENT_REFUSED;
    } else if (sscanf(line, "broken d%d", &d) == 1) {
        e->kind = RTR_EVENT_DECODE_BROKEN;
    } else if (sscanf(line, "back d%d d%d", &d, &again) == 2) {
        e->kind = RTR_EVENT_DECODE_BACK;
    } else if (sscanf(line, "drains d%d of %d", &d, &source) == 2) {
        e->kind = RTR_EVENT_DECODE_DRAINS;
    } else if (sscanf(line, "lost d%d", &d) == 1) {
        e->kind = RTR_EVENT_DECODE_LOST;
    } else if (sscanf(line, "lost p%d", &p) == 1) {
        e->kind = RTR_EVENT_PREFILL_LOST;
    } else if (sscanf(line, "rests p%d until %u", &p, &e->count) == 2) {
        e->kind = RTR_EVENT_PREFILL_RESTS;
        e->until = MS(e->count);
    } else if (sscanf(line, "works p%d", &p) == 1) {
        e->kind = RTR_EVENT_PREFILL_RESTS;
    } else if (sscanf(line, "progress e%u", &e->epoch) == 1) {
        e->kind = RTR_EVENT_PREFILL_PROGRESS;
    } else if (strncmp(line, "rows", 4) == 0) {
        e->kind = RTR_EVENT_ROWS_DONE;
    } else if (sscanf(line, "prefilled e%u", &e->epoch) == 1) {
        e->kind = RTR_EVENT_PREFILL_DONE;
    } else if (sscanf(line, "unfilled e%u %31s", &e->epoch, words[0]) == 2) {
        e->kind = RTR_EVENT_PREFILL_FAILED;
    } else if (sscanf(line, "tokens d%d e%u %u+%u %31s %31s", &d, &e->epoch, &e->first_index,
                      &e->count, words[1], words[0]) >= 4) {
        e->kind = RTR_EVENT_TOKENS;
    } else if (strncmp(line, "stopped", 7) == 0) {
        e->kind = RTR_EVENT_STOPPED;
    } else if (strncmp(line, "gone", 4) == 0) {
        e->kind = RTR_EVENT_CLIENT_GONE;
    } else if (strncmp(line, "abort", 5) == 0) {
        e->kind = RTR_EVENT_ABORT;
        e->code = SL_UNAVAILABLE;
        e->text = "shutting down";
    } else if (sscanf(line, "timer, at rest until %u", &e->count) == 1) {
        e->kind = RTR_EVENT_TIMER;
        e->until = MS(e->count);
    } else if (strncmp(line, "timer", 5) == 0) {
        e->kind = RTR_EVENT_TIMER;
    } else {
        return false;
    }
    e->decode = (uint64_t)d;
    e->again = (uint64_t)again;
    e->prefill = (uint64_t)p;
    e->source = (uint64_t)source;
    return true;
}

/* Lines "event => result"; NULL ends. */
static inline void run(script *s, const char *const *lines)
{
    for (int i = 0; lines[i]; i++) {
        rtr_event event;
        rtr_actions actions;
        char words[2][32], got[1024], text[256];
        unsigned wait;
        const char *arrow = strstr(lines[i], " => ");
        if (sscanf(lines[i], "wait %u", &wait) == 1) {
            s->now += MS(wait);
            continue;
        }
        assert_non_null(arrow);
        snprintf(text, sizeof text, "%.*s", (int)(arrow - lines[i]), lines[i]);
        if (!parse_event(text, &event, words))
            fail_msg("line %d: %s", i, lines[i]);
        if (words[0][0])
            event.code = code_of(words[0]);
        if (words[1][0])
            event.finish = finish_of(words[1]);
        rtr_request_step(&s->request, &event, s->now, &actions);
        render(s, &actions, got, sizeof got);
        if (strcmp(got, arrow + 4) != 0)
            fail_msg("line %d: %s\n  got: %s", i, lines[i], got);
    }
}

static inline void script_init(script *s)
{
    s->limits = limits_of_test();
    s->now = MS(1000);
    rtr_request_init(&s->request, &s->limits);
}

#define RUN(...)                                                \
    do {                                                        \
        static const char *const LINES[] = {__VA_ARGS__, NULL}; \
        run(&s, LINES);                                         \
    } while (0)

/* From nothing to PREFILLING on d1 with p7. */
static inline void begin(script *s)
{
    static const char *const LINES[] = {
        "submit => place | queued",
        "placed d1 p7 => admit d1 e1 | admitting",
        "admitted d1 e1 => prefill p7 e1 | prefilling",
        NULL,
    };
    script_init(s);
    run(s, LINES);
}

#endif
