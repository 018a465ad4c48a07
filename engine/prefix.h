/* The prefix index: which sealed pages hold which tokens. Internal to engine/.
 *
 * A block is named by its chain: a keyed 128-bit hash over its tokens, the chain of the block
 * before and the cache space. Names do not depend on pages, so a block that went away and came back
 * (from the second tier, or computed again) continues the chains that were known behind it. A hit
 * has the chain and the block's own token ids. Owns tables sized by the page count, no pages.
 * Thread: the engine thread. */
#ifndef ENGINE_PREFIX_H
#define ENGINE_PREFIX_H

#include "engine/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ENG_CHAIN_KEY_WORDS 4u

/* Names a block and everything before it. */
typedef struct eng_chain {
    uint64_t high, low;
} eng_chain;

/* What is known of a page's tokens; only indexed ones are found. */
typedef struct eng_prefix_entry {
    bool indexed;
    uint32_t next; /* in its bucket */
    eng_chain chain;
    uint32_t tokens[ENG_PAGE_TOKENS];
} eng_prefix_entry;

typedef struct eng_prefix_index {
    uint32_t page_count;
    uint32_t bucket_count; /* a power of two */
    uint32_t *buckets;
    eng_prefix_entry *entries;         /* [page_count] */
    uint64_t key[ENG_CHAIN_KEY_WORDS]; /* secret: tokens are foreign input */
} eng_prefix_index;

void eng_prefix_index_init(eng_prefix_index *index, uint32_t page_count,
                           const uint64_t key[ENG_CHAIN_KEY_WORDS]);
void eng_prefix_index_fini(eng_prefix_index *index);
/* The chain of the block with these tokens after the block of `parent` ({0}: first block). */
eng_chain eng_prefix_chain(const eng_prefix_index *index, uint64_t space, eng_chain parent,
                           const uint32_t tokens[ENG_PAGE_TOKENS]);
static inline bool eng_chain_equal(eng_chain a, eng_chain b)
{
    return a.high == b.high && a.low == b.low;
}
/* The page that holds this block, or ENG_NO_PAGE. */
uint32_t eng_prefix_index_find(const eng_prefix_index *index, eng_chain chain,
                               const uint32_t tokens[ENG_PAGE_TOKENS]);
/* Notes what a page that is not indexed will hold (it is being read). */
void eng_prefix_index_note(eng_prefix_index *index, uint32_t page, eng_chain chain,
                           const uint32_t tokens[ENG_PAGE_TOKENS]);
/* Makes a noted page known, unless another page is known for the same block. */
void eng_prefix_index_add_noted(eng_prefix_index *index, uint32_t page);
/* Both. */
void eng_prefix_index_add(eng_prefix_index *index, uint32_t page, eng_chain chain,
                          const uint32_t tokens[ENG_PAGE_TOKENS]);
/* Does nothing for a page that is not indexed. */
void eng_prefix_index_remove(eng_prefix_index *index, uint32_t page);
bool eng_prefix_index_has(const eng_prefix_index *index, uint32_t page);

#ifdef __cplusplus
}
#endif
#endif
