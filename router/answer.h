/* From tokens to the client's answer: detokenising, parsing, stop strings, JSON or event stream.
 *
 * One answer has one or more choices (request->choice_count), each with tokens of its own.
 * Tokens go in as they come; text comes out in rtr_answer_output: complete server-sent events of a
 * stream, or the one JSON body after finish. The same tokens give the same text for every cut, so a
 * retried or migrated request goes on where it was. No I/O, no clock. Thread: owner. */
#ifndef ROUTER_ANSWER_H
#define ROUTER_ANSWER_H

#include "model/output.h"
#include "router/api_request.h"
#include "router/handout.h"
#include "router/prompt.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_logprob {
    uint32_t id;
    float logprob;
} rtr_logprob;

typedef struct rtr_token_logprobs {
    float logprob;
    uint32_t top_count;
    rtr_logprob top[MDL_LOGPROBS_MAX];
} rtr_token_logprobs;

typedef struct rtr_answer_options {
    const rtr_api_request *request; /* borrowed for the answer's life */
    const mdl_tokenizer *tokenizer;
    const mdl_shape *shape; /* for hand-outs; NULL if none is wanted */
    const char *request_id;
    const char *model;
    uint64_t created; /* seconds since 1970 */
} rtr_answer_options;

typedef struct rtr_answer_usage {
    uint32_t prompt_tokens;
    uint32_t cached_tokens;
    uint32_t completion_tokens;
    uint32_t reasoning_tokens;
} rtr_answer_usage;

typedef struct rtr_answer rtr_answer;

SL_MUST_USE sl_status rtr_answer_create(const rtr_answer_options *options, rtr_answer **out_answer,
                                        sl_err *err);
void rtr_answer_destroy(rtr_answer *answer);
/* Before the first push. fingerprint: the numerics id; copied. In a stream this writes the roles.
 */
void rtr_answer_begin(rtr_answer *answer, const char *fingerprint);
void rtr_answer_set_cached(rtr_answer *answer, uint32_t cached_tokens);
/* What the choice hands out, for the caller to fill before it pushes the tokens; NULL: nothing is
 * wanted. */
rtr_handout *rtr_answer_handout(rtr_answer *answer, uint32_t choice);
/* What the answer tells of its prompt: to be complete before begin; NULL: nothing is wanted. */
rtr_prompt *rtr_answer_prompt(rtr_answer *answer);
/* logprobs: one for each id if the request wants them, else NULL. False once a stop string was met:
 * the rest was not taken; go on with rtr_answer_finish(MDL_FINISH_STOP). */
SL_MUST_USE bool rtr_answer_push(rtr_answer *answer, uint32_t choice, const uint32_t *ids,
                                 const rtr_token_logprobs *logprobs, size_t count);
/* cause: STOP or LENGTH; each choice once. True: it was the last one, the output is complete
 * ([DONE] included). */
bool rtr_answer_finish(rtr_answer *answer, uint32_t choice, mdl_finish cause);
/* An error after the stream began: one event {"error":..}; no [DONE] follows it. */
void rtr_answer_fail(rtr_answer *answer, const rtr_api_error *error);
/* The caller takes from it (sl_buf_consume or clear). */
sl_buf *rtr_answer_output(rtr_answer *answer);
const rtr_answer_usage *rtr_answer_usage_get(const rtr_answer *answer);
const mdl_output_counts *rtr_answer_counts(const rtr_answer *answer, uint32_t choice);

#ifdef __cplusplus
}
#endif
#endif
