/* Building grammars: nodes, sets, literals, rules; and what is known about them once they are
 * finished. Owner's thread; no I/O. */
#include "model/grammar.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/dfa.h"
#include "model/grammar_parts.h"

/* Room for one more element of an array, or false: the bound is reached, and remembered. */
static bool grow(mdl_grammar *g, void **array, uint32_t *capacity, uint32_t count, uint32_t more,
                 uint32_t max, size_t size, const char *what)
{
    if (more > max || count > max - more) {
        if (!g->over)
            g->over = what;
        return false;
    }
    if (count + more <= *capacity)
        return true;
    uint32_t wanted = *capacity ? *capacity : 64;
    while (wanted < count + more)
        wanted *= 2;
    *array = sl_realloc(*array, wanted, size, "grammar");
    *capacity = wanted;
    return true;
}

static mdl_node add(mdl_grammar *g, mdl_node_kind kind, uint32_t a, uint32_t b, uint32_t c)
{
    if (!grow(g, (void **)&g->nodes, &g->node_capacity, g->node_count, 1, MDL_GRAMMAR_NODES_MAX,
              sizeof(g->nodes[0]), "nodes"))
        return MDL_NODE_EMPTY;
    g->nodes[g->node_count] = (mdl_grammar_node){.kind = (uint8_t)kind, .a = a, .b = b, .c = c};
    return g->node_count++;
}

mdl_grammar *mdl_grammar_create(void)
{
    mdl_grammar *g = sl_alloc(1, sizeof(*g), "grammar");
    mdl_node empty = add(g, MDL_NODE_KIND_EMPTY, 0, 0, 0);
    sl_assert(empty == MDL_NODE_EMPTY);
    return g;
}

void mdl_grammar_destroy(mdl_grammar *grammar)
{
    if (!grammar)
        return;
    for (uint32_t i = 0; i < grammar->dfa_count; i++)
        mdl_dfa_destroy(grammar->dfas[i]);
    for (uint32_t i = 0; i < grammar->settled_count; i++)
        sl_free(grammar->settled[i].key);
    sl_free(grammar->settled);
    sl_free(grammar->dfas);
    sl_free(grammar->nodes);
    sl_free(grammar->sets);
    sl_free(grammar->rules);
    sl_free(grammar->text);
    sl_free(grammar);
}

uint32_t mdl_grammar_node_count(const mdl_grammar *grammar)
{
    return grammar->node_count;
}

void mdl_grammar_count_work(mdl_grammar *grammar, const mdl_dfa *dfa)
{
    if (!dfa)
        return;
    grammar->work += (uint64_t)dfa->state_count * dfa->class_count + mdl_counter_work(dfa->counter);
    if (grammar->work > MDL_GRAMMAR_WORK_MAX && !grammar->over)
        grammar->over = "work on automata (patterns with lengths, numbers within bounds)";
}

bool mdl_grammar_is_over(const mdl_grammar *grammar)
{
    return grammar->over != NULL;
}

mdl_node mdl_grammar_set(mdl_grammar *g, const mdl_byte_set *set)
{
    sl_assert(set->bits[0] | set->bits[1] | set->bits[2] | set->bits[3]);
    for (uint32_t i = g->set_count; i-- > 0;)
        if (memcmp(&g->sets[i], set, sizeof(*set)) == 0)
            return add(g, MDL_NODE_KIND_SET, i, 0, 0);
    if (!grow(g, (void **)&g->sets, &g->set_capacity, g->set_count, 1, MDL_GRAMMAR_SETS_MAX,
              sizeof(*set), "character sets"))
        return MDL_NODE_EMPTY;
    g->sets[g->set_count] = *set;
    return add(g, MDL_NODE_KIND_SET, g->set_count++, 0, 0);
}

mdl_node mdl_grammar_symbol(mdl_grammar *g, mdl_symbol symbol)
{
    return add(g, MDL_NODE_KIND_SYMBOL, (uint32_t)symbol, 0, 0);
}

mdl_node mdl_grammar_literal(mdl_grammar *g, const char *text, size_t size)
{
    if (size == 0)
        return MDL_NODE_EMPTY;
    if (!grow(g, (void **)&g->text, &g->text_capacity, g->text_size,
              size > UINT32_MAX ? UINT32_MAX : (uint32_t)size, MDL_GRAMMAR_TEXT_MAX, 1,
              "bytes of fixed text"))
        return MDL_NODE_EMPTY;
    memcpy(g->text + g->text_size, text, size);
    g->text_size += (uint32_t)size;
    return add(g, MDL_NODE_KIND_LITERAL, g->text_size - (uint32_t)size, (uint32_t)size, 0);
}

mdl_node mdl_grammar_text(mdl_grammar *g, const char *text)
{
    return mdl_grammar_literal(g, text, strlen(text));
}

mdl_node mdl_grammar_then(mdl_grammar *g, mdl_node a, mdl_node b)
{
    if (a == MDL_NODE_NONE || b == MDL_NODE_NONE)
        return MDL_NODE_NONE;
    if (a == MDL_NODE_EMPTY)
        return b;
    return b == MDL_NODE_EMPTY ? a : add(g, MDL_NODE_KIND_THEN, a, b, 0);
}

mdl_node mdl_grammar_or(mdl_grammar *g, mdl_node a, mdl_node b)
{
    if (a == MDL_NODE_NONE || a == b)
        return b;
    return b == MDL_NODE_NONE ? a : add(g, MDL_NODE_KIND_OR, a, b, 0);
}

mdl_node mdl_grammar_repeat(mdl_grammar *g, mdl_node node, uint32_t min, uint32_t max)
{
    sl_assert(min <= max);
    if (node == MDL_NODE_NONE)
        return min == 0 ? MDL_NODE_EMPTY : MDL_NODE_NONE;
    if (max == 0 || node == MDL_NODE_EMPTY)
        return MDL_NODE_EMPTY;
    if (min == 1 && max == 1)
        return node;
    if (min > MDL_GRAMMAR_REPEAT_MAX || (max > MDL_GRAMMAR_REPEAT_MAX && max != MDL_REPEAT_ANY)) {
        if (!g->over)
            g->over = "repetitions";
        return MDL_NODE_EMPTY;
    }
    return add(g, MDL_NODE_KIND_REPEAT, node, min, max);
}

mdl_node mdl_grammar_optional(mdl_grammar *g, mdl_node node)
{
    return mdl_grammar_repeat(g, node, 0, 1);
}

mdl_node mdl_grammar_rule(mdl_grammar *g)
{
    if (!grow(g, (void **)&g->rules, &g->rule_capacity, g->rule_count, 1, MDL_GRAMMAR_RULES_MAX,
              sizeof(g->rules[0]), "rules"))
        return MDL_NODE_EMPTY;
    g->rules[g->rule_count] = MDL_NODE_NONE;
    return add(g, MDL_NODE_KIND_RULE, g->rule_count++, 0, 0);
}

void mdl_grammar_define(mdl_grammar *g, mdl_node rule, mdl_node body)
{
    if (g->over)
        return;
    sl_assert(g->nodes[rule].kind == MDL_NODE_KIND_RULE);
    g->rules[g->nodes[rule].a] = body;
}

mdl_node mdl_grammar_dfa(mdl_grammar *g, mdl_dfa *take_dfa)
{
    g->dfa_states += take_dfa->state_count;
    if (g->dfa_states > MDL_GRAMMAR_DFA_STATES_MAX && !g->over)
        g->over = "states of automata (patterns with lengths, numbers within bounds)";
    if (g->over || !grow(g, (void **)&g->dfas, &g->dfa_capacity, g->dfa_count, 1,
                         MDL_GRAMMAR_SETS_MAX, sizeof(g->dfas[0]), "automata")) {
        mdl_dfa_destroy(take_dfa);
        return MDL_NODE_EMPTY;
    }
    g->dfas[g->dfa_count] = take_dfa;
    return add(g, MDL_NODE_KIND_DFA, g->dfa_count++, 0, 0);
}

/* ---- code points ---- */

static mdl_node byte_range(mdl_grammar *g, unsigned first, unsigned last)
{
    mdl_byte_set set = {{0}};
    mdl_byte_set_add(&set, first, last);
    return mdl_grammar_set(g, &set);
}

/* The continuation bytes of code points [first, last] that share all before: count bytes of six
 * bits each. */
static mdl_node tails(mdl_grammar *g, uint32_t first, uint32_t last, int count, unsigned lead)
{
    if (count == 0)
        return byte_range(g, lead | first, lead | last);
    uint32_t size = 1u << (6 * count), head_first = first / size, head_last = last / size;
    first %= size;
    last %= size;
    if (head_first == head_last)
        return mdl_grammar_then(g, byte_range(g, lead | head_first, lead | head_first),
                                tails(g, first, last, count - 1, 0x80));
    mdl_node out = MDL_NODE_NONE;
    if (first != 0) {
        out = mdl_grammar_then(g, byte_range(g, lead | head_first, lead | head_first),
                               tails(g, first, size - 1, count - 1, 0x80));
        head_first++;
    }
    if (last != size - 1) {
        mdl_node end = mdl_grammar_then(g, byte_range(g, lead | head_last, lead | head_last),
                                        tails(g, 0, last, count - 1, 0x80));
        out = mdl_grammar_or(g, out, end);
        head_last--;
    }
    if (head_first <= head_last) {
        mdl_node middle = mdl_grammar_then(g, byte_range(g, lead | head_first, lead | head_last),
                                           tails(g, 0, size - 1, count - 1, 0x80));
        out = mdl_grammar_or(g, out, middle);
    }
    return out;
}

mdl_node mdl_grammar_code_points(mdl_grammar *g, uint32_t first, uint32_t last)
{
    static const struct {
        uint32_t first, last;
        int tails;
        unsigned lead;
    } PARTS[] = {{0, 0x7f, 0, 0},
                 {0x80, 0x7ff, 1, 0xc0},
                 {0x800, 0xd7ff, 2, 0xe0},
                 {0xe000, 0xffff, 2, 0xe0},
                 {0x10000, 0x10ffff, 3, 0xf0}};
    mdl_node out = MDL_NODE_NONE;
    for (size_t i = 0; i < sizeof(PARTS) / sizeof(PARTS[0]); i++) {
        uint32_t low = first > PARTS[i].first ? first : PARTS[i].first;
        uint32_t high = last < PARTS[i].last ? last : PARTS[i].last;
        if (low <= high)
            out = mdl_grammar_or(g, out, tails(g, low, high, PARTS[i].tails, PARTS[i].lead));
    }
    return out;
}

/* ---- words ---- */

static int by_bytes(const void *a, const void *b)
{
    const mdl_word *x = a, *y = b;
    size_t size = x->size < y->size ? x->size : y->size;
    int order = size > 0 ? memcmp(x->data, y->data, size) : 0;
    return order != 0 ? order : (x->size > y->size) - (x->size < y->size);
}

/* Sorted words whose first `at` bytes are equal and spelled already. */
static mdl_node words_from(mdl_grammar *g, const mdl_word *words, size_t count, size_t at)
{
    size_t end = at;
    const mdl_word *last = &words[count - 1];
    while (end < words->size && end < last->size && words->data[end] == last->data[end])
        end++;
    mdl_node rest = MDL_NODE_NONE;
    for (size_t i = 0; i < count;) {
        if (words[i].size == end) {
            rest = mdl_grammar_or(g, rest, MDL_NODE_EMPTY);
            i++;
            continue;
        }
        size_t next = i + 1;
        while (next < count && words[next].data[end] == words[i].data[end])
            next++;
        rest = mdl_grammar_or(g, rest, words_from(g, words + i, next - i, end));
        i = next;
        if (g->over)
            break;
    }
    mdl_node prefix = mdl_grammar_literal(g, words->data + at, end - at);
    return mdl_grammar_then(g, prefix, rest);
}

mdl_node mdl_grammar_words(mdl_grammar *g, mdl_word *words, size_t count)
{
    if (count == 0)
        return MDL_NODE_NONE;
    qsort(words, count, sizeof(words[0]), by_bytes);
    return words_from(g, words, count, 0);
}

/* ---- analysis ---- */

static uint16_t node_height(const mdl_grammar *g, const mdl_grammar_node *node)
{
    const mdl_grammar_node *n = g->nodes;
    uint32_t height;
    switch ((mdl_node_kind)node->kind) {
    case MDL_NODE_KIND_THEN:
        return n[node->a].height > n[node->b].height ? n[node->a].height : n[node->b].height;
    case MDL_NODE_KIND_OR:
        return n[node->a].height < n[node->b].height ? n[node->a].height : n[node->b].height;
    case MDL_NODE_KIND_REPEAT:
        return node->b == 0 ? 0 : n[node->a].height;
    case MDL_NODE_KIND_RULE:
        if (g->rules[node->a] == MDL_NODE_NONE)
            return MDL_HEIGHT_NONE;
        height = n[g->rules[node->a]].height;
        return height >= MDL_HEIGHT_NONE - 1 ? MDL_HEIGHT_NONE : (uint16_t)(height + 1);
    default:
        return 0;
    }
}

static uint8_t node_shortest(const mdl_grammar *g, const mdl_grammar_node *node)
{
    const mdl_grammar_node *n = g->nodes;
    uint64_t bytes = 1;
    switch ((mdl_node_kind)node->kind) {
    case MDL_NODE_KIND_EMPTY:
        return 0;
    case MDL_NODE_KIND_THEN:
        bytes = n[node->a].shortest + n[node->b].shortest;
        break;
    case MDL_NODE_KIND_OR:
        bytes =
            n[node->a].shortest < n[node->b].shortest ? n[node->a].shortest : n[node->b].shortest;
        break;
    case MDL_NODE_KIND_REPEAT:
        bytes = (uint64_t)node->b * n[node->a].shortest;
        break;
    case MDL_NODE_KIND_RULE:
        bytes =
            g->rules[node->a] == MDL_NODE_NONE ? MDL_SHORTEST_MAX : n[g->rules[node->a]].shortest;
        break;
    case MDL_NODE_KIND_DFA:
        return g->dfas[node->a]->shortest;
    case MDL_NODE_KIND_LITERAL:
        bytes = node->b;
        break;
    case MDL_NODE_KIND_SET:
    case MDL_NODE_KIND_SYMBOL:
        break;
    }
    return bytes < MDL_SHORTEST_MAX ? (uint8_t)bytes : MDL_SHORTEST_MAX;
}

/* Both shrink from "cannot end" and "very long" until nothing changes: rules point forwards. */
static void analyse(mdl_grammar *g)
{
    for (uint32_t i = 0; i < g->node_count; i++)
        g->nodes[i].height = MDL_HEIGHT_NONE;
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t i = 0; i < g->node_count; i++) {
            mdl_grammar_node *node = &g->nodes[i];
            uint16_t height = node_height(g, node);
            uint8_t shortest = node_shortest(g, node);
            changed |= height != node->height || shortest != node->shortest;
            node->height = height;
            node->shortest = shortest;
        }
    }
    /* What may be empty may be missing: so a closure never counts empty turns. */
    for (uint32_t i = 0; i < g->node_count; i++)
        if (g->nodes[i].kind == MDL_NODE_KIND_REPEAT && g->nodes[g->nodes[i].a].shortest == 0)
            g->nodes[i].b = 0;
}

sl_status mdl_grammar_finish(mdl_grammar *g, mdl_node root, sl_err *err)
{
    if (g->over)
        return sl_fail(err, SL_TOO_LARGE, "too large: more %s than a constraint may have", g->over);
    if (root == MDL_NODE_NONE)
        return sl_fail(err, SL_INVALID, "no text satisfies it");
    analyse(g);
    g->root = root;
    if (g->nodes[root].height == MDL_HEIGHT_NONE)
        return sl_fail(err, SL_INVALID, "no finite text satisfies it: a recursion never ends");
    if (g->nodes[root].height > MDL_GRAMMAR_NEST_MAX)
        return sl_fail(err, SL_TOO_LARGE, "its shortest text is nested %u deep, at most %u",
                       g->nodes[root].height, MDL_GRAMMAR_NEST_MAX);
    return sl_ok();
}

/* ---- classes of bytes ---- */

/* Splits the classes so that a byte set is a union of some. */
static void refine(uint8_t class_of[256], uint32_t *count, const mdl_byte_set *set)
{
    int inside[256], outside[256];
    memset(inside, -1, sizeof(inside));
    memset(outside, -1, sizeof(outside));
    uint32_t made = 0;
    for (unsigned byte = 0; byte < 256; byte++) {
        int *slot = mdl_byte_set_has(set, byte) ? inside : outside;
        if (slot[class_of[byte]] < 0)
            slot[class_of[byte]] = (int)made++;
        class_of[byte] = (uint8_t)slot[class_of[byte]];
    }
    *count = made;
}

/* Each class of the automaton is a union of some. */
static void refine_by_dfa(uint8_t class_of[256], uint32_t *count, const mdl_dfa *dfa)
{
    for (uint32_t c = 0; c < dfa->class_count; c++) {
        mdl_byte_set same = {{0}};
        for (unsigned byte = 0; byte < 256; byte++)
            if (dfa->class_of[byte] == c)
                mdl_byte_set_add(&same, byte, byte);
        refine(class_of, count, &same);
    }
}

/* Nodes that the root leads to: builders leave some behind. Rules lead anywhere, others back. */
static bool *used_nodes(const mdl_grammar *g)
{
    bool *used = sl_alloc(g->node_count, sizeof(*used), "grammar nodes");
    used[g->root] = true;
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t i = g->node_count; i-- > 0;) {
            const mdl_grammar_node *node = &g->nodes[i];
            if (!used[i])
                continue;
            bool two = node->kind == MDL_NODE_KIND_THEN || node->kind == MDL_NODE_KIND_OR;
            if (two || node->kind == MDL_NODE_KIND_REPEAT)
                used[node->a] = true;
            if (two)
                used[node->b] = true;
            mdl_node body = node->kind == MDL_NODE_KIND_RULE ? g->rules[node->a] : MDL_NODE_NONE;
            if (body != MDL_NODE_NONE && !used[body]) { /* NONE: no text has that name */
                used[body] = true;
                changed |= body > i;
            }
        }
    }
    return used;
}

uint32_t mdl_grammar_classes(const mdl_grammar *g, uint8_t out_class[256])
{
    uint32_t count = 1;
    mdl_byte_set single = {{0}};
    bool *used = used_nodes(g);
    bool *sets = sl_alloc(g->set_count + 1, sizeof(*sets), "grammar sets");
    bool *dfas = sl_alloc(g->dfa_count + 1, sizeof(*dfas), "grammar automata");
    memset(out_class, 0, 256);
    for (uint32_t i = 0; i < g->node_count; i++) {
        const mdl_grammar_node *node = &g->nodes[i];
        if (used[i] && node->kind == MDL_NODE_KIND_SET)
            sets[node->a] = true;
        if (used[i] && node->kind == MDL_NODE_KIND_DFA)
            dfas[node->a] = true;
        for (uint32_t k = 0; used[i] && node->kind == MDL_NODE_KIND_LITERAL && k < node->b; k++)
            mdl_byte_set_add(&single, (uint8_t)g->text[node->a + k], (uint8_t)g->text[node->a + k]);
    }
    for (uint32_t i = 0; i < g->set_count; i++)
        if (sets[i])
            refine(out_class, &count, &g->sets[i]);
    for (unsigned byte = 0; byte < 256; byte++) {
        mdl_byte_set one = {{0}};
        mdl_byte_set_add(&one, byte, byte);
        if (mdl_byte_set_has(&single, byte))
            refine(out_class, &count, &one);
    }
    for (uint32_t i = 0; i < g->dfa_count; i++)
        if (dfas[i])
            refine_by_dfa(out_class, &count, g->dfas[i]);
    sl_free(used);
    sl_free(sets);
    sl_free(dfas);
    return count;
}
