/* Who has which page, on each tier, copied at one moment. Beside engine.h, for those who run an
 * engine.
 *
 * Thread: create and destroy any; take the engine thread, between turns; what was taken is whose
 * the copy is. */
#ifndef ENGINE_LEDGER_H
#define ENGINE_LEDGER_H

#include "engine/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum eng_page_state {
    ENG_PAGE_STATE_FREE,
    ENG_PAGE_STATE_PRIVATE, /* one sequence writes it */
    ENG_PAGE_STATE_SEALED,  /* complete; sequences share it */
    ENG_PAGE_STATE_KEPT,    /* the prefix index knows it, nobody has it bound */
    ENG_PAGE_STATE_COUNT,
} eng_page_state;

/* Says whose a sequence is; what the number means is the caller's. 0 (at first): nobody's. */
void eng_sequence_set_owner(eng_sequence *sequence, uint32_t owner);

typedef struct eng_ledger_page {
    uint8_t state;      /* eng_page_state */
    uint32_t ref_count; /* sequences that have it bound, as the pool counts */
} eng_ledger_page;

typedef struct eng_ledger_sequence {
    uint32_t owner;
    uint32_t promised; /* pages that it may still bind */
    uint32_t transit;  /* transit pages that it has */
    uint32_t first;    /* its blocks' pages: bound[first .. first + count) */
    uint32_t count;
} eng_ledger_sequence;

typedef struct eng_ledger {
    uint32_t page_count;
    eng_ledger_page *pages;                    /* [page_count] */
    uint32_t free_count, kept_count, promised; /* as the pool counts */
    uint32_t sequence_count;                   /* open ones */
    eng_ledger_sequence *sequences;
    uint32_t *bound;
    uint32_t transit_count; /* transit pages that are not the cache itself, and of them: */
    uint32_t transit_free;
    uint32_t slot_count; /* of the second tier; 0: there is none */
    bool *slots;         /* [slot_count]: in use */
    uint32_t slots_free; /* as the tier counts */
    uint32_t moves;      /* its reads and writes under way */
} eng_ledger;

eng_ledger *eng_ledger_create(const eng_engine *engine);
/* NULL is fine. */
void eng_ledger_destroy(eng_ledger *ledger);
/* Of the engine that it was created for; copies, allocates nothing. */
void eng_ledger_take(const eng_engine *engine, eng_ledger *ledger);

#ifdef __cplusplus
}
#endif
#endif
