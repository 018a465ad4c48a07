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
/* A model of the MTP layer alone: s.x rows are the next tokens' embeddings, s.mtp_h h_final; leaves
 * the layer's output in s.x, s.res and its norm in s.h. Row i has position and slot i. */
SL_MUST_USE bool eng_mtp_run_alone(eng_engine *engine, const eng_batch *batch);

#ifdef __cplusplus
}
#endif
#endif
