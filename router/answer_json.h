/* JSON pieces of answers: token ids, log probabilities, usage. Pure writers. */
#ifndef ROUTER_ANSWER_JSON_H
#define ROUTER_ANSWER_JSON_H

#include "router/answer.h"
#include "router/limits.h"

#ifdef __cplusplus
extern "C" {
#endif

void rtr_json_text(sl_buf *out, const char *text, size_t size);
void rtr_json_ids(sl_buf *out, const uint32_t *ids, size_t count);
/* JSON has no infinities: below -9999 is -9999, as OpenAI writes. */
void rtr_json_logprob(sl_buf *out, float logprob);
/* {"token":..,"logprob":..,"bytes":[..],"top_logprobs":[..]} */
void rtr_json_chat_logprob(sl_buf *out, const mdl_tokenizer *tokenizer, uint32_t id,
                           const rtr_token_logprobs *logprobs);
/* {"a":-0.1,"b":-2.5} */
void rtr_json_top_map(sl_buf *out, const mdl_tokenizer *tokenizer,
                      const rtr_token_logprobs *logprobs);
void rtr_json_token_text(sl_buf *out, const mdl_tokenizer *tokenizer, uint32_t id);
/* Code points of a token's text. */
size_t rtr_token_characters(const mdl_tokenizer *tokenizer, uint32_t id);
void rtr_json_usage(sl_buf *out, const rtr_answer_usage *usage);

#ifdef __cplusplus
}
#endif
#endif
