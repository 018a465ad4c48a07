/* One decoder layer over a batch of rows. Internal to engine/. Thread: the engine thread. */
#ifndef ENGINE_LAYER_H
#define ENGINE_LAYER_H

#include "engine/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Does any row see more slots than are selected? Else scores would change nothing. */
bool eng_batch_scored(const eng_engine *engine, const eng_batch *batch);
/* s.x and s.res (first: s.x alone) enter layer `index` (counted from the first loaded one) and
 * leave it. false: NaN or infinity, see engine->fault. */
SL_MUST_USE bool eng_layer_run(eng_engine *engine, uint32_t index, const eng_batch *batch,
                               bool first);
/* Only what the layer leaves in the cache: s.x enters, as a first layer's. */
SL_MUST_USE bool eng_layer_run_keys(eng_engine *engine, uint32_t index, const eng_batch *batch);

#ifdef __cplusplus
}
#endif
#endif
