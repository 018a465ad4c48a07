/* What the router needs of a model: tokenizer, shape, sampling defaults, hash. Start-up. */
#ifndef ROUTER_SETTINGS_H
#define ROUTER_SETTINGS_H

#include "router/options.h"
#include "router/shared.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_settings {
    rtr_shared shared; /* api, limits and the numbers from options are filled in */
    mdl_tokenizer *tokenizer;
    mdl_shape shape;
    char *model_name;
    char model_identity[65]; /* "" when the directory holds not all weights */
} rtr_settings;

/* The result must not move afterwards. */
SL_MUST_USE sl_status rtr_settings_load(const rtr_options *options, rtr_settings *out_settings,
                                        sl_err *err);
/* What loops take of options, at the start or changed later. */
void rtr_tuning_fill(const rtr_options *options, rtr_tuning *out_tuning);
void rtr_settings_fini(rtr_settings *settings);

#ifdef __cplusplus
}
#endif
#endif
