/* The sampler without an engine: scratch for one vocabulary, and the draw. Internal to engine/.
 *
 * Thread: the engine thread (one sampler belongs to one engine). */
#ifndef ENGINE_SAMPLER_H
#define ENGINE_SAMPLER_H

#include "engine/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ENG_SAMPLER_STREAM 0u /* of the keyed random number */

typedef struct eng_sampler {
    uint32_t vocab_size;
    uint32_t eos_id;
    const uint32_t *undefined; /* borrowed: bit id set = no such token; NULL = all defined */
    float *terms;              /* [vocab_size]: exp of what the softmax divides */
    float *probability;        /* [vocab_size]: of candidates */
    uint32_t *ids;             /* [vocab_size]: candidates */
    uint32_t *count;           /* [vocab_size], zero between calls */
    uint64_t *kept;            /* bitmap [vocab_size]: what can be drawn */
    double *running;           /* [vocab_size / 64]: sum of what is kept up to each word's end */
    /* of the last draw, for its mask */
    mdl_mask_kind mask; /* LIST: last_id alone; BITMAP: kept */
    uint32_t last_id;
    float max; /* the largest logit then */
} eng_sampler;

void eng_sampler_init(eng_sampler *sampler, uint32_t vocab_size, uint32_t eos_id,
                      const uint32_t *undefined);
void eng_sampler_fini(eng_sampler *sampler);
/* As eng_sample in engine.h. */
void eng_sampler_draw(eng_sampler *sampler, float *logits, const mdl_sampling *params,
                      const uint32_t *context, uint32_t context_count, uint32_t prompt_count,
                      uint32_t position, const uint32_t *allowed, eng_sampled *out_sampled);
/* A guess at what eng_sampler_draw will give, from logits that are a guess too: the same id if they
 * are the same and `drawn`, else the likeliest after penalties, bias and masks. Overwrites logits.
 */
uint32_t eng_sampler_guess(eng_sampler *sampler, float *logits, const mdl_sampling *params,
                           const uint32_t *context, uint32_t context_count, uint32_t prompt_count,
                           const uint32_t *allowed, bool drawn);
/* Can such a guess be another id than that of the largest logit, after `generated` tokens? */
bool eng_sampler_guesses(const mdl_sampling *params, uint32_t generated, bool drawn);
/* Are EOS and stop ids masked, after `generated` tokens? */
bool eng_sampler_bars_ends(const eng_sampler *sampler, const mdl_sampling *params,
                           uint32_t generated, const uint32_t *allowed);
/* The likeliest allowed id, nothing else applied. Overwrites logits. */
uint32_t eng_sampler_best(const eng_sampler *sampler, float *logits, const uint32_t *allowed);
/* As eng_score in engine.h. */
void eng_sampler_score(const eng_sampler *sampler, float *logits, uint32_t id,
                       uint32_t alternatives, uint8_t *out);
/* As eng_sample_mask in engine.h. */
uint32_t eng_sampler_mask(eng_sampler *sampler, uint8_t *out);
/* Marks in `kept` the top_k most probable, of those the shortest prefix whose sum reaches top_p
 * (sampler_top.c). sum: of the terms. Sets their probabilities. */
void eng_sampler_keep_top(eng_sampler *sampler, double sum, const mdl_sampling *params);

#ifdef __cplusplus
}
#endif
#endif
