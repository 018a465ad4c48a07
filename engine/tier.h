/* The second cache tier: pages that the cache had to give up, in a file of fixed size. Internal to
 * engine/.
 *
 * The engine thread decides and never waits for the disk: what goes out is copied into one of a few
 * buffers first, what comes in is read into one by the I/O thread, which never sees the cache. Both
 * pass one bounded queue in order, so a slot that is given away while a read of it waits is still
 * read first. Owns the file, the table of slots, the buffers and the I/O thread. Thread: the engine
 * thread but for stats and set_wake (any) and open and close (engine stopped). */
#ifndef ENGINE_TIER_H
#define ENGINE_TIER_H

#include "engine/cache.h"
#include "engine/ledger.h"
#include "engine/tier_file.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ENG_TIER_WRITES_MAX 16u /* pages on their way out */
#define ENG_TIER_READS_MAX  16u /* pages on their way in */

typedef struct eng_tier eng_tier;

/* Finds what the file still holds. */
SL_MUST_USE sl_status eng_tier_open(const eng_tier_options *options, eng_tier **out_tier,
                                    sl_err *err);
/* Ends the I/O thread after what is queued. NULL is fine. */
void eng_tier_close(eng_tier *tier);
/* Called by the I/O thread after each read and write, until another (or NULL) is set. Any thread.
 */
void eng_tier_set_wake(eng_tier *tier, void (*wake)(void *context), void *context);
/* The key of chains: drawn when the file was begun. */
const uint64_t *eng_tier_key(const eng_tier *tier);
/* Whether a buffer is free to put a page. */
bool eng_tier_can_take(eng_tier *tier);
/* Takes a copy of the page, unless the tier has the block. Full: the one used longest ago goes. */
void eng_tier_put(eng_tier *tier, eng_chain chain, const uint32_t tokens[ENG_PAGE_TOKENS],
                  const uint8_t *page);
/* Has it the block? It is then the youngest. */
bool eng_tier_touch(eng_tier *tier, eng_chain chain, const uint32_t tokens[ENG_PAGE_TOKENS]);
/* Whose read it is: not looked at by the tier. */
typedef struct eng_tier_tag {
    uint32_t sequence;
    uint32_t opening;
    uint32_t block;
} eng_tier_tag;

typedef enum eng_tier_answer {
    ENG_TIER_ASKED,
    ENG_TIER_BUSY, /* too many reads are under way */
    ENG_TIER_GONE, /* it has not got the block any more */
} eng_tier_answer;

/* Begins to read a block. */
eng_tier_answer eng_tier_get(eng_tier *tier, eng_chain chain,
                             const uint32_t tokens[ENG_PAGE_TOKENS], eng_tier_tag tag);

typedef struct eng_tier_arrival {
    eng_tier_tag tag;
    const uint8_t *page; /* NULL: it could not be read, or was bad and is forgotten */
    uint32_t buffer;
} eng_tier_arrival;

/* A read that has ended, in the order they were asked for; false: none. eng_tier_done follows. */
bool eng_tier_poll(eng_tier *tier, eng_tier_arrival *out_arrival);
void eng_tier_done(eng_tier *tier, const eng_tier_arrival *arrival);
/* For the statistics: a prefix ended in neither tier. */
void eng_tier_note_miss(eng_tier *tier);
/* Forgets all blocks. */
void eng_tier_clear(eng_tier *tier);
uint32_t eng_tier_slot_count(const eng_tier *tier);
/* Fills in the tier's part. */
void eng_tier_take_ledger(const eng_tier *tier, eng_ledger *ledger);
void eng_tier_stats_get(const eng_tier *tier, eng_tier_stats *out_stats);

#ifdef __cplusplus
}
#endif
#endif
