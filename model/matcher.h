/* Runs a grammar over bytes: a deterministic automaton, made state by state as it is needed.
 *
 * A state stands for all that may follow; equal futures are one state. The states' table is bounded
 * and carved at creation, so stepping allocates nothing. When it is full, keep_only forgets all but
 * one state and the epoch counts up: state numbers of former epochs are void, and whoever holds
 * one replays its text. Thread: owner. */
#ifndef MODEL_MATCHER_H
#define MODEL_MATCHER_H

#include "model/grammar.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MDL_MATCHER_STATES_MAX 4096u
#define MDL_STATE_FULL         0u /* the table has no room for the state asked for */
#define MDL_STATE_DEAD         1u /* no text goes on like this */

typedef struct mdl_matcher mdl_matcher;

/* Borrows the grammar. states_max 0 = MDL_MATCHER_STATES_MAX. */
mdl_matcher *mdl_matcher_create(const mdl_grammar *grammar, uint32_t states_max);
void mdl_matcher_destroy(mdl_matcher *matcher);

uint32_t mdl_matcher_start(mdl_matcher *matcher);
uint32_t mdl_matcher_byte(mdl_matcher *matcher, uint32_t state, uint8_t byte);
uint32_t mdl_matcher_symbol(mdl_matcher *matcher, uint32_t state, mdl_symbol symbol);
/* The text may end here. */
bool mdl_matcher_accepts(const mdl_matcher *matcher, uint32_t state);

/* Every text of at most MDL_PLAIN_RUN code points that a JSON string may hold as they are can
 * follow: the case of most states inside strings. False may also mean "not found out": a full
 * table. */
#define MDL_PLAIN_RUN 16u
bool mdl_matcher_takes_plain(mdl_matcher *matcher, uint32_t state);

/* The new number of the state; DEAD keeps none. */
uint32_t mdl_matcher_keep_only(mdl_matcher *matcher, uint32_t state);
uint32_t mdl_matcher_epoch(const mdl_matcher *matcher);
/* Never the same for two matchers of a process. */
uint64_t mdl_matcher_id(const mdl_matcher *matcher);
uint32_t mdl_matcher_state_count(const mdl_matcher *matcher);
/* Classes of bytes that the grammar treats alike, and of which one a byte is. */
uint32_t mdl_matcher_class_count(const mdl_matcher *matcher);
const uint8_t *mdl_matcher_class_of(const mdl_matcher *matcher);

#ifdef __cplusplus
}
#endif
#endif
