/* Small parts of a grammar as automata: what is spelled out by many alternatives (one character of
 * a string is some thirty) becomes one node whose texts are the same. Any thread; no I/O. */
#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "model/dfa.h"
#include "model/grammar_parts.h"

#define NODES_MAX   768u /* of a part, shared ones as often as they are met */
#define STATES_MAX  96u
#define SETTLED_MAX 1024u /* parts of a grammar */

/* The node's texts built again in another grammar. NONE: a part that has no automaton, or too much
 * of it. Recursion is as deep as nodes are many. */
static mdl_node copy(const mdl_grammar *from, mdl_node index, mdl_grammar *to)
{
    const mdl_grammar_node *node = &from->nodes[index];
    if (to->node_count > NODES_MAX)
        return MDL_NODE_NONE;
    mdl_node a, b;
    switch ((mdl_node_kind)node->kind) {
    case MDL_NODE_KIND_EMPTY:
        return MDL_NODE_EMPTY;
    case MDL_NODE_KIND_SET:
        return mdl_grammar_set(to, &from->sets[node->a]);
    case MDL_NODE_KIND_LITERAL:
        return mdl_grammar_literal(to, from->text + node->a, node->b);
    case MDL_NODE_KIND_THEN:
    case MDL_NODE_KIND_OR:
        a = copy(from, node->a, to);
        b = a == MDL_NODE_NONE ? MDL_NODE_NONE : copy(from, node->b, to);
        if (b == MDL_NODE_NONE)
            return MDL_NODE_NONE;
        return node->kind == MDL_NODE_KIND_OR ? mdl_grammar_or(to, a, b)
                                              : mdl_grammar_then(to, a, b);
    case MDL_NODE_KIND_REPEAT:
        a = copy(from, node->a, to);
        return a == MDL_NODE_NONE ? a : mdl_grammar_repeat(to, a, node->b, node->c);
    default:
        return MDL_NODE_NONE;
    }
}

static void write_key(const mdl_grammar *part, mdl_node root, sl_buf *out)
{
    sl_buf_append(out, &root, sizeof(root));
    sl_buf_append(out, part->nodes, part->node_count * sizeof(part->nodes[0]));
    sl_buf_append(out, part->sets, part->set_count * sizeof(part->sets[0]));
    sl_buf_append(out, part->text, part->text_size);
}

/* NONE: not met before. */
static mdl_node find(const mdl_grammar *g, const sl_buf *key)
{
    for (uint32_t i = 0; i < g->settled_count; i++)
        if (g->settled[i].key_size == key->size &&
            memcmp(g->settled[i].key, key->data, key->size) == 0)
            return g->settled[i].node;
    return MDL_NODE_NONE;
}

/* Half of what automata may have is left for those that there is no doing without. */
static bool has_room(const mdl_grammar *g)
{
    return !g->over && g->settled_count < SETTLED_MAX &&
           g->dfa_states < MDL_GRAMMAR_DFA_STATES_MAX / 2 && g->work < MDL_GRAMMAR_WORK_MAX / 2 &&
           g->dfa_count < MDL_GRAMMAR_SETS_MAX / 2;
}

static void note(mdl_grammar *g, const sl_buf *key, mdl_node node)
{
    mdl_settled one = {.key = sl_alloc(key->size, 1, "settled"), .key_size = key->size};
    memcpy(one.key, key->data, key->size);
    one.node = node;
    g->settled =
        sl_realloc(g->settled, g->settled_count + 1, sizeof(g->settled[0]), "settled parts");
    g->settled[g->settled_count++] = one;
}

mdl_node mdl_grammar_settle(mdl_grammar *g, mdl_node node)
{
    if (node == MDL_NODE_NONE || g->over || g->nodes[node].kind < MDL_NODE_KIND_THEN ||
        g->nodes[node].kind > MDL_NODE_KIND_REPEAT)
        return node;
    mdl_grammar *part = mdl_grammar_create();
    mdl_node root = copy(g, node, part), out = node;
    mdl_dfa *dfa = NULL;
    sl_err ignored;
    sl_buf key;
    sl_buf_init(&key, 0);
    if (root != MDL_NODE_NONE) {
        write_key(part, root, &key);
        mdl_node found = find(g, &key);
        if (found != MDL_NODE_NONE) {
            out = found;
        } else if (has_room(g) && sl_is_ok(mdl_grammar_finish(part, root, &ignored)) &&
                   sl_is_ok(mdl_dfa_create_small(part, STATES_MAX, &dfa, &ignored))) {
            mdl_grammar_count_work(g, dfa);
            out = mdl_grammar_dfa(g, dfa);
            note(g, &key, out);
        }
    }
    sl_buf_fini(&key);
    mdl_grammar_destroy(part);
    return out;
}
