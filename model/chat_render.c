/* The prompt text of a checked chat, byte for byte as the model was trained. Cannot fail. */
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/chat_parts.h"

#define BOS       "<｜begin▁of▁sentence｜>"
#define EOS       "<｜end▁of▁sentence｜>"
#define USER      "<｜User｜>"
#define ASSISTANT "<｜Assistant｜>"
#define THINK     "<think>"
#define END_THINK "</think>"
#define DSML      "｜DSML｜"

static const char TOOLS_BEGIN[] =
    "## Tools\n\n"
    "You have access to a set of tools you can use to answer the user's question.\n"
    "You can invoke functions by writing a \"<" DSML "function_calls>\" block like the following "
    "as part of your reply to the user:\n"
    "<" DSML "function_calls>\n"
    "<" DSML "invoke name=\"$FUNCTION_NAME\">\n"
    "<" DSML "parameter name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE</" DSML
    "parameter>\n"
    "...\n"
    "</" DSML "invoke>\n"
    "<" DSML "invoke name=\"$FUNCTION_NAME2\">\n"
    "...\n"
    "</" DSML "invoke>\n"
    "</" DSML "function_calls>\n\n"
    "String and scalar parameters should be specified as is without any escaping or quotes, while "
    "lists and objects should use JSON format. The \"string\" attribute should be set to \"true\" "
    "for string type parameters and \"false\" for other types (numbers, booleans, arrays, "
    "objects).\n\n"
    "If the thinking_mode is enabled, then after function results you should strongly consider "
    "outputting a thinking block. Here is an example:\n\n"
    "<" DSML "function_calls>\n"
    "...\n"
    "</" DSML "function_calls>\n\n"
    "<function_results>\n"
    "...\n"
    "</function_results>\n\n"
    "<think>...thinking about results</think>\n\n"
    "Here are the functions available in JSONSchema format:\n"
    "<functions>\n";
static const char TOOLS_END[] = "\n</functions>\n";
static const char FORMAT[] =
    "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n";

/* --- pieces --- */

static void put(mdl_prompt *p, const char *text)
{
    sl_buf_puts(&p->text, text);
}

/* Notes that what was appended since `begin` came from the client. */
static void mark_content(mdl_prompt *p, size_t begin)
{
    if (p->text.size == begin)
        return;
    if (p->content_count > 0 && p->content[p->content_count - 1].end == begin) {
        p->content[p->content_count - 1].end = p->text.size;
        return;
    }
    if (p->content_count == p->content_capacity) {
        p->content_capacity = p->content_capacity ? p->content_capacity * 2 : 32;
        p->content =
            sl_realloc(p->content, p->content_capacity, sizeof(*p->content), "prompt ranges");
    }
    p->content[p->content_count++] = (mdl_range){begin, p->text.size};
}

static void put_content(mdl_prompt *p, const char *text, size_t size)
{
    size_t begin = p->text.size;

    if (size > 0)
        sl_buf_append(&p->text, text, size);
    mark_content(p, begin);
}

static void put_text(mdl_prompt *p, mdl_text text)
{
    put_content(p, text.data, text.size);
}

static void put_json(mdl_prompt *p, const sl_json *value)
{
    size_t begin = p->text.size;

    sl_json_write_python(&p->text, value);
    mark_content(p, begin);
}

static void put_tools(mdl_prompt *p, const mdl_chat *chat, const mdl_chat_message *m)
{
    if (!m->has_tools || chat->tools_off)
        return;
    put(p, "\n\n");
    put(p, TOOLS_BEGIN);
    for (size_t i = 0; i < sl_json_count(m->own_tools); i++) {
        if (i > 0)
            put(p, "\n");
        put_json(p, sl_json_get(sl_json_at(m->own_tools, i), "function"));
    }
    put(p, TOOLS_END);
}

static void put_format(mdl_prompt *p, const mdl_chat *chat, const mdl_chat_message *m)
{
    if (!m->has_format)
        return;
    put(p, "\n\n");
    put(p, FORMAT);
    put_json(p, chat->schema);
}

static void put_parameter(mdl_prompt *p, const char *key, size_t key_size, const sl_json *value)
{
    size_t size;
    const char *text = sl_json_string(value, &size);

    put(p, "<" DSML "parameter name=\"");
    put_content(p, key, key_size);
    put(p, text ? "\" string=\"true\">" : "\" string=\"false\">");
    if (text)
        put_content(p, text, size);
    else
        put_json(p, value);
    put(p, "</" DSML "parameter>");
}

static void put_calls(mdl_prompt *p, const mdl_chat_message *m)
{
    put(p, "\n\n<" DSML "function_calls>\n");
    for (size_t i = 0; i < m->call_count; i++) {
        const mdl_chat_call *call = &m->calls[i];

        put(p, "<" DSML "invoke name=\"");
        put_content(p, call->name, strlen(call->name));
        put(p, "\">\n");
        for (size_t k = 0; k < sl_json_count(call->arguments); k++) {
            size_t size;
            const char *key = sl_json_key(call->arguments, k, &size);

            if (k > 0)
                put(p, "\n");
            put_parameter(p, key, size, sl_json_at(call->arguments, k));
        }
        put(p, "\n</" DSML "invoke>\n");
    }
    put(p, "</" DSML "function_calls>");
}

/* --- messages --- */

static void put_assistant(mdl_prompt *p, const mdl_chat *chat, size_t index)
{
    const mdl_chat_message *m = &chat->messages[index];
    bool shows_reasoning = chat->mode == MDL_CHAT_MODE_THINKING && (ptrdiff_t)index > chat->last;

    if (shows_reasoning) {
        put_text(p, m->reasoning);
        if (m->prefix && m->content.size == 0)
            return; /* the reasoning itself is to be continued */
        put(p, END_THINK);
    }
    put_text(p, m->content);
    if (m->prefix)
        return;
    if (m->call_count > 0)
        put_calls(p, m);
    put(p, EOS);
}

static void put_tool(mdl_prompt *p, const mdl_chat *chat, size_t index)
{
    const mdl_chat_message *m = &chat->messages[index];
    bool thinks = chat->mode == MDL_CHAT_MODE_THINKING && (ptrdiff_t)index >= chat->last;

    if (m->result_index == 0)
        put(p, "\n\n<function_results>");
    put(p, "\n<result>");
    put_text(p, m->content);
    put(p, "</result>");
    if (m->result_index + 1 == m->result_count) {
        put(p, "\n</function_results>\n\n");
        put(p, thinks ? THINK : END_THINK);
    }
}

static void put_turn_end(mdl_prompt *p, const mdl_chat *chat, size_t index)
{
    bool thinks = chat->mode == MDL_CHAT_MODE_THINKING && (ptrdiff_t)index == chat->last;

    put(p, ASSISTANT);
    put(p, thinks ? THINK : END_THINK);
}

static void put_message(mdl_prompt *p, const mdl_chat *chat, size_t index)
{
    const mdl_chat_message *m = &chat->messages[index];

    switch (m->role) {
    case MDL_ROLE_SYSTEM:
        put_text(p, m->content);
        put_tools(p, chat, m);
        put_format(p, chat, m);
        break;
    case MDL_ROLE_USER:
        put(p, USER);
        put_text(p, m->content);
        put_turn_end(p, chat, index);
        break;
    case MDL_ROLE_DEVELOPER:
        put(p, USER);
        put_tools(p, chat, m);
        put_format(p, chat, m);
        put(p, "\n\n# The user's message is: ");
        put_text(p, m->content);
        put_turn_end(p, chat, index);
        break;
    case MDL_ROLE_ASSISTANT:
        put_assistant(p, chat, index);
        break;
    case MDL_ROLE_TOOL:
        put_tool(p, chat, index);
        break;
    }
}

void mdl_chat_render(const mdl_chat *chat, size_t message_begin, mdl_prompt *prompt)
{
    if (!prompt->text.data)
        sl_buf_init(&prompt->text, 0);
    sl_buf_clear(&prompt->text);
    prompt->content_count = 0;
    if (message_begin == 0)
        put(prompt, BOS);
    for (size_t i = message_begin; i < chat->message_count; i++) {
        if (!mdl_chat_is_dropped(chat, i))
            put_message(prompt, chat, i);
    }
}

void mdl_prompt_fini(mdl_prompt *prompt)
{
    sl_buf_fini(&prompt->text);
    sl_free(prompt->content);
    memset(prompt, 0, sizeof(*prompt));
}
