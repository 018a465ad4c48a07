/* What a step may show of its insides: for sluice-run's dumps and the tests. Internal to engine/.
 *
 * Callbacks run on the engine thread inside eng_step; pointers live for the call. Without a tap a
 * step computes less: the MTP layer's rows only, not its output. */
#ifndef ENGINE_TAP_H
#define ENGINE_TAP_H

#include "engine/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct eng_tap_layer {
    uint32_t layer; /* as in the checkpoint; the MTP layer is shape.layer_count */
    uint32_t row_count;
    const uint32_t *positions; /* [row_count], of the MTP layer: rope positions */
    const void *x;             /* [row_count][hidden] leaving the layer, bf16 (plain: f32) */
    const void *res;           /* the same */
    const uint32_t *lists;     /* [row_count][list_stride] selected slots, ascending */
    const uint32_t *list_counts;
    uint32_t list_stride;
    const uint32_t *experts; /* [row_count][chosen] ascending; NULL: dense */
} eng_tap_layer;

typedef struct eng_tap {
    void *context;
    void (*layer)(void *context, const eng_tap_layer *layer);
    /* h_final of each row: bf16 (plain: f32) [row_count][hidden]. */
    void (*normed)(void *context, const uint32_t *positions, uint32_t row_count, const void *h);
    /* Logits of MTP rows (drafts). */
    void (*draft)(void *context, const uint32_t *positions, uint32_t row_count,
                  const float *logits);
} eng_tap;

/* Borrowed until replaced; NULL = none. */
void eng_engine_set_tap(eng_engine *engine, const eng_tap *tap);

/* Runs the loaded layers alone on rows 0..row_count-1 of an empty sequence: x, res bf16
 * [row_count][hidden] that enter the first of them (the MTP layer alone: the next tokens'
 * embeddings and h_final, spec 5). The tap sees what leaves each. */
SL_MUST_USE sl_status eng_step_layers(eng_engine *engine, eng_sequence *sequence, const uint16_t *x,
                                      const uint16_t *res, uint32_t row_count, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
