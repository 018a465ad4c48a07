/* The page pool: which pages are free, which are bound by sequences, and which are kept for their
 * tokens. Internal to engine/.
 *
 * Never touches their memory. Thread: the engine thread. A page's life: free -> private (one
 * sequence writes it) -> sealed (64 accepted tokens, never written again, may be shared) -> kept
 * (nobody has it bound, the prefix index knows it; the oldest goes first when pages run out,
 * spilled to a second tier if there is one) -> free. */
#ifndef ENGINE_PAGES_H
#define ENGINE_PAGES_H

#include "engine/ledger.h"
#include "engine/prefix.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Of one page. */
typedef struct eng_page {
    uint8_t state;           /* eng_page_state */
    uint32_t ref_count;      /* sequences that have it bound */
    uint32_t older, younger; /* neighbours among the kept ones */
} eng_page;

typedef struct eng_pages {
    uint32_t page_count;
    uint32_t free_count;
    uint32_t *free_list; /* [page_count], used as a stack */
    eng_page *table;     /* [page_count] */
    uint32_t kept_count;
    uint32_t oldest, youngest; /* of the kept ones */
    uint32_t unspilled;        /* the oldest kept one that was not spilled since it is kept */
    eng_prefix_index prefix;
    /* Copies a kept page to the second tier; false: not now. NULL: there is none. */
    bool (*spill)(void *context, uint32_t page);
    void *spill_context;
} eng_pages;

void eng_pages_init(eng_pages *pages, uint32_t page_count, const uint64_t key[ENG_CHAIN_KEY_WORDS]);
void eng_pages_fini(eng_pages *pages);
/* Takes a page, private, its bytes as they were left: a free one, else the oldest kept one.
 * ENG_NO_PAGE when there is neither. */
uint32_t eng_pages_take(eng_pages *pages);
/* One more sequence binds a sealed or kept page. */
void eng_pages_share(eng_pages *pages, uint32_t page);
/* A sequence lets go: the last one's page is kept when the index knows it, else free. */
void eng_pages_give(eng_pages *pages, uint32_t page);
void eng_pages_seal(eng_pages *pages, uint32_t page);
/* A sealed page's last tokens were dropped again: only where nobody else can know it. */
void eng_pages_unseal(eng_pages *pages, uint32_t page);
/* Frees all kept pages. */
void eng_pages_drop_kept(eng_pages *pages);
/* Spills the oldest kept page that was not spilled yet, so that memory is had at once when pages
 * run out, and the tier survives the process. false: nothing to do now. */
bool eng_pages_spill_ahead(eng_pages *pages);
/* Pages that a new sequence could bind. */
uint32_t eng_pages_available(const eng_pages *pages);

#ifdef __cplusplus
}
#endif
#endif
