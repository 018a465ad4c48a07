/* Automata that count characters: a length beside what a text must be, without the product of the
 * automaton and the length.
 *
 * A place is a state and how many characters ended before it. It lies on the way to a text if some
 * number of characters that may be left there leads to a length within the bounds. Which numbers
 * may be left is known as sets of states, one for each number (without a longest length: for that
 * number or more). Each set follows from the one before, so that from some number on they go in a
 * circle. Any thread. */
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/dfa.h"
#include "model/grammar_parts.h"

#define VISITS_MAX  (1u << 24) /* edges looked at while making the sets: some 30 ms */
#define VISITS_WORK 256u       /* of them cost what a closure does */
#define NONE        UINT32_MAX

/* Where each state leads: distinct states, [begin[s], begin[s + 1]). */
typedef struct edges {
    uint32_t *begin, *to;
} edges;

static edges edges_of(const mdl_dfa *dfa)
{
    edges e = {.begin = sl_alloc(dfa->state_count + 1, sizeof(*e.begin), "counter edges"),
               .to = sl_alloc((size_t)dfa->state_count * dfa->class_count, sizeof(*e.to),
                              "counter edges")};
    uint32_t *seen = sl_alloc(dfa->state_count, sizeof(*seen), "counter edges"), count = 0;
    for (uint32_t s = 1; s < dfa->state_count; s++) {
        e.begin[s] = count;
        for (uint32_t c = 0; c < dfa->class_count; c++) {
            uint32_t to = dfa->next[s * dfa->class_count + c];
            if (to != 0 && seen[to] != s)
                e.to[count++] = to;
            seen[to] = s;
        }
    }
    e.begin[dfa->state_count] = count;
    sl_free(seen);
    return e;
}

static void edges_free(edges *e)
{
    sl_free(e->begin);
    sl_free(e->to);
}

/* ---- the sets ---- */

static bool has(const uint64_t *set, uint32_t state)
{
    return set[state / 64] >> (state % 64) & 1;
}

static void put(uint64_t *set, uint32_t state)
{
    set[state / 64] |= 1ull << (state % 64);
}

static uint64_t *set_at(const mdl_counter *k, uint32_t left)
{
    return k->left + (size_t)left * k->words;
}

static bool is_same(const mdl_counter *k, uint32_t a, uint32_t b)
{
    return memcmp(set_at(k, a), set_at(k, b), k->words * sizeof(*k->left)) == 0;
}

/* Adds the states with an edge to one of `to`: those whose entering ends a character, or the
 * others. Edges mostly lead to higher numbers. Returns whether there were any. */
static bool add_before(const mdl_dfa *dfa, const edges *e, bool ends, const uint64_t *to,
                       uint64_t *set)
{
    bool added = false;
    for (uint32_t s = dfa->state_count; s-- > 1;) {
        bool found = has(set, s);
        if (found)
            continue;
        for (uint32_t i = e->begin[s]; i < e->begin[s + 1] && !found; i++)
            found = dfa->counter->ends[e->to[i]] == ends && has(to, e->to[i]);
        if (found)
            put(set, s);
        added |= found;
    }
    return added;
}

/* Set `left` from the one before. */
static void make_set(mdl_dfa *dfa, const edges *e, uint32_t left)
{
    mdl_counter *k = dfa->counter;
    uint64_t *set = set_at(k, left);
    uint32_t passes = 1;
    memset(set, 0, k->words * sizeof(*set));
    (void)add_before(dfa, e, true, set_at(k, left - 1), set);
    while (add_before(dfa, e, false, set, set))
        passes++;
    k->visits += (passes + 1) * e->begin[dfa->state_count];
}

/* Returns whether it is known of all states now. */
static bool note_least(mdl_dfa *dfa, uint32_t left)
{
    mdl_counter *k = dfa->counter;
    bool all = true;
    for (uint32_t s = 1; s < dfa->state_count; s++) {
        if (k->least[s] == NONE && has(set_at(k, left), s))
            k->least[s] = k->least_max = left; /* they come in ascending order */
        all &= k->least[s] != NONE;
    }
    return all;
}

/* The circle as early as it is one. */
static void begin_circle(mdl_counter *k, uint32_t first, uint32_t end)
{
    k->period = end - first;
    while (first > 0 && is_same(k, first - 1, first - 1 + k->period))
        first--;
    k->first = first;
    k->left_count = first + k->period;
}

/* Without a circle, the sets are all that is ever asked for. */
static void note_most(mdl_dfa *dfa)
{
    mdl_counter *k = dfa->counter;
    for (uint32_t left = 0; left < k->left_count; left++)
        for (uint32_t s = 1; s < dfa->state_count; s++)
            if (has(set_at(k, left), s))
                k->most[s] = k->period > 0 && left >= k->first ? NONE : left;
}

static void first_set(mdl_dfa *dfa)
{
    mdl_counter *k = dfa->counter;
    k->left_count = 1;
    for (uint32_t s = 1; s < dfa->state_count; s++) {
        k->least[s] = NONE;
        if (dfa->accepts[s] || k->max == MDL_REPEAT_ANY)
            put(k->left, s);
    }
}

/* As many as are asked for, or until they repeat. */
static sl_status make_sets(mdl_dfa *dfa, const edges *e, sl_err *err)
{
    mdl_counter *k = dfa->counter;
    uint32_t capacity = 16, mark = 0, most = k->max == MDL_REPEAT_ANY ? k->min : k->max;
    k->words = (dfa->state_count + 63) / 64;
    k->left = sl_alloc((size_t)capacity * k->words, sizeof(*k->left), "counter sets");
    first_set(dfa);
    /* Without a shortest length only the fewest characters left are asked for. */
    while (!(note_least(dfa, k->left_count - 1) && k->min == 0) && k->left_count <= most) {
        if (k->left_count == capacity) {
            capacity *= 2;
            k->left =
                sl_realloc(k->left, (size_t)capacity * k->words, sizeof(*k->left), "counter sets");
        }
        uint32_t left = k->left_count++;
        make_set(dfa, e, left);
        if (is_same(k, left, mark)) {
            begin_circle(k, mark, left);
            break;
        }
        if (k->visits > VISITS_MAX)
            return sl_fail(err, SL_TOO_LARGE,
                           "too large: the lengths beside the pattern take too long to count; make "
                           "the pattern or the lengths smaller");
        if ((left & (left - 1)) == 0) /* a circle is met when the mark is in it and as old */
            mark = left;
    }
    return sl_ok();
}

/* ---- making ---- */

/* Marks the states that are entered by the last byte of a character: each of them stands at one
 * place of `one`, since the automaton is a product with it. */
static void mark_ends(mdl_dfa *dfa, const mdl_dfa *one)
{
    uint32_t *in_one = sl_alloc(dfa->state_count, sizeof(*in_one), "counter marks");
    uint32_t *order = sl_alloc(dfa->state_count, sizeof(*order), "counter marks"), count = 0;
    in_one[1] = 1;
    order[count++] = 1;
    for (uint32_t done = 0; done < count; done++) {
        for (unsigned byte = 0; byte < 256; byte++) {
            uint32_t to = mdl_dfa_step(dfa, order[done], byte);
            if (to == 0)
                continue;
            uint32_t at = mdl_dfa_step(one, in_one[order[done]], byte);
            bool ends = one->accepts[at];
            at = ends ? 1 : at;
            if (in_one[to] == 0)
                order[count++] = to;
            sl_assert(at != 0 && (in_one[to] == 0 || in_one[to] == at));
            in_one[to] = at;
            dfa->counter->ends[to] |= ends;
        }
    }
    sl_free(in_one);
    sl_free(order);
}

static sl_status begin(mdl_dfa *dfa, const mdl_dfa *one, uint32_t min, uint32_t max, sl_err *err)
{
    mdl_counter *k = sl_alloc(1, sizeof(*k), "counter");
    uint64_t counts = (max == MDL_REPEAT_ANY ? min : max) + 1ull;
    dfa->counter = k;
    k->min = min;
    k->max = max;
    k->ends = sl_alloc(dfa->state_count, sizeof(*k->ends), "counter");
    k->least = sl_alloc(dfa->state_count, sizeof(*k->least), "counter");
    k->most = sl_alloc(dfa->state_count, sizeof(*k->most), "counter");
    if (counts * dfa->state_count >= UINT32_MAX)
        return sl_fail(err, SL_TOO_LARGE, "too large: make the pattern or the lengths smaller");
    mark_ends(dfa, one);
    edges e = edges_of(dfa);
    sl_status status = make_sets(dfa, &e, err);
    if (sl_is_ok(status))
        note_most(dfa);
    edges_free(&e);
    return status;
}

static bool may_end(const mdl_dfa *dfa, uint32_t state, uint32_t count);

sl_status mdl_dfa_count(const mdl_dfa *dfa, const mdl_dfa *one, uint32_t min, uint32_t max,
                        mdl_dfa **out_dfa, sl_err *err)
{
    mdl_dfa *any = NULL, *out = NULL;
    if (min > max)
        return sl_fail(err, SL_INVALID, "is less than minLength");
    sl_status status = mdl_dfa_repeat(one, 0, MDL_REPEAT_ANY, &any, err);
    if (sl_is_ok(status))
        status = mdl_dfa_both(dfa, any, &out, err);
    mdl_dfa_destroy(any);
    if (sl_is_ok(status))
        status = begin(out, one, min, max, err);
    if (sl_is_ok(status) && !may_end(out, 1, 0))
        status = sl_fail(err, SL_INVALID, "no text satisfies it");
    if (sl_is_ok(status)) {
        out->shortest = out->shortest > min      ? out->shortest
                        : min < MDL_SHORTEST_MAX ? (uint8_t)min
                                                 : MDL_SHORTEST_MAX;
        *out_dfa = out;
    } else {
        mdl_dfa_destroy(out);
    }
    return status;
}

void mdl_counter_destroy(mdl_counter *counter)
{
    if (!counter)
        return;
    sl_free(counter->ends);
    sl_free(counter->least);
    sl_free(counter->most);
    sl_free(counter->left);
    sl_free(counter);
}

uint64_t mdl_counter_work(const mdl_counter *counter)
{
    return counter ? counter->visits / VISITS_WORK : 0;
}

/* ---- walking ---- */

/* Can a text be ended from here? */
static bool may_end(const mdl_dfa *dfa, uint32_t state, uint32_t count)
{
    const mdl_counter *k = dfa->counter;
    uint32_t from = count < k->min ? k->min - count : 0, to = from;
    if (k->max != MDL_REPEAT_ANY) {
        if (count > k->max || k->least[state] == NONE || k->least[state] > k->max - count)
            return false;
        if (k->least[state] >= from)
            return true;
        to = k->max - count;
    }
    if (k->most[state] < from) /* a circle may be long */
        return false;
    /* Once round the circle says all. */
    uint32_t last =
        k->period == 0 ? k->left_count - 1 : (from < k->first ? k->first : from) + k->period - 1;
    for (uint32_t left = from; left <= to && left <= last; left++) {
        uint32_t set = left < k->left_count ? left : k->first + (left - k->first) % k->period;
        if (has(set_at(k, set), state))
            return true;
    }
    return false;
}

/* From a place with so many characters before it to a state. */
static uint32_t enter(const mdl_dfa *dfa, uint32_t count, uint32_t to)
{
    const mdl_counter *k = dfa->counter;
    if (to == 0)
        return 0;
    if (k->ends[to] && !(k->max == MDL_REPEAT_ANY && count == k->min))
        count++;
    return may_end(dfa, to, count) ? count * dfa->state_count + to : 0;
}

uint32_t mdl_counted_step(const mdl_dfa *dfa, uint32_t place, unsigned byte)
{
    return enter(dfa, place / dfa->state_count, mdl_dfa_step(dfa, place % dfa->state_count, byte));
}

bool mdl_counted_accepts(const mdl_dfa *dfa, uint32_t place)
{
    return dfa->accepts[place % dfa->state_count] && place / dfa->state_count >= dfa->counter->min;
}

bool mdl_counted_goes_on(const mdl_dfa *dfa, uint32_t place)
{
    const uint32_t *next = dfa->next + place % dfa->state_count * dfa->class_count;
    for (uint32_t c = 0; c < dfa->class_count; c++)
        if (enter(dfa, place / dfa->state_count, next[c]) != 0)
            return true;
    return false;
}

uint32_t mdl_counted_near(const mdl_dfa *dfa, uint32_t place, uint32_t margin)
{
    const mdl_counter *k = dfa->counter;
    uint32_t state = place % dfa->state_count, count = place / dfa->state_count;
    if (count < k->min) {
        /* No text ends within the margin, and behind it the same may be left for all. */
        uint32_t far = k->min - count;
        return k->period == 1 && far > margin && far - margin >= k->first ? state : place;
    }
    /* All that may be left anywhere still fits behind the margin. */
    if (k->max != MDL_REPEAT_ANY && k->max - count >= margin &&
        k->max - count - margin >= k->least_max)
        return k->min * dfa->state_count + state;
    return place;
}
