/* What an answer tells of its prompt: log-probabilities of its tokens, and what its rows were
 * routed to. Rows come in order, some of them twice after a loss. Thread: owner. */
#ifndef ROUTER_PROMPT_H
#define ROUTER_PROMPT_H

#include "model/handout.h"
#include "model/tokenizer.h"
#include "proto/sluice/v1/types.pb-c.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_prompt_options {
    const mdl_shape *shape; /* borrowed for the call */
    uint32_t token_count;
    bool routing;
    int32_t logprob_count; /* -1 = none, else alternatives */
} rtr_prompt_options;

typedef struct rtr_prompt rtr_prompt;

rtr_prompt *rtr_prompt_create(const rtr_prompt_options *options);
void rtr_prompt_destroy(rtr_prompt *prompt);
/* SL_CORRUPT: not what was asked for. */
SL_MUST_USE sl_status rtr_prompt_take(rtr_prompt *prompt, const Sluice__V1__PromptRows *rows,
                                      sl_err *err);
/* The first row that is not here; what to ask a node for. */
uint32_t rtr_prompt_next(const rtr_prompt *prompt);
bool rtr_prompt_complete(const rtr_prompt *prompt);
void rtr_prompt_fill_want(const rtr_prompt *prompt, Sluice__V1__PromptWant *out_want);
/* Of prompt token `token` (> 0), at most `alternatives` of them; when complete. top: room for
 * MDL_LOGPROBS_MAX. */
mdl_score rtr_prompt_score(const rtr_prompt *prompt, uint32_t token, uint32_t alternatives,
                           mdl_score_top *top);
/* [null, {"id": {"logprob", "rank", "decoded_token"}, ..}, ..] of ids; when complete. */
void rtr_prompt_write_logprobs(const rtr_prompt *prompt, const mdl_tokenizer *tokenizer,
                               const mdl_ids *ids, uint32_t alternatives, sl_buf *out);
/* Base64 of all rows, with quotes; when complete. */
void rtr_prompt_write_routing(const rtr_prompt *prompt, sl_buf *out);

#ifdef __cplusplus
}
#endif
#endif
