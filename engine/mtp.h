/* The MTP layer: its cache rows for every token, and drafts. Internal to engine/. Thread: the
 * engine thread. */
#ifndef ENGINE_MTP_H
#define ENGINE_MTP_H

#include "engine/layer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Row i of MTP: s.mtp_tokens[i], s.mtp_h row i (h_final of the token before), s.mtp_rows[i],
 * s.mtp_positions[i] = slot - 1. full: also the layer's output and s.logits rows 0..count-1. */
SL_MUST_USE bool eng_mtp_run(eng_engine *engine, uint32_t row_count, bool full);

#ifdef __cplusplus
}
#endif
#endif
