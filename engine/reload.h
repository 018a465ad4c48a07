/* Other weights in the place of an engine's, without losing the process. */
#ifndef ENGINE_RELOAD_H
#define ENGINE_RELOAD_H

#include "comm/comm.h"
#include "engine/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whether `fresh` may take `model`'s place. SL_INCOMPATIBLE: another config.json, tokenizer.json or
 * tensors of other names, types or shapes. Any thread. */
SL_MUST_USE sl_status eng_model_check_same(const eng_model *model, const eng_model *fresh,
                                           sl_err *err);
/* Puts the weights of `fresh` in the place of `model`'s, the engine's; those go with `fresh`, for
 * the caller to close. All kept pages are forgotten, sums and stamp are new. Engine thread, between
 * steps, while no sequence is open (SL_CONFLICT). SL_INVALID: not a higher version. On failure
 * nothing has changed. */
SL_MUST_USE sl_status eng_engine_reload(eng_engine *engine, eng_model *model, eng_model *fresh,
                                        uint32_t weights_version, sl_err *err);

/* ---- all ranks of an instance at once (engine/parallel.h) */

/* How far a rank is. */
typedef enum eng_reload_stage {
    ENG_RELOAD_NONE,
    ENG_RELOAD_LOADING,
    ENG_RELOAD_LOADED,
    ENG_RELOAD_READY,   /* it begins no run of its own, and has nothing open */
    ENG_RELOAD_GO,      /* it is in eng_engine_reload_together */
    ENG_RELOAD_REFUSED, /* it has taken its word back, or could not */
    ENG_RELOAD_STAGE_COUNT
} eng_reload_stage;

typedef struct eng_reload_word {
    uint32_t version;
    eng_reload_stage stage;
} eng_reload_word;

/* This rank's word, for its next header. Any thread. */
void eng_engine_tell_reload(eng_engine *engine, uint32_t version, eng_reload_stage stage);
/* Those of all ranks, own one included, as the last headers had them; eng_engine_on_ranks tells
 * when they change. Any thread. */
void eng_engine_reload_words(eng_engine *engine, eng_reload_word out_words[COM_RANKS_MAX]);

/* Whether this rank may say READY. SL_CONFLICT: a sequence is open. Engine thread. */
SL_MUST_USE sl_status eng_engine_reload_fits(const eng_engine *engine, sl_err *err);

typedef struct eng_reload_together {
    uint32_t version;
    uint64_t formation; /* that was in use when fresh was loaded, by its table */
    uint64_t wait_ns;   /* at most so long for ranks that are READY to come here too */
} eng_reload_together;

/* As eng_engine_reload, on all ranks between the same two runs, or on none: once all have said
 * READY. Sums of tensors are exchanged, and the hash is complete then. On failure nothing has
 * changed, on no rank: SL_CONFLICT (a sequence is open, ranks or placement changed, a rank took its
 * word back), SL_DEADLINE, SL_INCOMPATIBLE (ranks loaded different weights), SL_UNAVAILABLE (the
 * group has failed: should a rank die in the very exchange, others may have changed, and will not
 * meet those that have not). out_tier: text if there is no second tier any more, else "". Engine
 * thread, while no client has a run under way and no formation is made ready. */
SL_MUST_USE sl_status eng_engine_reload_together(eng_engine *engine, eng_model *model,
                                                 eng_model *fresh, const eng_reload_together *how,
                                                 sl_err *out_tier, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
