/* See planner.h. Pure: no clock, no memory of its own. */
#include "router/planner.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"

typedef enum verdict { FINE, LATE, IDLE } verdict;

/* What a window was like. */
typedef struct window {
    double queue, busy; /* means */
    uint64_t kept, missed;
} window;

static void say(rtr_plan_advice *advice, int32_t more, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void say(rtr_plan_advice *advice, int32_t more, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(advice->reason, sizeof advice->reason, format, arguments);
    va_end(arguments);
    advice->more = more;
}

/* ---- windows ---- */

static void window_open(rtr_plan *plan, const rtr_plan_options *options,
                        const rtr_plan_event *event, sl_time_ns now)
{
    plan->window_end = now + options->window_ns;
    plan->looks = 0;
    for (int i = 0; i < RTR_PLAN_ROLE_COUNT; i++) {
        rtr_plan_count *count = &plan->counts[i];
        count->queue = count->busy = 0;
        count->kept = event->roles[i].kept;
        count->missed = event->roles[i].missed;
    }
}

/* Counts from nothing. */
static void begin(rtr_plan *plan, const rtr_plan_options *options, const rtr_plan_event *event,
                  sl_time_ns now)
{
    memset(plan->counts, 0, sizeof plan->counts);
    window_open(plan, options, event, now);
    for (int i = 0; i < RTR_PLAN_ROLE_COUNT; i++)
        plan->counts[i].queue_before = event->roles[i].queue;
}

static void window_add(rtr_plan *plan, const rtr_plan_event *event)
{
    plan->looks++;
    for (int i = 0; i < RTR_PLAN_ROLE_COUNT; i++) {
        plan->counts[i].queue += event->roles[i].queue;
        plan->counts[i].busy += event->roles[i].busy;
    }
}

/* A router that was started again counts from nothing. */
static uint64_t since(uint64_t now, uint64_t then)
{
    return now > then ? now - then : 0;
}

static window window_of(const rtr_plan *plan, const rtr_plan_event *event, rtr_plan_role role)
{
    const rtr_plan_count *count = &plan->counts[role];
    return (window){
        .queue = count->queue / plan->looks,
        .busy = count->busy / plan->looks,
        .kept = since(event->roles[role].kept, count->kept),
        .missed = since(event->roles[role].missed, count->missed),
    };
}

/* ---- judging ---- */

static bool misses(const window *w)
{
    uint64_t all = w->kept + w->missed;
    return all >= RTR_PLAN_COUNTED_MIN && (double)w->missed > RTR_PLAN_MISSED_MAX * (double)all;
}

/* Its own target; who waits for room in decode nodes has its first token late for that. */
static bool says_target(rtr_plan_role role, const window *all, rtr_plan_advice *cause)
{
    const window *first = &all[RTR_PLAN_ROLE_PREFILL], *decode = &all[RTR_PLAN_ROLE_DECODE];
    bool for_room = decode->queue >= 1;
    if (role == RTR_PLAN_ROLE_DECODE && misses(decode)) {
        say(cause, 1, "%llu of %llu answers had slow tokens", (unsigned long long)decode->missed,
            (unsigned long long)(decode->kept + decode->missed));
        return true;
    }
    if (!misses(first) || for_room != (role == RTR_PLAN_ROLE_DECODE))
        return false;
    say(cause, 1, "%llu of %llu first tokens were late%s", (unsigned long long)first->missed,
        (unsigned long long)(first->kept + first->missed),
        for_room ? ", and requests wait for room" : "");
    return true;
}

static bool says_queue(const rtr_plan_options *options, const window *w, uint32_t nodes,
                       double before, rtr_plan_advice *cause)
{
    if (w->queue > (double)options->queue_max * nodes) {
        say(cause, 1, "%.1f requests wait, over %u for each node", w->queue, options->queue_max);
        return true;
    }
    if (w->queue < nodes || w->queue < before * RTR_PLAN_GROWS || w->queue < before + 1)
        return false;
    say(cause, 1, "%.1f requests wait, %.1f in the window before", w->queue, before);
    return true;
}

static verdict judge(const rtr_plan *plan, const rtr_plan_options *options, rtr_plan_role role,
                     const window *all, uint32_t nodes, rtr_plan_advice *cause)
{
    const window *w = &all[role];
    if (nodes == 0) {
        say(cause, 0, "it has no node of its own");
        return FINE;
    }
    if (says_target(role, all, cause) ||
        says_queue(options, w, nodes, plan->counts[role].queue_before, cause))
        return LATE;
    double less = nodes > 1 ? w->busy * nodes / (nodes - 1) : 1;
    if (less < RTR_PLAN_BUSY_LESS && w->queue < 1 && w->missed == 0) {
        say(cause, -1, "one node less would be %.0f%% busy", 100 * less);
        return IDLE;
    }
    say(cause, 0, "%.0f%% busy, %.1f requests wait", 100 * w->busy, w->queue);
    return FINE;
}

/* The cause, and what comes of it. */
static void conclude(const rtr_plan_options *options, const rtr_plan_count *count,
                     const struct rtr_plan_bounds *bounds, uint32_t nodes, bool other_late,
                     const rtr_plan_advice *cause, rtr_plan_advice *out)
{
    bool late = cause->more > 0;
    uint32_t needed = options->windows * (late ? 1 : RTR_PLAN_IDLE_TIMES);
    uint32_t seen = late ? count->late : count->idle;
    bool bounded = late ? nodes >= bounds->max : nodes <= bounds->min || nodes <= 1;
    if (cause->more == 0)
        say(out, 0, "%.120s", cause->reason);
    else if (bounded)
        say(out, 0, "%.120s; but there may be no %s than %u", cause->reason,
            late ? "more" : "fewer", nodes);
    else if (!late && other_late)
        say(out, 0, "%.120s; but the other role is late", cause->reason);
    else if (seen < needed)
        say(out, 0, "%.120s; %u of %u windows in a row", cause->reason, seen, needed);
    else
        say(out, cause->more, "%.120s; %u windows in a row", cause->reason, seen);
}

static void window_close(rtr_plan *plan, const rtr_plan_options *options,
                         const rtr_plan_event *event)
{
    window all[RTR_PLAN_ROLE_COUNT];
    rtr_plan_advice causes[RTR_PLAN_ROLE_COUNT];
    for (int i = 0; i < RTR_PLAN_ROLE_COUNT; i++)
        all[i] = window_of(plan, event, (rtr_plan_role)i);
    for (int i = 0; i < RTR_PLAN_ROLE_COUNT; i++) {
        rtr_plan_count *count = &plan->counts[i];
        verdict is = judge(plan, options, (rtr_plan_role)i, all, event->roles[i].nodes, &causes[i]);
        count->late = is == LATE ? count->late + 1 : 0;
        count->idle = is == IDLE ? count->idle + 1 : 0;
        count->queue_before = all[i].queue;
    }
    for (int i = 0; i < RTR_PLAN_ROLE_COUNT; i++)
        conclude(options, &plan->counts[i], &options->bounds[i], event->roles[i].nodes,
                 causes[RTR_PLAN_ROLE_COUNT - 1 - i].more > 0, &causes[i], &plan->advice[i]);
}

/* ---- pauses ---- */

/* Something that load must settle after. */
static const char *disturbed(const rtr_plan_event *last, const rtr_plan_event *now)
{
    for (int i = 0; i < RTR_PLAN_ROLE_COUNT; i++) {
        const rtr_plan_load *was = &last->roles[i], *is = &now->roles[i];
        if (is->ill)
            return "a pause: a node is ill";
        if (is->nodes < was->nodes)
            return "a pause: a node has gone";
        if (is->nodes > was->nodes)
            return "a pause: a node has come";
        if (is->wanted != was->wanted)
            return "a pause: another number is wanted";
    }
    return now->routers != last->routers ? "a pause: a router has come or gone" : NULL;
}

static void say_all(rtr_plan *plan, const char *reason)
{
    for (int i = 0; i < RTR_PLAN_ROLE_COUNT; i++)
        say(&plan->advice[i], 0, "%s", reason);
}

/* NULL: load may be judged. */
static const char *obstacle(const rtr_plan_event *event)
{
    for (int i = 0; i < RTR_PLAN_ROLE_COUNT; i++)
        if (event->roles[i].nodes != event->roles[i].wanted)
            return "there were not as many nodes as wanted yet";
    return NULL;
}

bool rtr_plan_step(rtr_plan *plan, const rtr_plan_options *options, const rtr_plan_event *event,
                   sl_time_ns now)
{
    sl_assert(options->window_ns > 0 && options->windows > 0);
    if (event->blind) {
        *plan = (rtr_plan){0};
        say_all(plan, "who is there is not known");
        return false;
    }
    const char *why = plan->begun ? disturbed(&plan->last, event) : NULL;
    bool begins = !plan->begun;
    plan->begun = true;
    plan->last = *event;
    if (why) {
        plan->pause_until = now + options->pause_ns;
        say_all(plan, why);
    }
    const char *hinders = obstacle(event);
    if (hinders)
        say_all(plan, hinders);
    if (begins || why || hinders || now < plan->pause_until) {
        begin(plan, options, event, now);
        if (begins && !hinders)
            say_all(plan, "the first window is not over");
        return false;
    }
    window_add(plan, event);
    if (now < plan->window_end)
        return false;
    window_close(plan, options, event);
    window_open(plan, options, event, now);
    return true;
}
