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

typedef struct eng_reload_told {
    bool doubt;  /* it failed in the very exchange: others may have changed */
    sl_err tier; /* text if there is no second tier any more, else "" */
} eng_reload_told;

/* As eng_engine_reload, on all ranks between the same two runs, or on none: once all have said
 * READY. Sums of tensors are exchanged, and the hash is complete then. On failure nothing has
 * changed here: SL_CONFLICT (a sequence is open, ranks or placement changed, a rank took its word
 * back), SL_DEADLINE, SL_INCOMPATIBLE (ranks loaded different weights), SL_UNAVAILABLE (the group
 * has failed); nor on any other rank, unless out_told->doubt: eng_model_settle tells. Engine
 * thread, while no client has a run under way and no formation is made ready. */
SL_MUST_USE sl_status eng_engine_reload_together(eng_engine *engine, eng_model *model,
                                                 eng_model *fresh, const eng_reload_together *how,
                                                 eng_reload_told *out_told, sl_err *err);

/* ---- in doubt: whether others have gone over is heard when the ranks meet again */

typedef struct eng_reload_doubt {
    uint32_t version;       /* of the model */
    eng_model *fresh;       /* that it might have gone over to; NULL: it is in no doubt */
    uint32_t fresh_version; /* of those */
} eng_reload_doubt;

/* eng_model_join for ranks of which some may be in doubt. SL_CONFLICT: one of the others has gone
 * over, so those in doubt do too before they can meet; out_over: this is one of them, and `fresh`
 * has joined in the model's place. If none has, none will. Any thread. */
SL_MUST_USE sl_status eng_model_settle(eng_model *model, const eng_reload_doubt *own,
                                       com_group *group, bool *out_over, sl_err *err);
/* Then goes over. SL_CONFLICT: a sequence is open, or the group in use has not failed. Engine
 * thread. */
SL_MUST_USE sl_status eng_engine_reload_late(eng_engine *engine, eng_model *model, eng_model *fresh,
                                             uint32_t version, eng_reload_told *out_told,
                                             sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
