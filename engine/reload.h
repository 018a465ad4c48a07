/* Other weights in the place of an engine's, without losing the process. */
#ifndef ENGINE_RELOAD_H
#define ENGINE_RELOAD_H

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

#ifdef __cplusplus
}
#endif
#endif
