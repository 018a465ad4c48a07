/* A layer's rows in micro-batches, over the ranks of an instance. Internal to engine/. Thread: the
 * engine thread. */
#ifndef ENGINE_MICRO_BATCH_H
#define ENGINE_MICRO_BATCH_H

#include "engine/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ENG_MICRO_BATCHES_MAX 2u

/* The experts of layer `index`, s.n -> s.x, `count` micro-batches one after the other. rows 0:
 * those of other ranks only. false: a fault, with all ranks still together, or ranks->lost. */
SL_MUST_USE bool eng_micro_moe(eng_engine *engine, uint32_t index, uint32_t rows, uint32_t count);
/* Layers first .. end - 1, all with experts, whole: s.x and s.res enter and leave, two
 * micro-batches overlapped. fn: told after each layer, for all rows; false is a fault. The rest as
 * above. */
SL_MUST_USE bool eng_micro_layers(eng_engine *engine, const eng_batch *batch, uint32_t first,
                                  uint32_t end_layer, bool (*fn)(void *context, uint32_t index),
                                  void *context);

#ifdef __cplusplus
}
#endif
#endif
