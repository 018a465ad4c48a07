/* Deterministic automata over bytes, for what a grammar cannot say: both of two, one but not the
 * other.
 *
 * Made from a finished grammar, combined, and handed to another grammar as a node. Trimmed: an
 * accepting state can be reached from every state, so no dead end can be entered. Immutable.
 * Thread: any. */
#ifndef MODEL_DFA_H
#define MODEL_DFA_H

#include "model/grammar.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MDL_DFA_MADE_MAX   2048u /* states of one made from a grammar: each costs a closure */
#define MDL_DFA_STATES_MAX 8192u /* of one combined */

void mdl_dfa_destroy(mdl_dfa *dfa);
/* Symbols count as dead ends. SL_TOO_LARGE: more states than MDL_DFA_MADE_MAX; SL_INVALID: no text
 * matches. */
SL_MUST_USE sl_status mdl_dfa_create(const mdl_grammar *grammar, mdl_dfa **out_dfa, sl_err *err);
/* The same of at most states_max states (few: the time is their square), and then with the fewest
 * that will do. */
SL_MUST_USE sl_status mdl_dfa_create_small(const mdl_grammar *grammar, uint32_t states_max,
                                           mdl_dfa **out_dfa, sl_err *err);
bool mdl_dfa_accepts(const mdl_dfa *dfa, const char *text, size_t size);
/* Bytes of the longest text; UINT32_MAX: there is always a longer one. */
uint32_t mdl_dfa_longest(const mdl_dfa *dfa);
/* min to max (MDL_REPEAT_ANY) texts of an automaton none of whose texts begins another. */
SL_MUST_USE sl_status mdl_dfa_repeat(const mdl_dfa *dfa, uint32_t min, uint32_t max,
                                     mdl_dfa **out_dfa, sl_err *err);
/* Texts of both, and texts of a that are none of b. */
SL_MUST_USE sl_status mdl_dfa_both(const mdl_dfa *a, const mdl_dfa *b, mdl_dfa **out_dfa,
                                   sl_err *err);
SL_MUST_USE sl_status mdl_dfa_without(const mdl_dfa *a, const mdl_dfa *b, mdl_dfa **out_dfa,
                                      sl_err *err);
/* Texts of an automaton that are min to max (MDL_REPEAT_ANY) texts of `one` (as for repeat), which
 * are counted while the automaton runs: its states do not become more, and it cannot be combined
 * any more. */
SL_MUST_USE sl_status mdl_dfa_count(const mdl_dfa *dfa, const mdl_dfa *one, uint32_t min,
                                    uint32_t max, mdl_dfa **out_dfa, sl_err *err);
/* Decimal numbers that are a multiple of step / 10^places, step > 0: with at most `places` digits
 * behind the point, without exponent. */
SL_MUST_USE sl_status mdl_dfa_multiples(uint32_t step, uint32_t places, mdl_dfa **out_dfa,
                                        sl_err *err);
/* Any text in which none of the marks occurs, as a node. */
SL_MUST_USE sl_status mdl_grammar_unmarked(mdl_grammar *grammar, const char *const *marks,
                                           size_t mark_count, mdl_node *out_node, sl_err *err);

/* The node's texts as an automaton of few states, where there is one: a matcher then holds one cell
 * where it would hold one for each alternative. Else, and for rules and symbols, the node itself.
 */
mdl_node mdl_grammar_settle(mdl_grammar *grammar, mdl_node node);

#ifdef __cplusplus
}
#endif
#endif
