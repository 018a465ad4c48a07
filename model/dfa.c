/* Automata: made by walking a matcher's states, combined by walking pairs of states, trimmed
 * backwards from the accepting ones. Any thread. */
#include "model/dfa.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/grammar_parts.h"
#include "model/matcher.h"

static mdl_dfa *dfa_alloc(uint32_t states_max, uint32_t class_count)
{
    mdl_dfa *dfa = sl_alloc(1, sizeof(*dfa), "dfa");
    dfa->class_count = class_count;
    dfa->accepts = sl_alloc(states_max, sizeof(bool), "dfa");
    dfa->goes_on = sl_alloc(states_max, sizeof(bool), "dfa");
    dfa->next = sl_alloc((size_t)states_max * class_count, sizeof(uint32_t), "dfa");
    return dfa;
}

void mdl_dfa_destroy(mdl_dfa *dfa)
{
    if (!dfa)
        return;
    sl_free(dfa->accepts);
    sl_free(dfa->goes_on);
    sl_free(dfa->next);
    mdl_counter_destroy(dfa->counter);
    sl_free(dfa);
}

/* ---- trimming ---- */

/* Marks the states from which an accepting one can be reached: backwards, until nothing changes.
 * Edges mostly lead to higher numbers, so few passes are needed. */
static void mark_alive(const mdl_dfa *dfa, bool *alive)
{
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t s = dfa->state_count; s-- > 1;) {
            bool now = dfa->accepts[s];
            for (uint32_t c = 0; c < dfa->class_count && !now; c++)
                now = alive[dfa->next[s * dfa->class_count + c]];
            changed |= now && !alive[s];
            alive[s] |= now;
        }
    }
}

static sl_status trim(mdl_dfa *dfa, sl_err *err)
{
    bool *alive = sl_alloc(dfa->state_count, sizeof(bool), "dfa trim");
    uint32_t *name = sl_alloc(dfa->state_count, sizeof(uint32_t), "dfa trim");
    uint32_t count = 1, classes = dfa->class_count;
    mark_alive(dfa, alive);
    bool any = alive[1];
    for (uint32_t s = 1; s < dfa->state_count; s++)
        name[s] = alive[s] ? count++ : 0;
    for (uint32_t s = 1; s < dfa->state_count && any; s++) {
        if (!alive[s])
            continue;
        bool goes_on = false;
        for (uint32_t c = 0; c < classes; c++) {
            uint32_t to = name[dfa->next[s * classes + c]];
            dfa->next[name[s] * classes + c] = to;
            goes_on |= to != 0;
        }
        dfa->accepts[name[s]] = dfa->accepts[s];
        dfa->goes_on[name[s]] = goes_on;
    }
    dfa->state_count = count;
    dfa->next = sl_realloc(dfa->next, (size_t)count * classes, sizeof(uint32_t), "dfa");
    sl_free(alive);
    sl_free(name);
    return any ? sl_ok() : sl_fail(err, SL_INVALID, "no text satisfies it");
}

/* Of a trimmed automaton: in widening circles around the start. Those of few bytes are what counts.
 */
static uint8_t shortest_text(const mdl_dfa *dfa)
{
    uint32_t *order = sl_alloc(dfa->state_count, sizeof(*order), "dfa order");
    bool *seen = sl_alloc(dfa->state_count, sizeof(*seen), "dfa order");
    uint32_t done = 0, count = 0, bytes = 0;
    order[count++] = 1;
    seen[1] = true;
    for (uint32_t end = 1; bytes < MDL_SHORTEST_MAX; bytes++, end = count) {
        while (done < end && !dfa->accepts[order[done]]) {
            const uint32_t *next = dfa->next + order[done++] * dfa->class_count;
            for (uint32_t c = 0; c < dfa->class_count; c++) {
                if (next[c] != 0 && !seen[next[c]])
                    order[count++] = next[c];
                seen[next[c]] = true;
            }
        }
        if (done < end)
            break;
    }
    sl_free(order);
    sl_free(seen);
    return (uint8_t)bytes;
}

/* Hands the trimmed automaton over, or destroys it. */
static sl_status complete(mdl_dfa *dfa, sl_status status, mdl_dfa **out_dfa, sl_err *err)
{
    if (sl_is_ok(status))
        status = trim(dfa, err);
    if (sl_is_ok(status)) {
        dfa->shortest = shortest_text(dfa);
        *out_dfa = dfa;
    } else {
        mdl_dfa_destroy(dfa);
    }
    return status;
}

/* ---- from a grammar ---- */

static sl_status too_many(uint32_t max, sl_err *err)
{
    return sl_fail(err, SL_TOO_LARGE,
                   "too large: its automaton needs more than %u states; make the pattern or the "
                   "number simpler, or the lengths and counts smaller",
                   max);
}

static sl_status walk_matcher(mdl_matcher *matcher, uint32_t states_max, mdl_dfa *dfa, sl_err *err)
{
    /* The matcher numbers its states from 2 in the order of discovery: ours are one less. */
    if (mdl_matcher_start(matcher) == MDL_STATE_FULL)
        return too_many(states_max, err);
    uint8_t class_byte[256];
    for (unsigned byte = 0; byte < 256; byte++)
        class_byte[dfa->class_of[byte]] = (uint8_t)byte;
    for (uint32_t s = MDL_STATE_DEAD + 1; s < mdl_matcher_state_count(matcher); s++) {
        dfa->accepts[s - 1] = mdl_matcher_accepts(matcher, s);
        for (uint32_t c = 0; c < dfa->class_count; c++) {
            uint32_t to = mdl_matcher_byte(matcher, s, class_byte[c]);
            if (to == MDL_STATE_FULL)
                return too_many(states_max, err);
            dfa->next[(s - 1) * dfa->class_count + c] = to - 1;
        }
    }
    dfa->state_count = mdl_matcher_state_count(matcher) - 1;
    return sl_ok();
}

static sl_status create_within(const mdl_grammar *grammar, uint32_t states_max, mdl_dfa **out_dfa,
                               sl_err *err)
{
    mdl_matcher *matcher = mdl_matcher_create(grammar, states_max);
    mdl_dfa *dfa = dfa_alloc(states_max, mdl_matcher_class_count(matcher));
    memcpy(dfa->class_of, mdl_matcher_class_of(matcher), sizeof(dfa->class_of));
    sl_status status = walk_matcher(matcher, states_max, dfa, err);
    mdl_matcher_destroy(matcher);
    return complete(dfa, status, out_dfa, err);
}

sl_status mdl_dfa_create(const mdl_grammar *grammar, mdl_dfa **out_dfa, sl_err *err)
{
    return create_within(grammar, MDL_DFA_MADE_MAX, out_dfa, err);
}

/* ---- the fewest states ---- */

/* Splits blocks of states by where each class leads, until none splits. Returns how many there
 * are; block 0 is the dead state's. */
static uint32_t split_blocks(const mdl_dfa *dfa, uint32_t *block)
{
    uint32_t count = 1, before, *fresh = sl_alloc(dfa->state_count, sizeof(*fresh), "dfa blocks");
    for (uint32_t s = 1; s < dfa->state_count; s++)
        block[s] = 1 + dfa->accepts[s];
    do {
        before = count;
        count = 1;
        for (uint32_t s = 1; s < dfa->state_count; s++) {
            uint32_t like = 1;
            for (; like < s; like++) {
                bool same = block[like] == block[s];
                for (uint32_t c = 0; c < dfa->class_count && same; c++)
                    same = block[dfa->next[like * dfa->class_count + c]] ==
                           block[dfa->next[s * dfa->class_count + c]];
                if (same)
                    break;
            }
            fresh[s] = like < s ? fresh[like] : count++;
        }
        memcpy(block + 1, fresh + 1, (dfa->state_count - 1) * sizeof(*block));
    } while (count != before);
    sl_free(fresh);
    return count;
}

/* The start is the first state looked at, so its block stays number 1. */
static void minimise(mdl_dfa *dfa)
{
    uint32_t *block = sl_alloc(dfa->state_count, sizeof(*block), "dfa blocks");
    uint32_t count = split_blocks(dfa, block);
    for (uint32_t s = 1; s < dfa->state_count; s++) {
        sl_assert(block[s] <= s); /* so that nothing is written before it is read */
        for (uint32_t c = 0; c < dfa->class_count; c++)
            dfa->next[block[s] * dfa->class_count + c] = block[dfa->next[s * dfa->class_count + c]];
        dfa->accepts[block[s]] = dfa->accepts[s];
        dfa->goes_on[block[s]] = dfa->goes_on[s];
    }
    dfa->state_count = count;
    sl_free(block);
}

sl_status mdl_dfa_create_small(const mdl_grammar *grammar, uint32_t states_max, mdl_dfa **out_dfa,
                               sl_err *err)
{
    SL_TRY(create_within(grammar, states_max, out_dfa, err));
    minimise(*out_dfa);
    return sl_ok();
}

bool mdl_dfa_accepts(const mdl_dfa *dfa, const char *text, size_t size)
{
    uint32_t place = MDL_PLACE_START;
    for (size_t i = 0; i < size && place != 0; i++)
        place = mdl_dfa_go(dfa, place, (uint8_t)text[i]);
    return place != 0 && mdl_dfa_place_accepts(dfa, place);
}

/* States in an order in which every step leads on, as far as there is one; where steps lead back,
 * some states never have all that lead to them. */
uint32_t mdl_dfa_longest(const mdl_dfa *dfa)
{
    uint32_t states = dfa->state_count, classes = dfa->class_count, done = 0, ready = 0,
             longest = 0;
    uint32_t *before = sl_alloc(states, sizeof(*before), "automaton steps");
    uint32_t *order = sl_alloc(states, sizeof(*order), "automaton order");
    uint32_t *depth = sl_alloc(states, sizeof(*depth), "automaton depth");
    for (uint32_t i = classes; i < states * classes; i++)
        before[dfa->next[i]]++;
    for (uint32_t s = 1; s < states; s++)
        if (before[s] == 0)
            order[ready++] = s;
    while (done < ready) {
        uint32_t s = order[done++];
        longest = depth[s] > longest ? depth[s] : longest;
        for (uint32_t c = 0; c < classes; c++) {
            uint32_t to = dfa->next[s * classes + c];
            if (to == 0)
                continue;
            depth[to] = depth[s] + 1 > depth[to] ? depth[s] + 1 : depth[to];
            if (--before[to] == 0)
                order[ready++] = to;
        }
    }
    sl_free(before);
    sl_free(order);
    sl_free(depth);
    return done == states - 1 ? longest : UINT32_MAX;
}

/* ---- repetition ---- */

/* Turn k in state s is state k * (states - 1) + s; an accepting state begins the next turn. */
static void fill_turns(const mdl_dfa *one, uint32_t min, uint32_t turns, bool endless, mdl_dfa *out)
{
    uint32_t stride = one->state_count - 1, classes = one->class_count;
    for (uint32_t k = 0; k <= turns; k++) {
        out->accepts[k * stride + 1] = k >= min;
        uint32_t behind = k < turns ? (k + 1) * stride + 1 : k * stride + 1;
        for (uint32_t s = 1; s <= stride && (k < turns || endless); s++) {
            for (uint32_t c = 0; c < classes; c++) {
                uint32_t to = one->next[s * classes + c];
                bool done = to != 0 && one->accepts[to];
                out->next[(k * stride + s) * classes + c] = done ? behind
                                                            : to ? k * stride + to
                                                                 : 0;
            }
        }
    }
    out->state_count = (turns + 1) * stride + 1;
}

sl_status mdl_dfa_repeat(const mdl_dfa *dfa, uint32_t min, uint32_t max, mdl_dfa **out_dfa,
                         sl_err *err)
{
    bool endless = max == MDL_REPEAT_ANY;
    uint32_t turns = endless ? min : max;
    uint64_t states = ((uint64_t)turns + 1) * (dfa->state_count - 1) + 1;
    if (states > MDL_DFA_STATES_MAX)
        return too_many(MDL_DFA_STATES_MAX, err);
    mdl_dfa *out = dfa_alloc((uint32_t)states, dfa->class_count);
    memcpy(out->class_of, dfa->class_of, sizeof(out->class_of));
    fill_turns(dfa, min, turns, endless, out);
    return complete(out, sl_ok(), out_dfa, err);
}

/* ---- pairs ---- */

typedef struct pairs {
    const mdl_dfa *a, *b;
    bool minus; /* a without b; else both */
    uint32_t a_of[MDL_DFA_STATES_MAX], b_of[MDL_DFA_STATES_MAX];
    uint32_t table[4 * MDL_DFA_STATES_MAX];
    uint32_t count;
} pairs;

/* The number of a pair; 0 = dead; UINT32_MAX = no room. */
static uint32_t pair_find(pairs *p, uint32_t a, uint32_t b)
{
    if (a == 0 || (b == 0 && !p->minus))
        return 0;
    uint32_t mask = 4 * MDL_DFA_STATES_MAX - 1, slot = (a * 0x9e3779b1u ^ b * 0x85ebca6bu) & mask;
    for (; p->table[slot]; slot = (slot + 1) & mask)
        if (p->a_of[p->table[slot]] == a && p->b_of[p->table[slot]] == b)
            return p->table[slot];
    if (p->count == MDL_DFA_STATES_MAX)
        return UINT32_MAX;
    p->a_of[p->count] = a;
    p->b_of[p->count] = b;
    p->table[slot] = p->count;
    return p->count++;
}

/* Classes on which both agree: out_class, and a byte of each. */
static uint32_t pair_classes(const mdl_dfa *a, const mdl_dfa *b, uint8_t out_class[256],
                             uint8_t out_byte[256])
{
    uint32_t count = 0;
    for (unsigned byte = 0; byte < 256; byte++) {
        uint32_t c = 0;
        while (c < count && (a->class_of[out_byte[c]] != a->class_of[byte] ||
                             b->class_of[out_byte[c]] != b->class_of[byte]))
            c++;
        if (c == count)
            out_byte[count++] = (uint8_t)byte;
        out_class[byte] = (uint8_t)c;
    }
    return count;
}

static sl_status walk_pairs(pairs *p, mdl_dfa *dfa, const uint8_t class_byte[256], sl_err *err)
{
    p->count = 1;
    (void)pair_find(p, 1, 1);
    for (uint32_t s = 1; s < p->count; s++) {
        bool in_b = p->b_of[s] != 0 && p->b->accepts[p->b_of[s]];
        dfa->accepts[s] = p->a->accepts[p->a_of[s]] && in_b != p->minus;
        for (uint32_t c = 0; c < dfa->class_count; c++) {
            uint32_t a = mdl_dfa_step(p->a, p->a_of[s], class_byte[c]);
            uint32_t b = p->b_of[s] ? mdl_dfa_step(p->b, p->b_of[s], class_byte[c]) : 0;
            uint32_t to = pair_find(p, a, b);
            if (to == UINT32_MAX)
                return too_many(MDL_DFA_STATES_MAX, err);
            dfa->next[s * dfa->class_count + c] = to;
        }
    }
    dfa->state_count = p->count;
    return sl_ok();
}

static sl_status combine(const mdl_dfa *a, const mdl_dfa *b, bool minus, mdl_dfa **out_dfa,
                         sl_err *err)
{
    uint8_t class_of[256], class_byte[256];
    sl_assert(!a->counter && !b->counter);
    mdl_dfa *dfa = dfa_alloc(MDL_DFA_STATES_MAX, pair_classes(a, b, class_of, class_byte));
    memcpy(dfa->class_of, class_of, sizeof(class_of));
    pairs *p = sl_alloc(1, sizeof(*p), "dfa pairs");
    p->a = a;
    p->b = b;
    p->minus = minus;
    sl_status status = walk_pairs(p, dfa, class_byte, err);
    sl_free(p);
    return complete(dfa, status, out_dfa, err);
}

sl_status mdl_dfa_both(const mdl_dfa *a, const mdl_dfa *b, mdl_dfa **out_dfa, sl_err *err)
{
    return combine(a, b, false, out_dfa, err);
}

sl_status mdl_dfa_without(const mdl_dfa *a, const mdl_dfa *b, mdl_dfa **out_dfa, sl_err *err)
{
    return combine(a, b, true, out_dfa, err);
}

/* ---- multiples ---- */

/* States: 1 nothing yet, 2 the sign, 3 a lone zero, then by the remainder of the digits so far: of
 * the whole part, behind the point, behind each digit there. */
enum { MULTIPLE_SIGN = 2, MULTIPLE_ZERO, MULTIPLE_WHOLE };
enum { CLASS_MINUS = 10, CLASS_POINT, CLASS_OTHER, CLASS_COUNT };

static bool divides(uint32_t step, uint64_t rest, uint32_t places)
{
    for (; places > 0; places--)
        rest = rest * 10 % step;
    return rest == 0;
}

static void fill_digits(mdl_dfa *dfa, uint32_t state, uint32_t first, uint32_t rest, uint32_t step)
{
    for (uint32_t d = 0; d < 10; d++)
        dfa->next[state * CLASS_COUNT + d] = first + (uint32_t)((10ull * rest + d) % step);
}

static void fill_multiples(mdl_dfa *dfa, uint32_t step, uint32_t places)
{
    uint32_t point = MULTIPLE_WHOLE + step;
    dfa->next[CLASS_COUNT + CLASS_MINUS] = MULTIPLE_SIGN;
    for (uint32_t state = 1; state <= MULTIPLE_SIGN; state++) {
        fill_digits(dfa, state, MULTIPLE_WHOLE, 0, step);
        dfa->next[state * CLASS_COUNT] = MULTIPLE_ZERO;
    }
    dfa->accepts[MULTIPLE_ZERO] = true;
    if (places > 0)
        dfa->next[MULTIPLE_ZERO * CLASS_COUNT + CLASS_POINT] = point;
    for (uint32_t rest = 0; rest < step; rest++) {
        uint32_t state = MULTIPLE_WHOLE + rest;
        dfa->accepts[state] = divides(step, rest, places);
        fill_digits(dfa, state, MULTIPLE_WHOLE, rest, step);
        if (places > 0)
            dfa->next[state * CLASS_COUNT + CLASS_POINT] = point + rest;
        for (uint32_t seen = 0; seen <= places; seen++) {
            state = point + seen * step + rest;
            dfa->accepts[state] = seen > 0 && divides(step, rest, places - seen);
            if (seen < places)
                fill_digits(dfa, state, point + (seen + 1) * step, rest, step);
        }
    }
}

sl_status mdl_dfa_multiples(uint32_t step, uint32_t places, mdl_dfa **out_dfa, sl_err *err)
{
    uint64_t states = MULTIPLE_WHOLE + (2 + (uint64_t)places) * step;
    sl_assert(step > 0);
    if (states > MDL_DFA_STATES_MAX)
        return too_many(MDL_DFA_STATES_MAX, err);
    mdl_dfa *dfa = dfa_alloc((uint32_t)states, CLASS_COUNT);
    memset(dfa->class_of, CLASS_OTHER, sizeof(dfa->class_of));
    for (unsigned digit = 0; digit < 10; digit++)
        dfa->class_of['0' + digit] = (uint8_t)digit;
    dfa->class_of['-'] = CLASS_MINUS;
    dfa->class_of['.'] = CLASS_POINT;
    dfa->state_count = (uint32_t)states;
    fill_multiples(dfa, step, places);
    return complete(dfa, sl_ok(), out_dfa, err);
}

/* ---- text without marks ---- */

static sl_status text_dfa(const char *const *marks, size_t mark_count, mdl_dfa **out_dfa,
                          sl_err *err)
{
    mdl_grammar *g = mdl_grammar_create();
    mdl_node any = mdl_grammar_code_points(g, 0, 0x10ffff), mark = MDL_NODE_NONE;
    mdl_node text = mdl_grammar_repeat(g, any, 0, MDL_REPEAT_ANY), node = text;
    for (size_t i = 0; i < mark_count; i++)
        mark = mdl_grammar_or(g, mdl_grammar_text(g, marks[i]), mark);
    if (mark_count > 0)
        node = mdl_grammar_then(g, text, mdl_grammar_then(g, mark, text));
    sl_status status = mdl_grammar_finish(g, node, err);
    if (sl_is_ok(status))
        status = mdl_dfa_create(g, out_dfa, err);
    mdl_grammar_destroy(g);
    return status;
}

sl_status mdl_grammar_unmarked(mdl_grammar *grammar, const char *const *marks, size_t mark_count,
                               mdl_node *out_node, sl_err *err)
{
    mdl_dfa *all = NULL, *marked = NULL, *without = NULL;
    sl_status status = text_dfa(NULL, 0, &all, err);
    if (sl_is_ok(status))
        status = text_dfa(marks, mark_count, &marked, err);
    if (sl_is_ok(status))
        status = mdl_dfa_without(all, marked, &without, err);
    mdl_dfa_destroy(all);
    mdl_dfa_destroy(marked);
    if (sl_is_ok(status))
        *out_node = mdl_grammar_dfa(grammar, without);
    return status;
}
