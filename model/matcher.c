/* The lazy automaton over a grammar.
 *
 * A cell is a stack: a node to be matched, how far it is (bytes of a literal, turns of a repeat, a
 * DFA's place), and the cell below, which is matched afterwards. Equal stacks are one cell. A state
 * is the set of cells whose next byte is open; stepping follows those that take the byte and
 * expands what comes to the top. Everything lives in tables of fixed size; a cell's `next` is
 * always older than the cell, which is what lets keep_only compact them in place. */
#include "model/matcher.h"

#include <stdatomic.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/grammar_parts.h"

#define CELLS_PER_STATE 32u
#define SETS_PER_STATE  64u
#define SET_MAX         8192u /* cells of one state: some objects of 1,024 properties at once */
#define WORK_MAX        32768u
#define CHAIN_MAX \
    1024u /* cells on one another, for mdl_matcher_near; the others stay as they are */
#define TABLE_BEGIN \
    1024u /* slots in use at first: memory not touched yet costs more than a search */
#define ALIKE_MAX \
    4u /* cells of a state whose steps are noted for all classes of bytes that are alike to it */
#define PLAIN_MIXED 0xffu
#define WORD_MIXED  UINT32_MAX
#define BOTTOM      0u /* the cell below the last: popping it accepts */

typedef struct cell {
    uint32_t node, progress, next, level;
} cell;

typedef struct future {
    uint32_t begin, count; /* in sets */
    bool accepts;
    uint8_t plain; /* of mdl_matcher_plain_run: 0 = not known, else one more, or PLAIN_MIXED */
    uint32_t near, near_far; /* 0 = not known */
    /* [sets - 1], any byte of these: 0 = not known, or WORD_MIXED */
    uint32_t behind[MDL_WORD_OTHER - 1];
} future;

struct mdl_matcher {
    const mdl_grammar *grammar;
    uint64_t id;
    uint32_t epoch;
    uint8_t class_of[256];
    uint8_t class_byte[256]; /* one byte of each class */
    uint32_t class_count, symbol_count;

    cell *cells;
    uint32_t *stamps;  /* [cell]: last closure that saw it */
    uint32_t *turns;   /* [cell]: fewest turns with which that closure saw it; scratch */
    uint32_t *cell_of; /* hash table, of which cell_mask + 1 slots are in use */
    uint32_t cell_count, cells_max, cell_mask;
    uint32_t stamp;

    future *states;
    uint32_t *rows; /* [state][symbol]: 0 = not known yet */
    uint32_t *sets;
    uint32_t *state_of; /* hash table, likewise */
    uint32_t state_count, states_max, state_mask;
    uint32_t set_used, sets_max;
    uint32_t start;

    uint32_t work[WORK_MAX];
    uint32_t work_count;
    uint32_t result[SET_MAX];
    uint32_t result_count;
    bool accepts;
    bool full;
};

/* Of a hash table for so many: at most half full. */
static uint32_t table_size(uint32_t max)
{
    uint32_t size = TABLE_BEGIN;
    while (size < 2 * max)
        size *= 2;
    return size;
}

mdl_matcher *mdl_matcher_create(const mdl_grammar *grammar, uint32_t states_max)
{
    static _Atomic uint64_t ids;
    mdl_matcher *m = sl_alloc(1, sizeof(*m), "matcher");
    m->grammar = grammar;
    m->id = atomic_fetch_add(&ids, 1) + 1;
    m->class_count = mdl_grammar_classes(grammar, m->class_of);
    m->symbol_count = m->class_count + MDL_SYMBOL_COUNT;
    for (unsigned byte = 0; byte < 256; byte++)
        m->class_byte[m->class_of[byte]] = (uint8_t)byte;
    m->states_max = states_max ? states_max : MDL_MATCHER_STATES_MAX;
    m->cells_max = CELLS_PER_STATE * m->states_max + WORK_MAX;
    m->sets_max = SETS_PER_STATE * m->states_max + SET_MAX;
    m->cell_mask = m->state_mask = TABLE_BEGIN - 1;
    m->cells = sl_alloc(m->cells_max, sizeof(cell), "matcher cells");
    m->stamps = sl_alloc(m->cells_max, sizeof(uint32_t), "matcher cells");
    m->turns = sl_alloc(m->cells_max, sizeof(uint32_t), "matcher cells");
    m->cell_of = sl_alloc(table_size(m->cells_max), sizeof(uint32_t), "matcher cells");
    m->states = sl_alloc(m->states_max, sizeof(future), "matcher states");
    m->rows = sl_alloc((size_t)m->states_max * m->symbol_count, sizeof(uint32_t), "matcher states");
    m->sets = sl_alloc(m->sets_max, sizeof(uint32_t), "matcher states");
    m->state_of = sl_alloc(table_size(m->states_max), sizeof(uint32_t), "matcher states");
    m->cell_count = 1;
    m->state_count = MDL_STATE_DEAD + 1;
    return m;
}

void mdl_matcher_destroy(mdl_matcher *matcher)
{
    if (!matcher)
        return;
    sl_free(matcher->cells);
    sl_free(matcher->stamps);
    sl_free(matcher->turns);
    sl_free(matcher->cell_of);
    sl_free(matcher->states);
    sl_free(matcher->rows);
    sl_free(matcher->sets);
    sl_free(matcher->state_of);
    sl_free(matcher);
}

/* ---- interning ---- */

static uint32_t mix(uint32_t hash, uint32_t value)
{
    hash = (hash ^ value) * 0x9e3779b1u;
    return hash ^ hash >> 15;
}

static uint32_t cell_slot(const mdl_matcher *m, const cell *c)
{
    uint32_t hash = mix(mix(mix(mix(0, c->node), c->progress), c->next), c->level);
    for (uint32_t slot = hash & m->cell_mask;; slot = (slot + 1) & m->cell_mask) {
        uint32_t index = m->cell_of[slot];
        if (index == 0 || memcmp(&m->cells[index], c, sizeof(*c)) == 0)
            return slot;
    }
}

/* All cells anew, over twice the slots. */
static void spread_cells(mdl_matcher *m)
{
    memset(m->cell_of, 0, ((size_t)m->cell_mask + 1) * sizeof(*m->cell_of));
    m->cell_mask = 2 * m->cell_mask + 1;
    for (uint32_t i = 1; i <= m->cell_count; i++)
        m->cell_of[cell_slot(m, &m->cells[i])] = i;
}

/* Without room: BOTTOM, and the matcher is marked full. */
static uint32_t intern_cell(mdl_matcher *m, cell c)
{
    uint32_t slot = cell_slot(m, &c);
    if (m->cell_of[slot])
        return m->cell_of[slot];
    if (m->cell_count == m->cells_max) {
        m->full = true;
        return BOTTOM;
    }
    m->cells[m->cell_count] = c;
    m->cell_of[slot] = m->cell_count;
    if (2 * m->cell_count > m->cell_mask)
        spread_cells(m);
    return m->cell_count++;
}

static uint32_t state_hash(const uint32_t *set, uint32_t count, bool accepts)
{
    uint32_t hash = mix(0, accepts);
    for (uint32_t i = 0; i < count; i++)
        hash = mix(hash, set[i]);
    return hash;
}

/* All states anew, over twice the slots. */
static void spread_states(mdl_matcher *m)
{
    memset(m->state_of, 0, ((size_t)m->state_mask + 1) * sizeof(*m->state_of));
    m->state_mask = 2 * m->state_mask + 1;
    for (uint32_t i = MDL_STATE_DEAD + 1; i <= m->state_count; i++) {
        const future *s = &m->states[i];
        uint32_t slot = state_hash(m->sets + s->begin, s->count, s->accepts) & m->state_mask;
        while (m->state_of[slot])
            slot = (slot + 1) & m->state_mask;
        m->state_of[slot] = i;
    }
}

/* The state of result and accepts. */
static uint32_t intern_state(mdl_matcher *m)
{
    if (m->result_count == 0 && !m->accepts)
        return MDL_STATE_DEAD;
    uint32_t bytes = m->result_count * (uint32_t)sizeof(uint32_t);
    uint32_t slot = state_hash(m->result, m->result_count, m->accepts) & m->state_mask;
    for (; m->state_of[slot]; slot = (slot + 1) & m->state_mask) {
        const future *s = &m->states[m->state_of[slot]];
        if (s->accepts == m->accepts && s->count == m->result_count &&
            memcmp(m->sets + s->begin, m->result, bytes) == 0)
            return m->state_of[slot];
    }
    if (m->state_count == m->states_max || m->set_used + m->result_count > m->sets_max) {
        m->full = true;
        return MDL_STATE_FULL;
    }
    memcpy(m->sets + m->set_used, m->result, bytes);
    m->states[m->state_count] =
        (future){.begin = m->set_used, .count = m->result_count, .accepts = m->accepts};
    m->set_used += m->result_count;
    m->state_of[slot] = m->state_count;
    if (2 * m->state_count > m->state_mask)
        spread_states(m);
    return m->state_count++;
}

/* ---- closure ---- */

static void push(mdl_matcher *m, uint32_t index)
{
    if (m->work_count == WORK_MAX)
        m->full = true;
    else
        m->work[m->work_count++] = index;
}

static void push_cell(mdl_matcher *m, uint32_t node, uint32_t progress, uint32_t next,
                      uint32_t level)
{
    uint32_t index = intern_cell(m, (cell){node, progress, next, level});
    if (!m->full)
        push(m, index);
}

/* Is there still room for the rules that the node's shortest text needs? */
static bool fits(const mdl_matcher *m, uint32_t node, uint32_t level)
{
    return level + m->grammar->nodes[node].height <= MDL_GRAMMAR_NEST_MAX;
}

/* With a body that may be empty, more turns allow less: only the fewest seen count. */
static bool seen_with_fewer_turns(mdl_matcher *m, cell c)
{
    uint32_t progress = c.progress;
    c.progress = UINT32_MAX;
    uint32_t any = intern_cell(m, c);
    if (m->full)
        return true;
    if (m->stamps[any] == m->stamp && m->turns[any] <= progress)
        return true;
    m->stamps[any] = m->stamp;
    m->turns[any] = progress;
    return false;
}

static void expand_repeat(mdl_matcher *m, cell c, const mdl_grammar_node *node)
{
    bool empty_turns = m->grammar->nodes[node->a].shortest == 0;
    if (empty_turns && seen_with_fewer_turns(m, c))
        return;
    if (c.progress >= node->b)
        push(m, c.next);
    if (c.progress >= node->c || !fits(m, node->a, c.level))
        return;
    uint32_t turns = c.progress + 1;
    if (node->c == MDL_REPEAT_ANY && turns > node->b)
        turns = node->b;
    uint32_t again = intern_cell(m, (cell){c.node, turns, c.next, c.level});
    push_cell(m, node->a, 0, again, c.level);
}

/* Of an automaton's cell. */
static uint32_t place_of(const cell *c)
{
    return c->progress ? c->progress : MDL_PLACE_START;
}

static void expand(mdl_matcher *m, uint32_t index)
{
    const mdl_grammar *g = m->grammar;
    cell c = m->cells[index];
    const mdl_grammar_node *node = &g->nodes[c.node];
    uint32_t below;
    switch ((mdl_node_kind)node->kind) {
    case MDL_NODE_KIND_EMPTY:
        push(m, c.next);
        return;
    case MDL_NODE_KIND_THEN:
        below = intern_cell(m, (cell){node->b, 0, c.next, c.level});
        push_cell(m, node->a, 0, below, c.level);
        return;
    case MDL_NODE_KIND_OR:
        if (fits(m, node->b, c.level))
            push_cell(m, node->b, 0, c.next, c.level);
        if (fits(m, node->a, c.level))
            push_cell(m, node->a, 0, c.next, c.level);
        return;
    case MDL_NODE_KIND_REPEAT:
        expand_repeat(m, c, node);
        return;
    case MDL_NODE_KIND_RULE:
        push_cell(m, g->rules[node->a], 0, c.next, c.level + 1);
        return;
    case MDL_NODE_KIND_DFA:
        if (mdl_dfa_place_accepts(g->dfas[node->a], place_of(&c)))
            push(m, c.next);
        if (!mdl_dfa_place_goes_on(g->dfas[node->a], place_of(&c)))
            return;
        break;
    case MDL_NODE_KIND_SET:
    case MDL_NODE_KIND_SYMBOL:
    case MDL_NODE_KIND_LITERAL:
        break;
    }
    if (m->result_count == SET_MAX)
        m->full = true;
    else
        m->result[m->result_count++] = index;
}

static void sort(uint32_t *values, uint32_t count)
{
    /* Shell's sort: sets are short, and mostly in order already. */
    for (uint32_t gap = count / 2; gap > 0; gap /= 2) {
        for (uint32_t i = gap; i < count; i++) {
            uint32_t value = values[i], at = i;
            for (; at >= gap && values[at - gap] > value; at -= gap)
                values[at] = values[at - gap];
            values[at] = value;
        }
    }
}

static void closure_begin(mdl_matcher *m)
{
    m->stamp++;
    m->work_count = 0;
    m->result_count = 0;
    m->accepts = false;
    m->full = false;
}

/* The state of all that the pushed cells can come to without another byte. */
static uint32_t closure_end(mdl_matcher *m)
{
    while (m->work_count > 0 && !m->full) {
        uint32_t index = m->work[--m->work_count];
        if (index == BOTTOM) {
            m->accepts = true;
        } else if (m->stamps[index] != m->stamp) {
            m->stamps[index] = m->stamp;
            expand(m, index);
        }
    }
    if (m->full)
        return MDL_STATE_FULL;
    sort(m->result, m->result_count);
    return intern_state(m);
}

/* ---- stepping ---- */

uint32_t mdl_matcher_start(mdl_matcher *matcher)
{
    if (matcher->start != MDL_STATE_FULL)
        return matcher->start;
    closure_begin(matcher);
    push_cell(matcher, matcher->grammar->root, 0, BOTTOM, 0);
    matcher->start = closure_end(matcher);
    return matcher->start;
}

static void step_cell(mdl_matcher *m, uint32_t index, uint32_t symbol)
{
    const mdl_grammar *g = m->grammar;
    cell c = m->cells[index];
    const mdl_grammar_node *node = &g->nodes[c.node];
    if (node->kind == MDL_NODE_KIND_SYMBOL) {
        if (symbol == m->class_count + node->a)
            push(m, c.next);
        return;
    }
    if (symbol >= m->class_count)
        return;
    uint8_t byte = m->class_byte[symbol];
    if (node->kind == MDL_NODE_KIND_SET) {
        if (mdl_byte_set_has(&g->sets[node->a], byte))
            push(m, c.next);
    } else if (node->kind == MDL_NODE_KIND_LITERAL) {
        if ((uint8_t)g->text[node->a + c.progress] != byte)
            return;
        if (c.progress + 1 == node->b)
            push(m, c.next);
        else
            push_cell(m, c.node, c.progress + 1, c.next, c.level);
    } else {
        const mdl_dfa *dfa = g->dfas[node->a];
        uint32_t to = mdl_dfa_go(dfa, place_of(&c), byte);
        if (to != 0 && !mdl_dfa_place_goes_on(dfa, to))
            push(m, c.next);
        else if (to != 0)
            push_cell(m, c.node, to, c.next, c.level);
    }
}

/* Whether a cell takes both bytes in the same way, or none of them. */
static bool is_alike(const mdl_matcher *m, const cell *c, uint8_t a, uint8_t b)
{
    const mdl_grammar *g = m->grammar;
    const mdl_grammar_node *node = &g->nodes[c->node];
    if (node->kind == MDL_NODE_KIND_SYMBOL)
        return true;
    if (node->kind == MDL_NODE_KIND_SET)
        return mdl_byte_set_has(&g->sets[node->a], a) == mdl_byte_set_has(&g->sets[node->a], b);
    if (node->kind == MDL_NODE_KIND_LITERAL) {
        uint8_t due = (uint8_t)g->text[node->a + c->progress];
        return a != due && b != due;
    }
    const mdl_dfa *dfa = g->dfas[node->a];
    return mdl_dfa_go(dfa, place_of(c), a) == mdl_dfa_go(dfa, place_of(c), b);
}

/* Where one class of bytes leads, others do that no cell tells from it: most lead nowhere. */
static void note_alike(mdl_matcher *m, const future *s, uint32_t *row, uint32_t symbol)
{
    for (uint32_t other = 0; other < m->class_count; other++) {
        bool alike = row[other] == 0;
        for (uint32_t i = 0; i < s->count && alike; i++)
            alike = is_alike(m, &m->cells[m->sets[s->begin + i]], m->class_byte[symbol],
                             m->class_byte[other]);
        if (alike)
            row[other] = row[symbol];
    }
}

static uint32_t step(mdl_matcher *m, uint32_t from, uint32_t symbol)
{
    sl_assert(from >= MDL_STATE_DEAD && from < m->state_count);
    uint32_t *row = &m->rows[(size_t)from * m->symbol_count + symbol];
    if (*row)
        return *row;
    if (from == MDL_STATE_DEAD)
        return MDL_STATE_DEAD;
    const future *s = &m->states[from];
    closure_begin(m);
    for (uint32_t i = 0; i < s->count; i++)
        step_cell(m, m->sets[s->begin + i], symbol);
    *row = closure_end(m);
    if (*row != MDL_STATE_FULL && symbol < m->class_count && s->count <= ALIKE_MAX)
        note_alike(m, s, row - symbol, symbol);
    return *row;
}

uint32_t mdl_matcher_byte(mdl_matcher *matcher, uint32_t state, uint8_t byte)
{
    return step(matcher, state, matcher->class_of[byte]);
}

uint32_t mdl_matcher_symbol(mdl_matcher *matcher, uint32_t state, mdl_symbol symbol)
{
    return step(matcher, state, matcher->class_count + (uint32_t)symbol);
}

bool mdl_matcher_accepts(const mdl_matcher *matcher, uint32_t state)
{
    return matcher->states[state].accepts;
}

/* ---- counts that are far from their bounds ---- */

/* The turns that stand for all that are more than `margin` bytes from where they matter. */
static uint32_t near_turns(const mdl_matcher *m, const mdl_grammar_node *node, uint32_t turns,
                           uint32_t margin)
{
    uint32_t shortest = m->grammar->nodes[node->a].shortest;
    margin = shortest > 1 ? margin / shortest : margin; /* turns that so many bytes may begin */
    if (turns < node->b)
        return node->b - turns > margin ? 0 : turns;
    return node->c == MDL_REPEAT_ANY || node->c - turns > margin ? node->b : turns;
}

/* The cell's progress, with a count that stands for all that are as far. */
static uint32_t near_progress(const mdl_matcher *m, const cell *c, uint32_t margin)
{
    const mdl_grammar_node *node = &m->grammar->nodes[c->node];
    if (node->kind == MDL_NODE_KIND_REPEAT)
        return near_turns(m, node, c->progress, margin);
    if (node->kind != MDL_NODE_KIND_DFA || !m->grammar->dfas[node->a]->counter || !c->progress)
        return c->progress;
    return mdl_counted_near(m->grammar->dfas[node->a], c->progress, margin);
}

/* The stack with its counts changed; itself when there is nothing to change. */
static uint32_t near_cell(mdl_matcher *m, uint32_t index, uint32_t margin)
{
    uint32_t chain[CHAIN_MAX], count = 0, changed = 0;
    for (uint32_t at = index; at != BOTTOM; at = m->cells[at].next) {
        if (count == CHAIN_MAX)
            return index;
        chain[count++] = at;
        if (near_progress(m, &m->cells[at], margin) != m->cells[at].progress)
            changed = count;
    }
    if (changed == 0)
        return index;
    uint32_t next = m->cells[chain[changed - 1]].next;
    while (changed-- > 0) {
        cell c = m->cells[chain[changed]];
        c.progress = near_progress(m, &c, margin);
        c.next = next;
        next = intern_cell(m, c);
    }
    return next;
}

static uint32_t near_state(mdl_matcher *m, uint32_t from, uint32_t margin)
{
    const future *s = &m->states[from];
    uint32_t kept = 0;
    bool changed = false;
    m->full = false;
    m->accepts = s->accepts;
    for (uint32_t i = 0; i < s->count && !m->full; i++) {
        m->result[i] = near_cell(m, m->sets[s->begin + i], margin);
        changed |= m->result[i] != m->sets[s->begin + i];
    }
    if (m->full)
        return MDL_STATE_FULL;
    if (!changed)
        return from;
    sort(m->result, s->count);
    for (uint32_t i = 0; i < s->count; i++)
        if (kept == 0 || m->result[kept - 1] != m->result[i])
            m->result[kept++] = m->result[i];
    m->result_count = kept;
    return intern_state(m);
}

uint32_t mdl_matcher_near(mdl_matcher *matcher, uint32_t state)
{
    future *s = &matcher->states[state];
    if (!s->near)
        s->near = near_state(matcher, state, MDL_REACH);
    return s->near;
}

uint32_t mdl_matcher_near_far(mdl_matcher *matcher, uint32_t state)
{
    future *s = &matcher->states[state];
    if (!s->near_far)
        s->near_far = near_state(matcher, state, MDL_REACH_FAR);
    return s->near_far;
}

/* ---- plain text ---- */

/* Where the plain characters lead from one state. */
typedef struct plain_step {
    mdl_matcher *m;
    uint32_t from, from_near;
    uint32_t to; /* FULL: nowhere yet */
    bool dead, mixed;
} plain_step;

/* A state that is the same but for far counts counts as `from` itself: a loop. */
static void plain_note(plain_step *p, uint32_t to)
{
    if (to == MDL_STATE_DEAD) {
        p->dead = true;
        return;
    }
    uint32_t near = to == MDL_STATE_FULL ? to : near_state(p->m, to, MDL_REACH - 1);
    if (near == p->from_near)
        to = p->from;
    if (near == MDL_STATE_FULL || (p->to != MDL_STATE_FULL && p->to != to))
        p->mixed = true;
    p->to = to;
}

static void plain_bytes(plain_step *p, uint32_t from, int tails, unsigned first, unsigned last)
{
    uint32_t before = UINT32_MAX;
    for (unsigned byte = first; byte <= last && !p->mixed; byte++) {
        uint32_t to = mdl_matcher_byte(p->m, from, (uint8_t)byte);
        if (to == before)
            continue;
        before = to;
        if (tails == 0 || to <= MDL_STATE_DEAD)
            plain_note(p, to);
        else
            plain_bytes(p, to, tails - 1, 0x80, 0xbf);
    }
}

/* A lead byte whose next byte is restricted. */
static void plain_lead(plain_step *p, uint8_t lead, int tails, unsigned first, unsigned last)
{
    uint32_t to = mdl_matcher_byte(p->m, p->from, lead);
    if (to <= MDL_STATE_DEAD)
        plain_note(p, to);
    else
        plain_bytes(p, to, tails - 1, first, last);
}

/* The one state behind any plain character; DEAD: none goes on; FULL: it depends on which. */
static uint32_t behind_plain(mdl_matcher *m, uint32_t from)
{
    plain_step p = {.m = m, .from = from, .from_near = near_state(m, from, MDL_REACH - 1)};
    if (p.from_near == MDL_STATE_FULL)
        return MDL_STATE_FULL;
    plain_bytes(&p, from, 0, 0x20, '"' - 1);
    plain_bytes(&p, from, 0, '"' + 1, '\\' - 1);
    plain_bytes(&p, from, 0, '\\' + 1, 0x7f);
    plain_bytes(&p, from, 1, 0xc2, 0xdf);
    plain_lead(&p, 0xe0, 2, 0xa0, 0xbf);
    plain_bytes(&p, from, 2, 0xe1, 0xec);
    plain_lead(&p, 0xed, 2, 0x80, 0x9f);
    plain_bytes(&p, from, 2, 0xee, 0xef);
    plain_lead(&p, 0xf0, 3, 0x90, 0xbf);
    plain_bytes(&p, from, 3, 0xf1, 0xf3);
    plain_lead(&p, 0xf4, 3, 0x80, 0x8f);
    if (p.mixed || (p.dead && p.to != MDL_STATE_FULL))
        return MDL_STATE_FULL;
    return p.dead ? MDL_STATE_DEAD : p.to;
}

/* How many turns further two states stay alike, within reach. */
static uint32_t alike_for(mdl_matcher *m, uint32_t a, uint32_t b)
{
    for (uint32_t margin = MDL_REACH - 1; margin > 0; margin--) {
        uint32_t near = near_state(m, a, margin);
        if (near != MDL_STATE_FULL && near == near_state(m, b, margin))
            return margin;
    }
    return 0;
}

uint32_t mdl_matcher_plain_run(mdl_matcher *matcher, uint32_t state)
{
    future *states = matcher->states;
    uint32_t chain[MDL_REACH], count = 0, at = state;
    while (count < MDL_REACH && !states[at].plain) {
        uint32_t to = behind_plain(matcher, at);
        if (to <= MDL_STATE_DEAD || to == at) {
            states[at].plain = to == at ? MDL_REACH + 1 : to == MDL_STATE_DEAD ? 1 : PLAIN_MIXED;
            break;
        }
        /* What is alike needs no looking at: there, any character leads where `a` does. */
        uint32_t alike = alike_for(matcher, at, to);
        chain[count++] = at;
        for (at = to; alike > 0 && count < MDL_REACH && !states[at].plain; alike--) {
            chain[count++] = at;
            at = mdl_matcher_byte(matcher, at, 'a');
            if (at == MDL_STATE_FULL)
                return MDL_RUN_MIXED;
        }
    }
    uint32_t run = states[at].plain;
    if (!run) /* of this one it is known: further than the reach */
        return MDL_REACH;
    while (count-- > 0) {
        if (run != PLAIN_MIXED && run <= MDL_REACH)
            run++;
        states[chain[count]].plain = (uint8_t)run;
    }
    return run == PLAIN_MIXED ? MDL_RUN_MIXED : run - 1;
}

/* ---- words ---- */

/* The one state behind any byte of the sets; WORD_MIXED: it depends on which, or no room. */
static uint32_t behind_word(mdl_matcher *m, uint32_t from, unsigned sets)
{
    uint32_t *known = &m->states[from].behind[sets - 1], to = 0;
    for (unsigned byte = '0'; byte <= 'z' && !*known; byte++) {
        if (!(mdl_word_set_of((uint8_t)byte) & sets))
            continue;
        uint32_t one = mdl_matcher_byte(m, from, (uint8_t)byte);
        if (one == MDL_STATE_FULL)
            return WORD_MIXED;
        if (to != 0 && one != to)
            *known = WORD_MIXED;
        to = one;
    }
    return *known ? *known : (*known = to);
}

uint32_t mdl_matcher_behind_word(mdl_matcher *matcher, uint32_t state, unsigned sets)
{
    sl_assert(sets > 0 && sets < MDL_WORD_OTHER);
    uint32_t to = behind_word(matcher, state, sets);
    return to == WORD_MIXED ? MDL_STATE_FULL : to;
}

uint32_t mdl_matcher_word_run(mdl_matcher *matcher, uint32_t state, unsigned sets, uint32_t enough)
{
    sl_assert(sets > 0 && sets < MDL_WORD_OTHER);
    for (uint32_t count = 0; count < enough; count++) {
        uint32_t to = behind_word(matcher, state, sets);
        if (to == WORD_MIXED)
            return MDL_RUN_MIXED;
        if (to == MDL_STATE_DEAD)
            return count;
        if (to == state)
            break;
        state = to;
    }
    return enough;
}

mdl_matcher_rows mdl_matcher_rows_of(const mdl_matcher *matcher)
{
    return (mdl_matcher_rows){matcher->rows, matcher->class_of, matcher->symbol_count};
}

/* ---- forgetting ---- */

static void compact_cells(mdl_matcher *m, const uint32_t *kept, uint32_t kept_count)
{
    uint32_t *renamed = m->turns;
    memset(renamed, 0, m->cell_count * sizeof(*renamed));
    for (uint32_t i = 0; i < kept_count; i++)
        for (uint32_t at = kept[i]; at != BOTTOM && !renamed[at]; at = m->cells[at].next)
            renamed[at] = 1;
    memset(m->cell_of, 0, ((size_t)m->cell_mask + 1) * sizeof(*m->cell_of));
    memset(m->stamps, 0, m->cell_count * sizeof(*m->stamps));
    uint32_t count = 1;
    for (uint32_t at = 1; at < m->cell_count; at++) {
        if (!renamed[at])
            continue;
        cell c = m->cells[at];
        if (c.next != BOTTOM)
            c.next = renamed[c.next];
        m->cells[count] = c;
        m->cell_of[cell_slot(m, &c)] = count;
        renamed[at] = count++;
    }
    m->cell_count = count;
    m->stamp = 0;
}

uint32_t mdl_matcher_keep_only(mdl_matcher *matcher, uint32_t state)
{
    mdl_matcher *m = matcher;
    sl_assert(state >= MDL_STATE_DEAD && state < m->state_count);
    m->result_count = m->states[state].count;
    m->accepts = m->states[state].accepts;
    memcpy(m->result, m->sets + m->states[state].begin, m->result_count * sizeof(uint32_t));
    compact_cells(m, m->result, m->result_count);
    for (uint32_t i = 0; i < m->result_count; i++)
        m->result[i] = m->turns[m->result[i]];
    memset(m->rows, 0, (size_t)m->state_count * m->symbol_count * sizeof(uint32_t));
    memset(m->state_of, 0, ((size_t)m->state_mask + 1) * sizeof(*m->state_of));
    m->state_count = MDL_STATE_DEAD + 1;
    m->set_used = 0;
    m->start = MDL_STATE_FULL;
    m->epoch++;
    return intern_state(m);
}

uint32_t mdl_matcher_epoch(const mdl_matcher *matcher)
{
    return matcher->epoch;
}

uint64_t mdl_matcher_id(const mdl_matcher *matcher)
{
    return matcher->id;
}

uint32_t mdl_matcher_state_count(const mdl_matcher *matcher)
{
    return matcher->state_count;
}

uint32_t mdl_matcher_class_count(const mdl_matcher *matcher)
{
    return matcher->class_count;
}

const uint8_t *mdl_matcher_class_of(const mdl_matcher *matcher)
{
    return matcher->class_of;
}
