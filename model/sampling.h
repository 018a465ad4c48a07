/* Sampling parameters of a request: a plain struct that travels from the router to the sampler.
 *
 * Fully resolved: defaults are filled in, everything is checked, the seed is set. The sampler
 * itself lives in engine/. Thread: any. */
#ifndef MODEL_SAMPLING_H
#define MODEL_SAMPLING_H

#include "base/json.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MDL_LOGIT_BIAS_MAX 300
#define MDL_STOP_IDS_MAX   64
#define MDL_LOGPROBS_MAX   20

typedef struct mdl_logit_bias {
    int32_t id;
    float bias; /* [-100, 100], added to the logit */
} mdl_logit_bias;

typedef struct mdl_sampling {
    float temperature;        /* [0, 2]; 0 = arg-max, ties to the lowest id */
    float top_p;              /* (0, 1]; 1 = off */
    float min_p;              /* [0, 1]; 0 = off */
    int32_t top_k;            /* 0 = off */
    float presence_penalty;   /* [-2, 2]; 0 = off */
    float frequency_penalty;  /* [-2, 2]; 0 = off */
    float repetition_penalty; /* (0, 2]; 1 = off */
    int32_t logprob_count;    /* -1 = none, 0 = of the chosen token only, up to 20 alternatives */
    uint64_t seed;
    bool seed_given; /* else the router draws one and keeps it across retries */
    bool ignore_eos;
    int32_t max_tokens;    /* 0 = up to the window */
    bool nothing;          /* a request's max_tokens 0: only what is told of its prompt */
    int32_t min_tokens;    /* EOS and stop ids are masked before that many */
    int32_t stop_id_count; /* besides EOS */
    int32_t stop_ids[MDL_STOP_IDS_MAX];
    int32_t bias_count;
    mdl_logit_bias bias[MDL_LOGIT_BIAS_MAX]; /* ascending ids, unique */
} mdl_sampling;

/* temperature 1, everything else off. */
void mdl_sampling_init(mdl_sampling *out_sampling);
/* Overlays <dir>/generation_config.json on mdl_sampling_init; a missing file leaves those.
 * do_sample false means temperature 0. */
SL_MUST_USE sl_status mdl_sampling_load(const char *dir, mdl_sampling *out_sampling, sl_err *err);
/* Overlays a request's members (OpenAI names; also top_k, min_p, repetition_penalty, min_tokens,
 * ignore_eos, stop_token_ids) on defaults. Errors name the field. null = not given. */
SL_MUST_USE sl_status mdl_sampling_parse(const sl_json *request, const mdl_sampling *defaults,
                                         int32_t vocab_size, mdl_sampling *out_sampling,
                                         sl_err *err);
/* Ranges only; for parameters that came over the wire or from a command line. */
SL_MUST_USE sl_status mdl_sampling_check(const mdl_sampling *sampling, int32_t vocab_size,
                                         sl_err *err);

/* The seed of choice `index` of a request: its own for the first, else a number below 2^53 keyed by
 * (seed, index). docs/SAMPLING.md has test vectors. */
uint64_t mdl_choice_seed(uint64_t seed, uint32_t index);

#ifdef __cplusplus
}
#endif
#endif
