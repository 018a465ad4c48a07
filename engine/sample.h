/* Drawing tokens: part of engine/engine.h, which includes it. Thread: the engine thread. */
#ifndef ENGINE_SAMPLE_H
#define ENGINE_SAMPLE_H

#include "model/handout.h"
#include "model/sampling.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct eng_engine eng_engine;

typedef struct eng_logprob {
    uint32_t id;
    float logprob;
} eng_logprob;

#define ENG_LOGPROBS_MAX 20

typedef struct eng_sampled {
    uint32_t id;
    float logprob;      /* of id, after penalties and bias, before temperature, natural log */
    uint32_t top_count; /* params->logprob_count (0 when that is -1) */
    eng_logprob top[ENG_LOGPROBS_MAX];
} eng_sampled;

/* Draws the token at `position` (its index in the whole sequence), keyed by (seed, position) only
 * (spec 6, docs/SAMPLING.md). context[0 .. context_count) is the whole sequence so far, of which
 * the first prompt_count tokens are the prompt: presence and frequency penalties look at generated
 * tokens only, the repetition penalty at all. Ids that the model directory's tokenizer does not
 * define are masked, EOS and stop ids before params->min_tokens. Overwrites logits. allowed: bit id
 * set = id may be drawn (at least one); NULL = all. */
void eng_sample(eng_engine *engine, float *logits, const mdl_sampling *params,
                const uint32_t *context, uint32_t context_count, uint32_t prompt_count,
                uint32_t position, const uint32_t *allowed, eng_sampled *out_sampled);
/* Judges a token that was given, not drawn, by the logits of the row before it: log-probability and
 * rank over the ids that the tokenizer defines, nothing else applied; the likeliest `alternatives`
 * (at most ENG_LOGPROBS_MAX). out: mdl_score_bytes(alternatives). Overwrites logits. */
void eng_score(eng_engine *engine, float *logits, uint32_t id, uint32_t alternatives, uint8_t *out);
/* Record of the ids that the last eng_sample could have drawn (model/handout.h): what top_k, top_p
 * and min_p left; of temperature 0 the one id. out: mdl_mask_bytes_max of the vocabulary; returns
 * the record's bytes. */
uint32_t eng_sample_mask(eng_engine *engine, uint8_t *out);

/* --- draws that a device makes inside a step, so that no logits leave it --- */

/* What may be drawn at wanted row `row` of a span, as eng_sample's `allowed`; NULL: it cannot be
 * told yet. Looked at before the next call. On the engine thread; calls nothing of the engine. */
typedef const uint32_t *(*eng_draw_allowed_fn)(void *context, uint32_t row);

/* How the token behind each wanted row of a span is to be drawn, if the span's tokens come true. */
typedef struct eng_draw {
    const mdl_sampling *params;
    const uint32_t *ids; /* the sequence with the span's tokens */
    uint32_t prompt_count;
    eng_draw_allowed_fn allowed; /* NULL: anything */
    void *context;               /* of allowed */
} eng_draw;

typedef struct eng_sequence eng_sequence;

/* What the last step drew at wanted row `row` of its spans: what eng_sample would,
 * log-probabilities within 1e-12 or their last bit. NULL: the logits are to be had instead (always
 * on the CPU; on a device for a span without eng_draw, or where an order shows: docs/SAMPLING.md).
 * Until the next call. */
const eng_sampled *eng_step_drawn(eng_engine *engine, uint32_t row);
/* The same from a sequence's h_final alone, as eng_head_logits; draw->ids: of the sequence. */
const eng_sampled *eng_head_drawn(eng_engine *engine, const eng_sequence *sequence,
                                  const eng_draw *draw);

#ifdef __cplusplus
}
#endif
#endif
