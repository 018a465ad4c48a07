/* Placement: least loaded decode rank that has room and a matching prefill rank. Pure. */
#include "router/placement.h"

#include <string.h>

bool rtr_stamp_equal(const clu_stamp *a, const clu_stamp *b)
{
    return strcmp(a->numerics_id, b->numerics_id) == 0 &&
           strcmp(a->model_hash, b->model_hash) == 0 &&
           strcmp(a->weights_version, b->weights_version) == 0 &&
           strcmp(a->cache_format, b->cache_format) == 0;
}

bool rtr_stamp_is_model(const clu_stamp *stamp, const char *identity)
{
    return !identity || strncmp(stamp->model_hash, identity, strlen(identity)) == 0;
}

static bool listed(const uint64_t *list, uint32_t count, uint64_t id)
{
    for (uint32_t i = 0; i < count; i++) {
        if (list[i] == id)
            return true;
    }
    return false;
}

static bool model_matches(const rtr_place_query *q, const rtr_candidate *c)
{
    return rtr_stamp_is_model(c->stamp, q->model_identity);
}

static bool has_room(const rtr_place_query *q, const rtr_candidate *c)
{
    return c->slots_free > c->pending && c->pages_free >= c->pages_pending &&
           c->pages_free - c->pages_pending >= q->pages;
}

/* < 0: a is the better decode rank. */
static int compare_decode(const rtr_candidate *a, const rtr_candidate *b)
{
    uint64_t load_a = (uint64_t)a->running + a->pending;
    uint64_t load_b = (uint64_t)b->running + b->pending;
    if (load_a != load_b)
        return load_a < load_b ? -1 : 1;
    if (a->pages_free != b->pages_free)
        return a->pages_free > b->pages_free ? -1 : 1;
    return strcmp(a->name, b->name);
}

static int compare_prefill(const rtr_candidate *a, const rtr_candidate *b)
{
    uint64_t work_a = a->queued_tokens + a->tokens_pending;
    uint64_t work_b = b->queued_tokens + b->tokens_pending;
    if (work_a != work_b)
        return work_a < work_b ? -1 : 1;
    uint64_t load_a = (uint64_t)a->running + a->pending;
    uint64_t load_b = (uint64_t)b->running + b->pending;
    if (load_a != load_b)
        return load_a < load_b ? -1 : 1;
    return strcmp(a->name, b->name);
}

/* One that has the prompt's pages saves computing them, unless it is busier by more than that. */
static bool is_worth_waiting(const rtr_place_query *q, const rtr_candidate *warm,
                             const rtr_candidate *best)
{
    return warm->queued_tokens + warm->tokens_pending <=
           best->queued_tokens + best->tokens_pending + q->tokens;
}

typedef struct prefill_choice {
    const rtr_candidate *best;
    bool any_usable; /* matching, but it refused this request a moment ago */
    bool any_paused; /* matching */
} prefill_choice;

/* Then nobody needs to compute them. */
static bool has_pages(const rtr_place_query *q, const clu_stamp *stamp)
{
    const rtr_candidate *c = q->source;
    return c && c->usable && rtr_stamp_equal(c->stamp, stamp) &&
           !listed(q->request->refused_prefill, q->request->refused_prefill_count, c->id);
}

static prefill_choice choose_prefill(const rtr_place_query *q, const clu_stamp *stamp)
{
    prefill_choice choice = {NULL, false, false};
    const rtr_candidate *warm = NULL;
    if (has_pages(q, stamp))
        return (prefill_choice){q->source, true, false};
    for (size_t i = 0; i < q->prefill_count; i++) {
        const rtr_candidate *c = &q->prefills[i];
        if (!c->usable || !rtr_stamp_equal(c->stamp, stamp))
            continue;
        choice.any_paused = choice.any_paused || c->paused;
        if (c->paused)
            continue;
        choice.any_usable = true;
        if (q->request &&
            listed(q->request->refused_prefill, q->request->refused_prefill_count, c->id))
            continue;
        if (!choice.best || compare_prefill(c, choice.best) < 0)
            choice.best = c;
        if (q->request && c->id == q->request->warm_prefill)
            warm = c;
    }
    if (warm && is_worth_waiting(q, warm, choice.best))
        choice.best = warm;
    return choice;
}

void rtr_place(const rtr_place_query *q, rtr_place_result *out)
{
    const rtr_candidate *decode = NULL;
    const rtr_candidate *prefill = NULL;
    bool any_decode = false, any_room = false, any_prefill = false, any_paused = false;
    for (size_t i = 0; i < q->decode_count; i++) {
        const rtr_candidate *c = &q->decodes[i];
        bool kept = q->keep_decode && c->id == q->keep_decode;
        if (!kept && (q->keep_decode || !c->usable || !model_matches(q, c)))
            continue;
        if (!kept && c->paused) {
            any_paused = true;
            continue;
        }
        any_decode = true;
        if (!kept && q->request &&
            listed(q->request->refused_decode, q->request->refused_decode_count, c->id))
            continue;
        if (!kept && !has_room(q, c))
            continue;
        any_room = true;
        prefill_choice choice = choose_prefill(q, c->stamp);
        any_prefill = any_prefill || choice.any_usable;
        any_paused = any_paused || choice.any_paused;
        if (!choice.best && (choice.any_usable || !q->self_prefill))
            continue;
        bool better = !decode || (choice.best && !prefill) ||
                      (!!choice.best == !!prefill && compare_decode(c, decode) < 0);
        if (better) {
            decode = c;
            prefill = choice.best;
        }
    }
    memset(out, 0, sizeof *out);
    if (decode) {
        out->decode = decode->id;
        out->prefill = prefill ? prefill->id : 0;
    } else if (any_paused && (!any_decode || (any_room && !any_prefill))) {
        out->lack = RTR_LACK_PAUSED;
    } else if (!any_decode) {
        out->lack = RTR_LACK_DECODE;
    } else if (!any_room || any_prefill) {
        out->lack = RTR_LACK_ROOM;
    } else {
        out->lack = RTR_LACK_PREFILL;
    }
}

static const char *decode_verdict(const rtr_place_query *q, const rtr_candidate *c)
{
    if (!model_matches(q, c))
        return "serves another model";
    if (!c->usable)
        return "cannot be used: not ready, cordoned or in doubt";
    if (c->paused)
        return "is paused";
    if (q->request && listed(q->request->refused_decode, q->request->refused_decode_count, c->id))
        return "has refused it a moment ago";
    return has_room(q, c) ? "is busier, or without a prefill node" : "has no room for it";
}

const char *rtr_place_verdict(const rtr_place_query *q, const rtr_place_result *result,
                              const rtr_candidate *c, bool is_decode, const rtr_candidate *decode)
{
    bool taken = result->lack == RTR_LACK_NONE;
    if (taken && c->id == (is_decode ? result->decode : result->prefill))
        return q->keep_decode && is_decode ? "is kept: it has the request" : "is taken";
    if (is_decode)
        return decode_verdict(q, c);
    if (decode && !rtr_stamp_equal(c->stamp, decode->stamp))
        return "has other weights or numerics than the decode node";
    if (!c->usable)
        return "cannot be used: not ready, cordoned or in doubt";
    if (c->paused)
        return "is paused";
    if (q->request && listed(q->request->refused_prefill, q->request->refused_prefill_count, c->id))
        return "has refused it a moment ago";
    return taken ? "has more to do" : "would do";
}
