/* From a grammar's state to the tokens that may come next.
 *
 * mdl_masks belongs to one thread (the engine's) and one tokenizer: the vocabulary as tries of
 * bytes, and the masks made lately, in a cache of fixed size. A cursor follows one answer: it takes
 * in the generated tokens, each once, and says what the next one may be. It is rebuilt from the
 * tokens whenever it must (another node, a matcher that forgot), so it need not be saved. */
#ifndef MODEL_MASKS_H
#define MODEL_MASKS_H

#include "model/matcher.h"
#include "model/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MDL_MASKS_CACHE_BYTES ((size_t)32 << 20)

typedef struct mdl_masks mdl_masks;

/* vocab_size: the model's; tokens beyond it are never allowed. cache_bytes 0 =
 * MDL_MASKS_CACHE_BYTES. */
mdl_masks *mdl_masks_create(const mdl_tokenizer *tokenizer, uint32_t vocab_size,
                            size_t cache_bytes);
void mdl_masks_destroy(mdl_masks *masks);

typedef struct mdl_masks_counts {
    uint64_t made;
    uint64_t found; /* in the cache */
} mdl_masks_counts;
const mdl_masks_counts *mdl_masks_counts_get(const mdl_masks *masks);

typedef struct mdl_cursor {
    mdl_matcher *matcher; /* borrowed; NULL: nothing is constrained */
    uint32_t epoch;
    uint32_t state; /* MDL_STATE_FULL: not begun */
    uint32_t taken; /* generated tokens that are in it */
} mdl_cursor;

typedef struct mdl_cursor_ahead {
    const uint32_t *generated; /* [count] */
    uint32_t count;
    const uint32_t *drafts; /* [draft_count] */
    uint32_t draft_count;
} mdl_cursor_ahead;

/* Bit id of the mask, (vocab_size + 31) / 32 words, says whether id may follow the generated
 * tokens; the end of sentence stands for the end. Never empty. Valid until the next call.
 * SL_CONFLICT: the tokens are none that the grammar allows; SL_TOO_LARGE: the grammar needs more
 * states at once than a matcher has; SL_INTERNAL: no token spells what is due. */
SL_MUST_USE sl_status mdl_cursor_mask(mdl_cursor *cursor, mdl_masks *masks,
                                      const uint32_t *generated, uint32_t count,
                                      const uint32_t **out_mask, sl_err *err);
/* As mdl_cursor_mask, of what may follow `drafts` behind the generated tokens, if they come true:
 * the cursor stays behind the generated ones. NULL: these drafts cannot come true, or knowing takes
 * more room than the matcher has left; for a guess nothing is forgotten. */
const uint32_t *mdl_cursor_mask_ahead(mdl_cursor *cursor, mdl_masks *masks,
                                      const mdl_cursor_ahead *ahead);

#ifdef __cplusplus
}
#endif
#endif
