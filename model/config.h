/* Loads config.json into an mdl_shape and refuses what the code does not support.
 *
 * Never falls back: an unknown rope type, a bias, tied embeddings and the like are an error that
 * names the key. Thread: start-up. */
#ifndef MODEL_CONFIG_H
#define MODEL_CONFIG_H

#include "base/json.h"
#include "model/shape.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Reads <dir>/config.json. SL_UNSUPPORTED: understood but not offered; SL_INVALID: missing or wrong
 * type or out of range. Both name the key. */
SL_MUST_USE sl_status mdl_shape_load(const char *dir, mdl_shape *out_shape, sl_err *err);
SL_MUST_USE sl_status mdl_shape_parse(const sl_json *config, mdl_shape *out_shape, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
