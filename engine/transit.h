/* Transit: the host memory that blocks pass through on their way between processes, which is what
 * kvtransfer reads and writes.
 *
 * Where the host reaches the cache it is the cache itself: a block's transit page is its page, and
 * nothing is copied. With eng_options.transit_bytes it is a pool of pages apart: a sequence takes
 * one for each block that is to travel, and copies run beside the steps. Thread: the engine thread
 * unless it says otherwise. */
#ifndef ENGINE_TRANSIT_H
#define ENGINE_TRANSIT_H

#include "engine/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

/* All of it, to be registered once with kvtransfer. Immutable: any thread. */
void eng_transit_memory(const eng_engine *engine, uint8_t **out_base, uint64_t *out_bytes);

/* Blocks travel from and to the cache itself: what has arrived is in it. Any thread. */
bool eng_transit_is_cache(const eng_engine *engine);
/* Takes transit pages for `count` bound blocks from `first` on, until eng_transit_give or the
 * sequence's close; not while it has some. SL_FULL: others have them. */
SL_MUST_USE sl_status eng_transit_take(eng_sequence *sequence, uint32_t first, uint32_t count,
                                       sl_err *err);
void eng_transit_give(eng_sequence *sequence);
/* Of a block; NULL: it has none. Its address is good until the page is given back, on any thread.
 */
uint8_t *eng_transit_page(const eng_sequence *sequence, uint32_t block);

/* Starts to copy the pieces of `group` of blocks [first, end), whose rows are complete, to their
 * transit pages. sums[(block * group_count) + group] becomes eng_piece_sum of each. Pieces and sums
 * are there after eng_transit_wait, and must be waited for before the sequence is closed. */
void eng_transit_out(eng_sequence *sequence, uint32_t group, uint32_t first, uint32_t end,
                     uint64_t *sums);
/* Whether there is anything to wait for. */
bool eng_transit_busy(const eng_engine *engine);
SL_MUST_USE sl_status eng_transit_wait(eng_engine *engine, sl_err *err);

/* Starts to copy all transit pages of a sequence into its pages. */
void eng_transit_in(eng_sequence *sequence);
/* Whether that is done (also when the device failed: the next step says so). Until then the
 * sequence is in no step. */
bool eng_transit_landed(eng_sequence *sequence);

#ifdef __cplusplus
}
#endif
#endif
