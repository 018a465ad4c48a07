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

/* ---- what makes masks cheap: tokens are short ---- */

#define MDL_REACH 32u /* bytes within which the calls below speak */

/* A state with the same futures up to MDL_REACH bytes: counts whose bounds are further away are set
 * to one value, so that the characters of a long string do not each have a mask. FULL: no room. */
uint32_t mdl_matcher_near(mdl_matcher *matcher, uint32_t state);
/* Likewise up to MDL_REACH_FAR bytes: where far is near, near speaks for longer tokens too. */
#define MDL_REACH_FAR 255u
uint32_t mdl_matcher_near_far(mdl_matcher *matcher, uint32_t state);
/* Plain characters are those that a JSON string may hold as they are. How many of them can follow,
 * whichever they are, before none can: at most MDL_REACH. MDL_RUN_MIXED: it depends on which. */
#define MDL_RUN_MIXED UINT32_MAX
uint32_t mdl_matcher_plain_run(mdl_matcher *matcher, uint32_t state);

/* Bytes of words, for branches of a vocabulary that are nothing but words. */
enum mdl_word_set {
    MDL_WORD_LOWER = 1,
    MDL_WORD_UPPER = 2,
    MDL_WORD_DIGIT = 4,
    MDL_WORD_OTHER = 8
};
static inline unsigned mdl_word_set_of(uint8_t byte)
{
    if (byte >= 'a' && byte <= 'z')
        return MDL_WORD_LOWER;
    if (byte >= 'A' && byte <= 'Z')
        return MDL_WORD_UPPER;
    return byte >= '0' && byte <= '9' ? MDL_WORD_DIGIT : MDL_WORD_OTHER;
}
/* The one state behind any byte of the sets (not OTHER). FULL: it depends on which, or no room. */
uint32_t mdl_matcher_behind_word(mdl_matcher *matcher, uint32_t state, unsigned sets);
/* How many bytes of the sets (not OTHER) can follow, whichever they are, before none can; `enough`
 * or more: at least that many. MDL_RUN_MIXED: it depends on which, or the table is full. */
uint32_t mdl_matcher_word_run(mdl_matcher *matcher, uint32_t state, unsigned sets, uint32_t enough);

/* The steps made so far: rows[state * stride + class_of[byte]], 0 = not made yet. Valid as long as
 * the matcher is. */
typedef struct mdl_matcher_rows {
    const uint32_t *rows;
    const uint8_t *class_of;
    uint32_t stride;
} mdl_matcher_rows;
mdl_matcher_rows mdl_matcher_rows_of(const mdl_matcher *matcher);

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
