/* The page pool: which pages are free, and whose the others are. Internal to engine/.
 *
 * Owns no memory but its tables. Thread: the engine thread. A page's life: free -> private (one
 * sequence writes it) -> sealed (64 tokens, never written again) -> free. */
#ifndef ENGINE_PAGES_H
#define ENGINE_PAGES_H

#include "engine/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum eng_page_state {
    ENG_PAGE_STATE_FREE,
    ENG_PAGE_STATE_PRIVATE,
    ENG_PAGE_STATE_SEALED,
    ENG_PAGE_STATE_COUNT,
} eng_page_state;

typedef struct eng_pages {
    uint8_t *memory; /* page p at memory + p * page_bytes */
    uint64_t page_bytes;
    uint32_t page_count;
    uint32_t free_count;
    uint32_t *free_list; /* [page_count], used as a stack */
    uint8_t *state;      /* [page_count] eng_page_state */
} eng_pages;

SL_MUST_USE sl_status eng_pages_init(eng_pages *pages, uint64_t page_bytes, uint32_t page_count,
                                     sl_err *err);
void eng_pages_fini(eng_pages *pages);
/* Takes a page, zeroed and private. ENG_NO_PAGE when none is free. */
uint32_t eng_pages_take(eng_pages *pages);
void eng_pages_give(eng_pages *pages, uint32_t page);
/* private <-> sealed; asserts the transition. */
void eng_pages_set_state(eng_pages *pages, uint32_t page, eng_page_state state);
static inline uint8_t *eng_pages_at(const eng_pages *pages, uint32_t page)
{
    return pages->memory + (uint64_t)page * pages->page_bytes;
}

#ifdef __cplusplus
}
#endif
#endif
