/* The inside of an mdl_chat, shared by the files that parse and render it. Not for others. */
#ifndef MODEL_CHAT_PARTS_H
#define MODEL_CHAT_PARTS_H

#include "model/chat.h"

typedef enum mdl_role {
    MDL_ROLE_SYSTEM,
    MDL_ROLE_USER,
    MDL_ROLE_DEVELOPER,
    MDL_ROLE_ASSISTANT,
    MDL_ROLE_TOOL,
} mdl_role;

typedef struct mdl_text { /* borrowed; data NULL = not given */
    const char *data;
    size_t size;
} mdl_text;

typedef struct mdl_chat_call {
    const char *id;           /* NULL = none */
    const char *name;         /* checked */
    const sl_json *arguments; /* an object */
    sl_json_doc *doc;         /* owned, when arguments came as a string */
} mdl_chat_call;

typedef struct mdl_chat_message {
    mdl_role role;
    size_t request_index; /* in the request's list, for messages */
    mdl_text content;
    char *joined; /* owned, when content came in parts */
    mdl_text reasoning;
    bool has_tools;           /* render the tools here */
    bool has_format;          /* render the response schema here */
    const sl_json *own_tools; /* message-level array, or NULL */
    mdl_chat_call *calls;
    size_t call_count;
    const char *tool_call_id; /* TOOL; NULL = none */
    size_t result_index;      /* TOOL: 0-based place among the results of one assistant message */
    size_t result_count;
    bool prefix; /* the last one: to be continued */
} mdl_chat_message;

struct mdl_chat {
    mdl_chat_options options;
    mdl_chat_mode mode;
    mdl_chat_message *messages;
    size_t message_count;
    ptrdiff_t last;        /* last user or developer message, -1 = none */
    const sl_json **tools; /* function objects */
    size_t tool_count;
    bool tools_off;          /* tool_choice none */
    bool calls_forced;       /* tool_choice required or a function */
    const char *forced_name; /* of the function */
    bool one_call;
    mdl_response_format format;
    const sl_json *schema;
};

/* Puts tool results in call order, checks the order of roles; sets last and prefix. */
SL_MUST_USE sl_status mdl_chat_check_order(mdl_chat *chat, bool continue_final, sl_err *err);

/* True in thinking mode for the developer messages that the template leaves out. */
static inline bool mdl_chat_is_dropped(const mdl_chat *chat, size_t index)
{
    return chat->mode == MDL_CHAT_MODE_THINKING && !chat->options.keep_developer &&
           chat->messages[index].role == MDL_ROLE_DEVELOPER && (ptrdiff_t)index < chat->last;
}

#endif
