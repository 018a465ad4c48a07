/* Chat requests: from OpenAI-style JSON to validated messages, and from those to the prompt text.
 *
 * Follows docs of the V3.2 encoding byte for byte. Pure functions of the request: no time, no
 * randomness. An mdl_chat borrows from the request document, which must outlive it; it is immutable
 * and shareable. Errors are SL_INVALID (400) and name the field ("messages[3].content: ..."), or
 * SL_UNSUPPORTED for what is understood but not offered. Thread: any. */
#ifndef MODEL_CHAT_H
#define MODEL_CHAT_H

#include "base/json.h"
#include "model/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MDL_CHAT_MESSAGES_MAX  8192
#define MDL_CHAT_TOOLS_MAX     1024
#define MDL_CALLS_MAX          512 /* calls of one assistant message */
#define MDL_FUNCTION_NAME_MAX  256
#define MDL_PARAMETER_NAME_MAX 1024

typedef enum mdl_chat_mode {
    MDL_CHAT_MODE_CHAT,
    MDL_CHAT_MODE_THINKING,
} mdl_chat_mode;

typedef enum mdl_response_format {
    MDL_RESPONSE_TEXT,
    MDL_RESPONSE_JSON_OBJECT, /* asks for constrained decoding only */
    MDL_RESPONSE_JSON_SCHEMA, /* also rendered into the prompt */
} mdl_response_format;

typedef struct mdl_chat_options {
    mdl_chat_mode mode_default;   /* when the request does not say */
    bool developer_allowed;       /* accept the role "developer", which is the template's own */
    bool speciale;                /* V3.2-Speciale: thinking only, no tools */
    bool keep_developer;          /* drop_thinking off: keeps earlier developer messages */
    bool final_assistant_allowed; /* a complete conversation (vectors, training text) */
} mdl_chat_options;

typedef struct mdl_chat mdl_chat;

/* request: the object with "messages", "tools", "tool_choice", "thinking", "response_format"...
 * Other members are ignored. options may be NULL (all zero). */
SL_MUST_USE sl_status mdl_chat_parse(const sl_json *request, const mdl_chat_options *options,
                                     mdl_chat **out_chat, sl_err *err);
void mdl_chat_destroy(mdl_chat *chat);

mdl_chat_mode mdl_chat_mode_get(const mdl_chat *chat);
/* The prompt ends inside reasoning: give it to the output parser. */
bool mdl_chat_reasoning_open(const mdl_chat *chat);
/* Tools were rendered, so calls in the answer are parsed. */
bool mdl_chat_calls_expected(const mdl_chat *chat);
size_t mdl_chat_message_count(const mdl_chat *chat); /* after insertion of a system message */
size_t mdl_chat_tool_count(const mdl_chat *chat);
const char *mdl_chat_tool_name(const mdl_chat *chat, size_t index);
/* The tool's JSON schema of one parameter; NULL if the tool or the parameter is unknown. */
const sl_json *mdl_chat_parameter_schema(const mdl_chat *chat, const char *tool_name,
                                         const char *parameter_name);
bool mdl_chat_tool_known(const mdl_chat *chat, const char *tool_name);
/* The function object as the client sent it. */
const sl_json *mdl_chat_tool(const mdl_chat *chat, size_t index);
/* The answer must be calls: of the one function named, or (NULL) of any. */
bool mdl_chat_calls_forced(const mdl_chat *chat);
const char *mdl_chat_forced_name(const mdl_chat *chat);
/* At most one call, where calls are constrained. */
bool mdl_chat_one_call(const mdl_chat *chat);
/* The last message is an assistant's that the answer goes on with. */
bool mdl_chat_continues(const mdl_chat *chat);
mdl_response_format mdl_chat_response_format(const mdl_chat *chat);
const sl_json *mdl_chat_response_schema(const mdl_chat *chat); /* NULL unless JSON_SCHEMA */
/* For metrics and hints: assistant messages of the current loop with calls but no reasoning (in
 * thinking mode), and user messages. */
size_t mdl_chat_calls_without_reasoning(const mdl_chat *chat);
size_t mdl_chat_user_turns(const mdl_chat *chat);

/* Rendered prompt. `content` lists what came from messages (for mdl_encode_options.plain), as
 * opposed to what the template wrote. Zero-initialise before the first render. */
typedef struct mdl_prompt {
    sl_buf text;
    mdl_range *content;
    size_t content_count;
    size_t content_capacity;
} mdl_prompt;

/* Replaces what prompt holds. message_begin: first message to render (0 = all, with BOS; larger =
 * without BOS, the earlier ones are context only). */
void mdl_chat_render(const mdl_chat *chat, size_t message_begin, mdl_prompt *prompt);
void mdl_prompt_fini(mdl_prompt *prompt);

#ifdef __cplusplus
}
#endif
#endif
