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
/* Its first half: s.x and s.res -> s.n, s.res; the rows are in the cache. */
SL_MUST_USE bool eng_layer_attend(eng_engine *engine, uint32_t index, const eng_batch *batch,
                                  bool first);
/* s.n -> which experts, with which weights. */
SL_MUST_USE bool eng_layer_route(eng_engine *engine, const eng_layer *layer, uint32_t rows);
/* What the experts gave -> s.x. first: row of the step that s begins with. */
void eng_layer_combine(eng_engine *engine, uint32_t first, uint32_t rows);
/* Only what the layer leaves in the cache: s.x enters, as a first layer's. */
SL_MUST_USE bool eng_layer_run_keys(eng_engine *engine, uint32_t index, const eng_batch *batch);

#ifdef __cplusplus
}
#endif
#endif
