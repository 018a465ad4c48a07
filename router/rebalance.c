/* See rebalance.h. */
#include "router/rebalance.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "cluster/balance.h"

static void say(rtr_rebalance *r, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void say(rtr_rebalance *r, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(r->reason, sizeof r->reason, format, arguments);
    va_end(arguments);
}

/* ---- life ---- */

rtr_rebalance *rtr_rebalance_create(uint32_t layers, uint32_t experts, uint32_t ranks)
{
    rtr_rebalance *r = sl_alloc(1, sizeof *r, "rebalance");
    size_t of_experts = (size_t)layers * experts, of_ranks = (size_t)layers * ranks;
    r->layers = layers;
    r->experts = experts;
    r->ranks = ranks;
    r->experts_before = sl_alloc(of_experts, sizeof(uint64_t), "rebalance loads");
    r->ranks_before = sl_alloc(of_ranks, sizeof(uint64_t), "rebalance loads");
    r->recent = sl_alloc(of_experts, sizeof(double), "rebalance loads");
    r->past = sl_alloc(of_experts, sizeof(double), "rebalance loads");
    r->rank_loads = sl_alloc(of_ranks, sizeof(double), "rebalance loads");
    return r;
}

void rtr_rebalance_destroy(rtr_rebalance *r)
{
    if (!r)
        return;
    sl_free(r->experts_before);
    sl_free(r->ranks_before);
    sl_free(r->recent);
    sl_free(r->past);
    sl_free(r->rank_loads);
    sl_free(r);
}

/* ---- windows ---- */

static size_t expert_count(const rtr_rebalance *r)
{
    return (size_t)r->layers * r->experts;
}

static size_t rank_count(const rtr_rebalance *r)
{
    return (size_t)r->layers * r->ranks;
}

static void window_open(rtr_rebalance *r, const rtr_rebalance_seen *seen, sl_time_ns now)
{
    memcpy(r->experts_before, seen->expert_rows, expert_count(r) * sizeof(uint64_t));
    memcpy(r->ranks_before, seen->rank_rows, rank_count(r) * sizeof(uint64_t));
    r->window_begin = now;
}

/* Windows in a row are counted from nothing. */
static void count_anew(rtr_rebalance *r)
{
    r->over = 0;
    memset(r->recent, 0, expert_count(r) * sizeof(double));
}

/* false: a rank counts from nothing, so it was started again. */
static bool counters_grow(const rtr_rebalance *r, const rtr_rebalance_seen *seen)
{
    for (size_t i = 0; i < rank_count(r); i++)
        if (seen->rank_rows[i] < r->ranks_before[i])
            return false;
    return true;
}

/* The window's load into recent and past. Returns its rows. */
static double window_add(rtr_rebalance *r, const rtr_rebalance_options *options,
                         const rtr_rebalance_seen *seen, sl_time_ns now)
{
    double span = (double)(now - r->window_begin), rows = 0;
    double faded = options->pause_ns ? exp2(-span / (double)options->pause_ns) : 0;
    for (size_t i = 0; i < expert_count(r); i++) {
        uint64_t is = seen->expert_rows[i], was = r->experts_before[i];
        double load = is > was ? (double)(is - was) : 0;
        rows += load;
        r->recent[i] += load;
        r->past[i] = r->past[i] * faded + load;
    }
    for (size_t i = 0; i < rank_count(r); i++)
        r->rank_loads[i] = (double)(seen->rank_rows[i] - r->ranks_before[i]);
    return rows;
}

/* ---- disturbances ---- */

static void pause_begin(rtr_rebalance *r, const rtr_rebalance_options *options, const char *why,
                        sl_time_ns now)
{
    r->pause_until = now + options->pause_ns;
    r->pause_why = why;
    r->advised = false;
    count_anew(r);
    say(r, "a pause: %s", why);
}

/* NULL: as it was. */
static const char *changed(const rtr_rebalance *r, const rtr_rebalance_seen *seen)
{
    if (seen->placement != r->placement)
        return "another placement is in use";
    if (seen->formation != r->formation)
        return "ranks have come or gone";
    return counters_grow(r, seen) ? NULL : "a rank was started again";
}

static void note(rtr_rebalance *r, const rtr_rebalance_seen *seen, sl_time_ns now)
{
    r->begun = true;
    r->imbalance = 0;
    r->formation = seen->formation;
    r->placement = seen->placement;
    window_open(r, seen, now);
}

/* ---- watching ---- */

static rtr_rebalance_action judge(rtr_rebalance *r, const rtr_rebalance_options *options,
                                  double rows, sl_time_ns now)
{
    const clu_place_shape shape = {.layers = r->layers, .experts = r->experts, .ranks = r->ranks};
    bool enough = rows >= (double)options->rows * (double)rank_count(r);
    r->imbalance = clu_balance_of_ranks(&shape, r->rank_loads).mean;
    if (!enough || r->imbalance <= options->over) {
        r->advised = false;
        count_anew(r);
        if (enough)
            say(r, "heaviest rank / mean %.2f", r->imbalance);
        else
            say(r, "too few rows to judge by");
        return RTR_REBALANCE_NOTHING;
    }
    if (now < r->pause_until) {
        count_anew(r);
        say(r, "heaviest rank / mean %.2f, over %.2f; a pause: %s", r->imbalance, options->over,
            r->pause_why);
        return RTR_REBALANCE_NOTHING;
    }
    r->over++;
    if (!r->advised)
        say(r, "heaviest rank / mean %.2f, over %.2f; %u of %u windows in a row", r->imbalance,
            options->over, r->over, options->windows);
    if (r->over < options->windows)
        return RTR_REBALANCE_NOTHING;
    r->phase = RTR_REBALANCE_PHASE_PLANNING;
    r->disturbed = false;
    return RTR_REBALANCE_PLAN;
}

static rtr_rebalance_action watch(rtr_rebalance *r, const rtr_rebalance_options *options,
                                  const rtr_rebalance_seen *seen, sl_time_ns now)
{
    if (seen->missing) {
        if (r->begun)
            pause_begin(r, options, "a rank was missing", now);
        say(r, "%s", seen->missing);
        r->begun = false;
        return RTR_REBALANCE_NOTHING;
    }
    if (seen->placement >= r->late)
        r->late = 0;
    const char *why = r->begun               ? changed(r, seen)
                      : r->pause_why == NULL ? "who leads has not led for long"
                                             : r->pause_why;
    if (why) {
        pause_begin(r, options, why, now);
        note(r, seen, now);
        return RTR_REBALANCE_NOTHING;
    }
    if (now < r->window_begin + options->window_ns)
        return RTR_REBALANCE_NOTHING;
    double rows = window_add(r, options, seen, now);
    window_open(r, seen, now);
    return judge(r, options, rows, now);
}

/* ---- a plan, and what becomes of it ---- */

static void watch_again(rtr_rebalance *r)
{
    r->phase = RTR_REBALANCE_PHASE_WATCHING;
    count_anew(r);
}

static double gain_of(double before, double after)
{
    return (before - after) / before;
}

static rtr_rebalance_action take_plan(rtr_rebalance *r, const rtr_rebalance_options *options,
                                      const rtr_rebalance_plan *plan, sl_time_ns now)
{
    double now_gain = gain_of(plan->before, plan->after),
           long_gain = gain_of(plan->long_before, plan->long_after);
    if (r->disturbed) {
        watch_again(r);
        pause_begin(r, options, "ranks changed while a plan was made", now);
        r->begun = false;
        return RTR_REBALANCE_NOTHING;
    }
    r->plan = *plan;
    r->advised = plan->moves > 0 && now_gain >= options->gain && long_gain >= options->gain;
    watch_again(r);
    if (plan->placement != r->placement) {
        r->advised = false;
        say(r, "placement %" PRIu64 " is on its way, or cannot be used", plan->placement);
    } else if (!r->advised) {
        say(r,
            "heaviest rank / mean %.2f; another placement would gain %.1f%%, over a longer time "
            "%.1f%%: under %.1f%%",
            r->imbalance, 100 * now_gain, 100 * long_gain, 100 * options->gain);
    } else {
        say(r, "heaviest rank / mean %.2f; %.3f planned instead of %.3f, %" PRIu64 " experts move",
            r->imbalance, plan->after, plan->before, plan->moves);
    }
    if (!r->advised || options->mode != RTR_PLAN_MODE_ACT)
        return RTR_REBALANCE_NOTHING;
    r->phase = RTR_REBALANCE_PHASE_WRITING;
    return RTR_REBALANCE_WRITE;
}

/* Ranks may be silent meanwhile: only what they use counts. */
static rtr_rebalance_action roll_out(rtr_rebalance *r, const rtr_rebalance_options *options,
                                     const rtr_rebalance_seen *seen, sl_time_ns now)
{
    bool in_use = !seen->missing && seen->placement >= r->plan.placement + 1;
    if (!in_use && now < r->written_at + RTR_ROLL_OUT_NS)
        return RTR_REBALANCE_NOTHING;
    watch_again(r);
    pause_begin(r, options, in_use ? "a placement was rolled out" : "a placement is not used", now);
    r->begun = false;
    if (!in_use) {
        r->late = r->plan.placement + 1;
        say(r, "placement %" PRIu64 " is written, but not all ranks use it: their logs say why",
            r->plan.placement + 1);
        return RTR_REBALANCE_LATE;
    }
    r->took_ns = now - r->written_at;
    note(r, seen, now);
    return RTR_REBALANCE_DONE;
}

static void fail(rtr_rebalance *r, const rtr_rebalance_options *options, const char *why,
                 sl_time_ns now)
{
    bool wrote = r->phase == RTR_REBALANCE_PHASE_WRITING;
    watch_again(r);
    pause_begin(r, options, wrote ? "a placement could not be written" : "no plan could be made",
                now);
    say(r, "%s: %.120s", r->pause_why, why);
}

rtr_rebalance_action rtr_rebalance_step(rtr_rebalance *r, const rtr_rebalance_options *options,
                                        const rtr_rebalance_event *event, sl_time_ns now)
{
    sl_assert(options->window_ns > 0 && options->windows > 0 && options->mode != RTR_PLAN_MODE_OFF);
    switch (event->kind) {
    case RTR_REBALANCE_SEEN:
        if (r->phase == RTR_REBALANCE_PHASE_WATCHING)
            return watch(r, options, &event->seen, now);
        if (r->phase == RTR_REBALANCE_PHASE_ROLLING_OUT)
            return roll_out(r, options, &event->seen, now);
        r->disturbed = r->disturbed || event->seen.missing || changed(r, &event->seen);
        return RTR_REBALANCE_NOTHING; /* its plan or its writing ends soon */
    case RTR_REBALANCE_PLANNED:
        sl_assert(r->phase == RTR_REBALANCE_PHASE_PLANNING);
        return take_plan(r, options, &event->plan, now);
    case RTR_REBALANCE_FAILED:
        sl_assert(r->phase == RTR_REBALANCE_PHASE_PLANNING ||
                  r->phase == RTR_REBALANCE_PHASE_WRITING);
        fail(r, options, event->why, now);
        return RTR_REBALANCE_NOTHING;
    case RTR_REBALANCE_WRITTEN:
        sl_assert(r->phase == RTR_REBALANCE_PHASE_WRITING);
        r->phase = RTR_REBALANCE_PHASE_ROLLING_OUT;
        r->written_at = now;
        say(r, "placement %" PRIu64 " is being rolled out", r->plan.placement + 1);
        return RTR_REBALANCE_NOTHING;
    }
    return RTR_REBALANCE_NOTHING;
}
