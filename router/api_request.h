/* From an HTTP body to a checked request: JSON, fields, chat encoding, tokens. Pure apart from the
 * seed it draws; runs on the loop for small bodies and on a worker for large ones.
 *
 * Types are strict and the error names the field; unknown fields are ignored. */
#ifndef ROUTER_API_REQUEST_H
#define ROUTER_API_REQUEST_H

#include "base/json.h"
#include "model/chat.h"
#include "model/constraint.h"
#include "model/sampling.h"
#include "model/shape.h"
#include "model/tokenizer.h"
#include "router/space.h"

#ifdef __cplusplus
extern "C" {
#endif

#define RTR_COMPLETION_TOKENS_DEFAULT 16 /* as OpenAI's completions */

typedef enum rtr_api_kind {
    RTR_API_CHAT,
    RTR_API_COMPLETION,
    RTR_API_TOKENIZE,
    RTR_API_DETOKENIZE,
} rtr_api_kind;

typedef struct rtr_api_error {
    int status;
    const char *type; /* literal */
    const char *code; /* literal or NULL */
    char param[128];  /* "" = none */
    char message[SL_ERR_TEXT_MAX];
} rtr_api_error;

/* Immutable after start; shared by all threads. */
typedef struct rtr_api_settings {
    const mdl_tokenizer *tokenizer;
    const mdl_shape *shape;
    mdl_sampling sampling_defaults;
    const char *model_name;
    mdl_chat_options chat;
    uint32_t max_tokens_default; /* of chat answers */
    bool plain_content;          /* added tokens inside message contents count as text */
    rtr_space_key space_key;
} rtr_api_settings;

typedef struct rtr_api_request {
    rtr_api_kind kind;
    bool stream;
    bool include_usage;
    bool return_token_ids;
    uint32_t choice_count; /* n */
    bool want_routing;     /* "sluice": {..}, per generated token */
    bool want_mask;
    bool want_prompt_routing;
    bool include_stop; /* the stop string that ended it stays in the text */
    bool max_tokens_given;
    bool echo;                 /* completions: the prompt's text comes first */
    int32_t prompt_logprobs;   /* -1 = none, else alternatives */
    int32_t priority;          /* lower ones are served first */
    uint64_t cache_space;      /* of cache_salt: cached prefixes are shared inside one only */
    mdl_sampling sampling;     /* seed set, max_tokens set */
    mdl_constraint constraint; /* checked; may say nothing */
    const char *stops[16];     /* borrowed from doc */
    size_t stop_count;
    mdl_ids prompt; /* DETOKENIZE: the tokens */
    sl_json_doc *doc;
    mdl_chat *chat; /* NULL unless CHAT (or TOKENIZE of messages) */
} rtr_api_request;

/* context_max: tokens of prompt and answer together. On failure fills *out_error. */
SL_MUST_USE bool rtr_api_prepare(const rtr_api_settings *settings, rtr_api_kind kind,
                                 const void *body, size_t size, uint32_t context_max,
                                 rtr_api_request **out_request, rtr_api_error *out_error);
/* Might preparing take long whatever the size? (A constraint is compiled.) A guess by the text. */
bool rtr_api_may_be_slow(const void *body, size_t size);
void rtr_api_request_destroy(rtr_api_request *request);

/* Log-probabilities of the prompt's tokens with how many alternatives, for whatever tells them; -1:
 * none. */
int32_t rtr_api_prompt_scores(const rtr_api_request *request);
/* Fits a max_tokens that the request did not give into a cache of so many tokens. */
void rtr_api_fit_default(rtr_api_request *request, uint64_t cache_tokens);
/* Whether prompt and answer fit into the largest cache of a decode node; which limit it is, beside
 * the model's own (context_max), is told. */
bool rtr_api_check_fits(const rtr_api_request *request, uint64_t cache_tokens, uint32_t context_max,
                        rtr_api_error *out_error);
/* From a status of the system to the client's: code, type, text. */
void rtr_api_error_set(rtr_api_error *error, sl_code code, const char *text);

#ifdef __cplusplus
}
#endif
#endif
