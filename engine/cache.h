/* The engine's cache as a whole: counts, kept pages, the second tier; and its options, before it is
 * made. Beside engine.h, for those who run an engine (worker, batch, node).
 *
 * Thread: the engine thread unless it says otherwise. */
#ifndef ENGINE_CACHE_H
#define ENGINE_CACHE_H

#include "engine/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the two would refuse before any weights are read: the model's configuration, tokenizer and
 * files' headers, sizes that do not fit it. Opens no GPU. Any thread. */
SL_MUST_USE sl_status eng_options_check(const eng_model_options *model, const eng_options *engine,
                                        sl_err *err);

/* Pages that nobody has bound, but that are kept for their tokens. */
uint32_t eng_engine_pages_kept(const eng_engine *engine);
/* Forgets all kept pages, on all tiers (operator's wish, new weights). */
void eng_engine_drop_kept(eng_engine *engine);

/* The device's words once it has failed, which is for good: no step runs any more. NULL: it works.
 */
const char *eng_engine_broken(const eng_engine *engine);
/* The same as a status, SL_INTERNAL: for whoever read logits or h_final, before he uses them. */
SL_MUST_USE sl_status eng_engine_check(const eng_engine *engine, sl_err *err);

/* What is set aside for sequences that gave their pages up and come back: new ones open into
 * neither. Whoever opens one of those says {0} before and what is left to set aside after. */
typedef struct eng_reserve {
    uint32_t pages;    /* to be bound at once */
    uint32_t promised; /* in all */
} eng_reserve;
void eng_engine_set_reserve(eng_engine *engine, eng_reserve reserve);

/* Pages by what they are; free + kept + bound = all. */
typedef struct eng_page_counts {
    uint32_t free;
    uint32_t kept;
    uint32_t bound;     /* by sequences */
    uint32_t promised;  /* to sequences, not bound yet; reserved ones too */
    uint32_t grantable; /* eng_engine_pages_free */
    uint32_t transit;   /* transit pages that are taken, where they are apart (engine/transit.h) */
} eng_page_counts;
void eng_engine_count_pages(const eng_engine *engine, eng_page_counts *out_counts);

/* The second tier, counted since start. */
typedef struct eng_tier_stats {
    uint64_t pages, pages_max;
    uint64_t pages_at_start;   /* valid ones that the file held */
    uint64_t dropped_at_start; /* damaged ones */
    const char *begun_anew;    /* NULL: the file went on; else why not ("" = it was empty) */
    uint64_t hits, misses;     /* blocks read; prefixes that ended in neither tier */
    uint64_t bytes_written, bytes_read;
    uint64_t corrupt; /* blocks dropped because their sum or tokens differed */
    uint64_t failed;  /* reads and writes that the file system refused */
} eng_tier_stats;
/* false: there is no second tier. Any thread. */
bool eng_engine_tier_stats(const eng_engine *engine, eng_tier_stats *out_stats);
/* Takes in what was read from the second tier and asks for more; true while a sequence waits for
 * reads. Between steps, often. */
bool eng_engine_poll(eng_engine *engine, uint64_t now_ns);
/* How soon to poll again though nobody wakes: a sequence waits for reads, maybe one that opened
 * since the last poll, or for its transit pages to land. 0: for nothing. */
uint64_t eng_engine_poll_ns(const eng_engine *engine);
/* Copies a few kept pages for the second tier, ahead of need; when the turn's work is done. */
void eng_engine_spill(eng_engine *engine);
/* wake is called by another thread whenever a poll is worthwhile, until it is set to NULL. Any
 * thread. */
void eng_engine_set_wake(eng_engine *engine, void (*wake)(void *context), void *context);

#ifdef __cplusplus
}
#endif
#endif
