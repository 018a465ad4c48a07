/* The prefix index: which sealed pages hold which tokens. Internal to engine/.
 *
 * Owns tables sized by the page count, no pages. Thread: the engine thread. Answers only what it
 * has compared token by token, chained through the parent pages. */
#ifndef ENGINE_PREFIX_H
#define ENGINE_PREFIX_H

#include "engine/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What is known of an indexed page. */
typedef struct eng_prefix_entry {
    bool indexed;
    uint32_t parent;            /* page of the block before; ENG_NO_PAGE = first block */
    uint32_t parent_generation; /* of that page when this one was indexed */
    uint32_t generation;        /* raised whenever the page leaves the index */
    uint32_t next;              /* in its bucket */
    uint64_t space;
    uint64_t hash;
    uint32_t tokens[ENG_PAGE_TOKENS];
} eng_prefix_entry;

typedef struct eng_prefix_index {
    uint32_t page_count;
    uint32_t bucket_count; /* a power of two */
    uint32_t *buckets;
    eng_prefix_entry *entries; /* [page_count] */
    uint64_t key[2];
} eng_prefix_index;

void eng_prefix_index_init(eng_prefix_index *index, uint32_t page_count);
void eng_prefix_index_fini(eng_prefix_index *index);
/* The page that holds this block after `parent` (ENG_NO_PAGE: first block), or ENG_NO_PAGE. */
uint32_t eng_prefix_index_find(const eng_prefix_index *index, uint64_t space, uint32_t parent,
                               const uint32_t tokens[ENG_PAGE_TOKENS]);
/* Adds a page that is not indexed, after an indexed parent. */
void eng_prefix_index_add(eng_prefix_index *index, uint32_t page, uint64_t space, uint32_t parent,
                          const uint32_t tokens[ENG_PAGE_TOKENS]);
/* Does nothing for a page that is not indexed. */
void eng_prefix_index_remove(eng_prefix_index *index, uint32_t page);
bool eng_prefix_index_has(const eng_prefix_index *index, uint32_t page);

#ifdef __cplusplus
}
#endif
#endif
