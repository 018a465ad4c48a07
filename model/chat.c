/* Reading chat requests: every member is checked here, so that rendering cannot fail.
 *
 * Owns the message list of one request; borrows texts from the request document. Thread: any. */
#include "model/chat.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/chat_parts.h"

#define PATH_MAX_TEXT 128 /* "messages[12].tool_calls[3].function.name" */

static const char *kind_of(const sl_json *value)
{
    return sl_json_type_name(sl_json_typeof(value));
}

/* Absent and null alike. */
static bool is_given(const sl_json *value)
{
    return sl_json_typeof(value) != SL_JSON_NULL;
}

static bool is_name_safe(const char *name, size_t size)
{
    return strlen(name) == size && strpbrk(name, "\"<>\n") == NULL;
}

/* --- texts --- */

static sl_status join_parts(const sl_json *parts, const char *field, mdl_chat_message *m,
                            sl_err *err)
{
    sl_buf buf;
    size_t size;

    sl_buf_init(&buf, 0);
    for (size_t i = 0; i < sl_json_count(parts); i++) {
        const sl_json *part = sl_json_at(parts, i);
        const char *type = sl_json_string(sl_json_get(part, "type"), NULL);
        const char *text = sl_json_string(sl_json_get(part, "text"), &size);

        if (!type || strcmp(type, "text") != 0 || !text) {
            sl_buf_fini(&buf);
            return sl_fail(err, SL_INVALID,
                           "%s[%zu]: only parts {\"type\": \"text\", \"text\": "
                           "string} are supported, this is of type \"%.32s\"",
                           field, i, type ? type : "");
        }
        if (i > 0)
            sl_buf_putc(&buf, '\n');
        sl_buf_append(&buf, text, size);
    }
    m->joined = sl_buf_take(&buf, &m->content.size);
    if (!m->joined)
        m->joined = sl_strdup("", "chat content");
    m->content.data = m->joined;
    return sl_ok();
}

static sl_status read_content(const sl_json *message, mdl_chat_message *m, sl_err *err)
{
    const sl_json *content = sl_json_get(message, "content");
    char field[PATH_MAX_TEXT];

    snprintf(field, sizeof(field), "messages[%zu].content", m->request_index);
    switch (sl_json_typeof(content)) {
    case SL_JSON_NULL:
        if (m->role == MDL_ROLE_SYSTEM)
            m->content = (mdl_text){"", 0};
        return sl_ok();
    case SL_JSON_STRING:
        m->content.data = sl_json_string(content, &m->content.size);
        return sl_ok();
    case SL_JSON_ARRAY:
        return join_parts(content, field, m, err);
    default:
        return sl_fail(err, SL_INVALID, "%s: must be a string, null or an array of parts, is %s",
                       field, kind_of(content));
    }
}

static sl_status read_string(const sl_json *object, const char *key, const char *parent,
                             mdl_text *out_text, sl_err *err)
{
    const sl_json *value = sl_json_get(object, key);

    if (!is_given(value))
        return sl_ok();
    if (sl_json_typeof(value) != SL_JSON_STRING)
        return sl_fail(err, SL_INVALID, "%s.%s: must be a string, is %s", parent, key,
                       kind_of(value));
    out_text->data = sl_json_string(value, &out_text->size);
    return sl_ok();
}

/* --- tools --- */

static sl_status check_tool(const sl_json *tool, const char *field, const sl_json **out_function,
                            sl_err *err)
{
    const char *type = sl_json_string(sl_json_get(tool, "type"), NULL);
    const sl_json *function = sl_json_get(tool, "function");
    const sl_json *parameters = sl_json_get(function, "parameters");
    const sl_json *strict = sl_json_get(function, "strict");
    size_t size;
    const char *name;
    bool is_strict;

    if (!type || strcmp(type, "function") != 0)
        return sl_fail(err, SL_INVALID, "%s.type: must be \"function\"", field);
    if (sl_json_typeof(function) != SL_JSON_OBJECT)
        return sl_fail(err, SL_INVALID, "%s.function: must be an object, is %s", field,
                       kind_of(function));
    name = sl_json_string(sl_json_get(function, "name"), &size);
    if (!name || size == 0 || size > MDL_FUNCTION_NAME_MAX || !is_name_safe(name, size))
        return sl_fail(err, SL_INVALID,
                       "%s.function.name: must be a string of 1 to %d bytes without \", <, > and "
                       "newline",
                       field, MDL_FUNCTION_NAME_MAX);
    if (is_given(parameters) && sl_json_typeof(parameters) != SL_JSON_OBJECT)
        return sl_fail(err, SL_INVALID, "%s.function.parameters: must be an object, is %s", field,
                       kind_of(parameters));
    if (is_given(strict) && !sl_json_bool(strict, &is_strict))
        return sl_fail(err, SL_INVALID, "%s.function.strict: must be true or false, is %s", field,
                       kind_of(strict));
    *out_function = function;
    return sl_ok();
}

/* Of one list: a call could be of either. */
static sl_status check_names(const mdl_chat *chat, size_t first, const char *field, sl_err *err)
{
    for (size_t i = first; i < chat->tool_count; i++) {
        const char *name = mdl_chat_tool_name(chat, i);
        for (size_t j = first; j < i; j++)
            if (strcmp(mdl_chat_tool_name(chat, j), name) == 0)
                return sl_fail(err, SL_INVALID,
                               "%s[%zu].function.name: \"%.64s\" is also the name of %s[%zu]",
                               field, i - first, name, field, j - first);
    }
    return sl_ok();
}

static sl_status read_tools(mdl_chat *chat, const sl_json *tools, const char *field, sl_err *err)
{
    size_t count = sl_json_count(tools), first = chat->tool_count;

    if (!is_given(tools))
        return sl_ok();
    if (sl_json_typeof(tools) != SL_JSON_ARRAY)
        return sl_fail(err, SL_INVALID, "%s: must be an array, is %s", field, kind_of(tools));
    if (count > MDL_CHAT_TOOLS_MAX - chat->tool_count)
        return sl_fail(err, SL_INVALID, "%s: more than %d tools", field, MDL_CHAT_TOOLS_MAX);
    if (count > 0 && chat->options.speciale)
        return sl_fail(err, SL_INVALID, "%s: this model does not support tool calls", field);
    chat->tools =
        sl_realloc(chat->tools, chat->tool_count + count + 1, sizeof(*chat->tools), "chat tools");
    for (size_t i = 0; i < count; i++) {
        char path[PATH_MAX_TEXT];

        snprintf(path, sizeof(path), "%s[%zu]", field, i);
        SL_TRY(check_tool(sl_json_at(tools, i), path, &chat->tools[chat->tool_count], err));
        chat->tool_count++;
    }
    return check_names(chat, first, field, err);
}

static sl_status read_tool_choice(mdl_chat *chat, const sl_json *request, sl_err *err)
{
    const sl_json *choice = sl_json_get(request, "tool_choice");
    const char *text = sl_json_string(choice, NULL), *type;

    if (!is_given(choice) || (text && strcmp(text, "auto") == 0))
        return sl_ok();
    if (text && strcmp(text, "none") == 0) {
        chat->tools_off = true;
        return sl_ok();
    }
    chat->calls_forced = true;
    if (text && strcmp(text, "required") == 0)
        return sl_ok();
    type = sl_json_string(sl_json_get(choice, "type"), NULL);
    chat->forced_name = sl_json_string(sl_json_get(sl_json_get(choice, "function"), "name"), NULL);
    if (type && strcmp(type, "function") == 0 && chat->forced_name)
        return sl_ok();
    return sl_fail(err, SL_INVALID,
                   "tool_choice: must be \"auto\", \"none\", \"required\" or {\"type\": "
                   "\"function\", \"function\": {\"name\": ..}}");
}

static sl_status read_parallel(mdl_chat *chat, const sl_json *request, sl_err *err)
{
    const sl_json *parallel = sl_json_get(request, "parallel_tool_calls");
    bool many = true;

    if (is_given(parallel) && !sl_json_bool(parallel, &many))
        return sl_fail(err, SL_INVALID, "parallel_tool_calls: must be true or false");
    chat->one_call = !many || chat->forced_name;
    return sl_ok();
}

/* --- calls --- */

static sl_status check_argument_names(const sl_json *arguments, const char *field, sl_err *err)
{
    for (size_t i = 0; i < sl_json_count(arguments); i++) {
        size_t size;
        const char *key = sl_json_key(arguments, i, &size);

        if (size > MDL_PARAMETER_NAME_MAX || !is_name_safe(key, size))
            return sl_fail(err, SL_INVALID,
                           "%s: parameter name \"%.64s\" is longer than %d bytes or contains \", "
                           "<, > or newline",
                           field, key, MDL_PARAMETER_NAME_MAX);
    }
    return sl_ok();
}

static sl_status read_arguments(const sl_json *function, const char *field, mdl_chat_call *call,
                                sl_err *err)
{
    const sl_json *value = sl_json_get(function, "arguments");
    size_t size;
    const char *text = sl_json_string(value, &size);
    char path[PATH_MAX_TEXT + 32];
    sl_err inner = {0};

    snprintf(path, sizeof(path), "%s.function.arguments", field);
    if (text) {
        if (!sl_is_ok(sl_json_parse(text, size, NULL, &call->doc, &inner)))
            return sl_fail(err, SL_INVALID, "%s: is not JSON: %.200s", path, inner.text);
        value = sl_json_root(call->doc);
    }
    if (sl_json_typeof(value) != SL_JSON_OBJECT)
        return sl_fail(err, SL_INVALID, "%s: must be a JSON object%s, is %s", path,
                       text ? "" : " or a string of one", kind_of(value));
    call->arguments = value;
    return check_argument_names(value, path, err);
}

static sl_status read_call(const sl_json *entry, const char *field, mdl_chat_call *call,
                           sl_err *err)
{
    const sl_json *function = sl_json_get(entry, "function");
    const sl_json *type = sl_json_get(entry, "type");
    const char *type_text = sl_json_string(type, NULL);
    mdl_text id = {NULL, 0};
    size_t size;
    const char *name = sl_json_string(sl_json_get(function, "name"), &size);

    SL_TRY(read_string(entry, "id", field, &id, err));
    if (is_given(type) && (!type_text || strcmp(type_text, "function") != 0))
        return sl_fail(err, SL_INVALID, "%s.type: must be \"function\"", field);
    if (sl_json_typeof(function) != SL_JSON_OBJECT)
        return sl_fail(err, SL_INVALID, "%s.function: must be an object, is %s", field,
                       kind_of(function));
    if (!name || size == 0 || size > MDL_FUNCTION_NAME_MAX || !is_name_safe(name, size))
        return sl_fail(err, SL_INVALID,
                       "%s.function.name: must be a string of 1 to %d bytes without \", <, > and "
                       "newline",
                       field, MDL_FUNCTION_NAME_MAX);
    call->id = id.data;
    call->name = name;
    return read_arguments(function, field, call, err);
}

static sl_status read_calls(const sl_json *message, mdl_chat_message *m, sl_err *err)
{
    const sl_json *calls = sl_json_get(message, "tool_calls");
    char field[PATH_MAX_TEXT];
    size_t count = sl_json_count(calls);

    if (!is_given(calls))
        return sl_ok();
    if (sl_json_typeof(calls) != SL_JSON_ARRAY || count > MDL_CALLS_MAX)
        return sl_fail(err, SL_INVALID, "messages[%zu].tool_calls: must be an array of at most %d",
                       m->request_index, MDL_CALLS_MAX);
    if (count == 0)
        return sl_ok();
    m->calls = sl_alloc(count, sizeof(*m->calls), "chat calls");
    m->call_count = count;
    for (size_t i = 0; i < count; i++) {
        snprintf(field, sizeof(field), "messages[%zu].tool_calls[%zu]", m->request_index, i);
        SL_TRY(read_call(sl_json_at(calls, i), field, &m->calls[i], err));
        for (size_t k = 0; k < i && m->calls[i].id; k++) {
            if (m->calls[k].id && strcmp(m->calls[k].id, m->calls[i].id) == 0)
                return sl_fail(err, SL_INVALID, "%s.id: occurs twice", field);
        }
    }
    return sl_ok();
}

/* --- messages --- */

static sl_status read_role(const mdl_chat *chat, const sl_json *message, mdl_chat_message *m,
                           sl_err *err)
{
    static const struct {
        const char *name;
        mdl_role role;
    } ROLES[] = {
        {"system", MDL_ROLE_SYSTEM},       {"user", MDL_ROLE_USER},
        {"assistant", MDL_ROLE_ASSISTANT}, {"developer", MDL_ROLE_DEVELOPER},
        {"tool", MDL_ROLE_TOOL},
    };
    const char *name = sl_json_string(sl_json_get(message, "role"), NULL);

    for (size_t i = 0; name && i < sizeof(ROLES) / sizeof(ROLES[0]); i++) {
        if (strcmp(name, ROLES[i].name) != 0)
            continue;
        m->role = ROLES[i].role;
        if (m->role == MDL_ROLE_DEVELOPER && !chat->options.developer_allowed)
            return sl_fail(err, SL_INVALID,
                           "messages[%zu].role: \"developer\" is not offered, use \"system\"",
                           m->request_index);
        return sl_ok();
    }
    return sl_fail(err, SL_INVALID,
                   "messages[%zu].role: must be system, user, assistant or tool, is \"%.32s\"",
                   m->request_index, name ? name : "");
}

static sl_status check_presence(const mdl_chat_message *m, sl_err *err)
{
    bool needed = m->role != MDL_ROLE_ASSISTANT || (m->call_count == 0 && !m->reasoning.data);

    if (needed && !m->content.data)
        return sl_fail(err, SL_INVALID, "messages[%zu].content: is missing", m->request_index);
    if (m->role == MDL_ROLE_DEVELOPER && m->content.size == 0)
        return sl_fail(err, SL_INVALID, "messages[%zu].content: must not be empty",
                       m->request_index);
    return sl_ok();
}

static sl_status read_prefix(const sl_json *message, mdl_chat_message *m, sl_err *err)
{
    const sl_json *prefix = sl_json_get(message, "prefix");

    if (is_given(prefix) && !sl_json_bool(prefix, &m->prefix))
        return sl_fail(err, SL_INVALID, "messages[%zu].prefix: must be true or false",
                       m->request_index);
    return sl_ok();
}

static sl_status read_message(mdl_chat *chat, const sl_json *message, mdl_chat_message *m,
                              sl_err *err)
{
    char field[PATH_MAX_TEXT];
    mdl_text id = {NULL, 0};

    snprintf(field, sizeof(field), "messages[%zu]", m->request_index);
    if (sl_json_typeof(message) != SL_JSON_OBJECT)
        return sl_fail(err, SL_INVALID, "%s: must be an object, is %s", field, kind_of(message));
    SL_TRY(read_role(chat, message, m, err));
    SL_TRY(read_content(message, m, err));
    if (m->role == MDL_ROLE_ASSISTANT) {
        SL_TRY(read_string(message, "reasoning_content", field, &m->reasoning, err));
        if (!m->reasoning.data)
            SL_TRY(read_string(message, "reasoning", field, &m->reasoning, err));
        SL_TRY(read_calls(message, m, err));
        SL_TRY(read_prefix(message, m, err));
    }
    if (m->role == MDL_ROLE_TOOL) {
        SL_TRY(read_string(message, "tool_call_id", field, &id, err));
        m->tool_call_id = id.data;
    }
    if (m->role == MDL_ROLE_SYSTEM || m->role == MDL_ROLE_DEVELOPER) {
        size_t before = chat->tool_count;
        char tools_field[PATH_MAX_TEXT + 8];

        snprintf(tools_field, sizeof(tools_field), "%s.tools", field);
        m->own_tools = sl_json_get(message, "tools");
        SL_TRY(read_tools(chat, m->own_tools, tools_field, err));
        m->has_tools = chat->tool_count > before;
    }
    return check_presence(m, err);
}

/* Leaves room for an inserted system message at the front. */
static sl_status read_messages(mdl_chat *chat, const sl_json *request, sl_err *err)
{
    const sl_json *list = sl_json_get(request, "messages");
    size_t count = sl_json_count(list);

    if (!is_given(list))
        return sl_fail(err, SL_INVALID, "messages: is missing");
    if (sl_json_typeof(list) != SL_JSON_ARRAY)
        return sl_fail(err, SL_INVALID, "messages: must be an array, is %s", kind_of(list));
    if (count == 0)
        return sl_fail(err, SL_INVALID, "messages: is empty");
    if (count > MDL_CHAT_MESSAGES_MAX)
        return sl_fail(err, SL_INVALID, "messages: %zu messages, at most %d", count,
                       MDL_CHAT_MESSAGES_MAX);
    chat->messages = sl_alloc(count + 1, sizeof(*chat->messages), "chat messages");
    for (size_t i = 0; i < count; i++) {
        mdl_chat_message *m = &chat->messages[i];

        m->request_index = i;
        chat->message_count = i + 1;
        SL_TRY(read_message(chat, sl_json_at(list, i), m, err));
    }
    return sl_ok();
}

/* The message that carries what the request says about tools and format. */
static mdl_chat_message *front_message(mdl_chat *chat)
{
    mdl_chat_message *first = &chat->messages[0];

    if (first->role == MDL_ROLE_SYSTEM || first->role == MDL_ROLE_DEVELOPER)
        return first;
    memmove(first + 1, first, chat->message_count * sizeof(*first));
    chat->message_count++;
    *first = (mdl_chat_message){.role = MDL_ROLE_SYSTEM, .content = {"", 0}};
    return first;
}

static sl_status attach_tools(mdl_chat *chat, const sl_json *request, sl_err *err)
{
    const sl_json *tools = sl_json_get(request, "tools");
    size_t before = chat->tool_count;
    mdl_chat_message *front;

    SL_TRY(read_tools(chat, tools, "tools", err));
    if (chat->tool_count == before)
        return sl_ok();
    if (before > 0)
        return sl_fail(err, SL_INVALID, "tools: given in the request and in a message");
    if (chat->tools_off)
        return sl_ok();
    front = front_message(chat);
    front->own_tools = tools;
    front->has_tools = true;
    return sl_ok();
}

static sl_status check_forced(const mdl_chat *chat, sl_err *err)
{
    if (chat->calls_forced && chat->tool_count == 0)
        return sl_fail(err, SL_INVALID, "tool_choice: forces a call, and there are no tools");
    if (chat->forced_name && !mdl_chat_tool_known(chat, chat->forced_name))
        return sl_fail(err, SL_INVALID, "tool_choice: the function \"%.128s\" is not among tools",
                       chat->forced_name);
    return sl_ok();
}

static sl_status read_format(mdl_chat *chat, const sl_json *request, sl_err *err)
{
    const sl_json *format = sl_json_get(request, "response_format");
    const char *type = sl_json_string(sl_json_get(format, "type"), NULL);

    if (!is_given(format) || (type && strcmp(type, "text") == 0))
        return sl_ok();
    if (type && strcmp(type, "json_object") == 0) {
        chat->format = MDL_RESPONSE_JSON_OBJECT;
        return sl_ok();
    }
    if (!type || strcmp(type, "json_schema") != 0)
        return sl_fail(err, SL_INVALID,
                       "response_format.type: must be text, json_object or json_schema");
    chat->schema = sl_json_get(sl_json_get(format, "json_schema"), "schema");
    if (sl_json_typeof(chat->schema) != SL_JSON_OBJECT)
        return sl_fail(err, SL_INVALID, "response_format.json_schema.schema: %s",
                       chat->schema ? "must be an object" : "is missing");
    chat->format = MDL_RESPONSE_JSON_SCHEMA;
    front_message(chat)->has_format = true;
    return sl_ok();
}

/* The model thinks or does not: there are no degrees of it. */
static sl_status read_effort(const sl_json *effort, bool *on, sl_err *err)
{
    static const char *const EFFORTS[] = {"none", "minimal", "low", "medium", "high", "xhigh"};
    const char *text = sl_json_string(effort, NULL);
    for (size_t i = 0; text && i < sizeof(EFFORTS) / sizeof(EFFORTS[0]); i++) {
        if (strcmp(text, EFFORTS[i]) != 0)
            continue;
        *on = i > 0;
        return sl_ok();
    }
    return sl_fail(err, SL_INVALID,
                   "reasoning_effort: must be none, minimal, low, medium, high or xhigh; all but "
                   "none are one to this model");
}

static sl_status read_mode(mdl_chat *chat, const sl_json *request, sl_err *err)
{
    static const char *const KEYS[] = {"thinking", "enable_thinking"};
    const sl_json *thinking = sl_json_get(request, "thinking");
    const sl_json *kwargs = sl_json_get(request, "chat_template_kwargs");
    const char *type = sl_json_string(sl_json_get(thinking, "type"), NULL);
    const sl_json *effort = sl_json_get(request, "reasoning_effort");
    bool on = chat->options.speciale || chat->options.mode_default == MDL_CHAT_MODE_THINKING;

    if (is_given(kwargs) && sl_json_typeof(kwargs) != SL_JSON_OBJECT)
        return sl_fail(err, SL_INVALID, "chat_template_kwargs: must be an object, is %s",
                       kind_of(kwargs));
    if (is_given(effort)) /* what is more exact counts, if it is there too */
        SL_TRY(read_effort(effort, &on, err));
    if (is_given(thinking)) {
        if (!type || (strcmp(type, "enabled") != 0 && strcmp(type, "disabled") != 0))
            return sl_fail(err, SL_INVALID,
                           "thinking: must be {\"type\": \"enabled\"} or "
                           "{\"type\": \"disabled\"}");
        on = strcmp(type, "enabled") == 0;
    } else {
        for (size_t i = 0; i < 2; i++) {
            const sl_json *value = sl_json_get(kwargs, KEYS[i]);

            if (!is_given(value))
                continue;
            if (!sl_json_bool(value, &on))
                return sl_fail(err, SL_INVALID, "chat_template_kwargs.%s: must be true or false",
                               KEYS[i]);
            break;
        }
    }
    if (!on && chat->options.speciale)
        return sl_fail(err, SL_INVALID, "thinking: this model only answers in thinking mode");
    chat->mode = on ? MDL_CHAT_MODE_THINKING : MDL_CHAT_MODE_CHAT;
    return sl_ok();
}

static sl_status read_request(mdl_chat *chat, const sl_json *request, sl_err *err)
{
    const sl_json *last = sl_json_get(request, "continue_final_message");
    bool continue_final = false;

    if (sl_json_typeof(request) != SL_JSON_OBJECT)
        return sl_fail(err, SL_INVALID, "request: must be a JSON object, is %s", kind_of(request));
    if (is_given(last) && !sl_json_bool(last, &continue_final))
        return sl_fail(err, SL_INVALID, "continue_final_message: must be true or false");
    SL_TRY(read_mode(chat, request, err));
    SL_TRY(read_tool_choice(chat, request, err));
    SL_TRY(read_parallel(chat, request, err));
    SL_TRY(read_messages(chat, request, err));
    SL_TRY(attach_tools(chat, request, err));
    SL_TRY(check_forced(chat, err));
    SL_TRY(read_format(chat, request, err));
    return mdl_chat_check_order(chat, continue_final, err);
}

sl_status mdl_chat_parse(const sl_json *request, const mdl_chat_options *options,
                         mdl_chat **out_chat, sl_err *err)
{
    mdl_chat *chat = sl_alloc(1, sizeof(*chat), "chat");
    sl_status status;

    if (options)
        chat->options = *options;
    chat->last = -1;
    status = read_request(chat, request, err);
    if (!sl_is_ok(status)) {
        mdl_chat_destroy(chat);
        return status;
    }
    *out_chat = chat;
    return sl_ok();
}

void mdl_chat_destroy(mdl_chat *chat)
{
    if (!chat)
        return;
    for (size_t i = 0; i < chat->message_count; i++) {
        mdl_chat_message *m = &chat->messages[i];

        for (size_t k = 0; k < m->call_count; k++)
            sl_json_doc_destroy(m->calls[k].doc);
        sl_free(m->calls);
        sl_free(m->joined);
    }
    sl_free(chat->messages);
    sl_free(chat->tools);
    sl_free(chat);
}

/* --- look-up --- */

mdl_chat_mode mdl_chat_mode_get(const mdl_chat *chat)
{
    return chat->mode;
}

bool mdl_chat_reasoning_open(const mdl_chat *chat)
{
    const mdl_chat_message *final = &chat->messages[chat->message_count - 1];

    if (chat->mode != MDL_CHAT_MODE_THINKING)
        return false;
    return final->role != MDL_ROLE_ASSISTANT || (final->prefix && final->content.size == 0);
}

bool mdl_chat_calls_expected(const mdl_chat *chat)
{
    return chat->tool_count > 0 && !chat->tools_off;
}

size_t mdl_chat_message_count(const mdl_chat *chat)
{
    return chat->message_count;
}

size_t mdl_chat_tool_count(const mdl_chat *chat)
{
    return chat->tool_count;
}

const char *mdl_chat_tool_name(const mdl_chat *chat, size_t index)
{
    sl_assert(index < chat->tool_count);
    return sl_json_string(sl_json_get(chat->tools[index], "name"), NULL);
}

static const sl_json *find_tool(const mdl_chat *chat, const char *name)
{
    for (size_t i = 0; i < chat->tool_count; i++) {
        if (strcmp(mdl_chat_tool_name(chat, i), name) == 0)
            return chat->tools[i];
    }
    return NULL;
}

bool mdl_chat_tool_known(const mdl_chat *chat, const char *tool_name)
{
    return find_tool(chat, tool_name) != NULL;
}

const sl_json *mdl_chat_parameter_schema(const mdl_chat *chat, const char *tool_name,
                                         const char *parameter_name)
{
    const sl_json *parameters = sl_json_get(find_tool(chat, tool_name), "parameters");

    return sl_json_get(sl_json_get(parameters, "properties"), parameter_name);
}

const sl_json *mdl_chat_tool(const mdl_chat *chat, size_t index)
{
    sl_assert(index < chat->tool_count);
    return chat->tools[index];
}

bool mdl_chat_calls_forced(const mdl_chat *chat)
{
    return chat->calls_forced;
}

const char *mdl_chat_forced_name(const mdl_chat *chat)
{
    return chat->forced_name;
}

bool mdl_chat_one_call(const mdl_chat *chat)
{
    return chat->one_call;
}

bool mdl_chat_continues(const mdl_chat *chat)
{
    return chat->messages[chat->message_count - 1].prefix;
}

mdl_response_format mdl_chat_response_format(const mdl_chat *chat)
{
    return chat->format;
}

const sl_json *mdl_chat_response_schema(const mdl_chat *chat)
{
    return chat->schema;
}

size_t mdl_chat_calls_without_reasoning(const mdl_chat *chat)
{
    size_t count = 0;

    if (chat->mode != MDL_CHAT_MODE_THINKING)
        return 0;
    for (size_t i = (size_t)(chat->last + 1); i < chat->message_count; i++)
        count += chat->messages[i].call_count > 0 && chat->messages[i].reasoning.size == 0;
    return count;
}

size_t mdl_chat_user_turns(const mdl_chat *chat)
{
    size_t count = 0;

    for (size_t i = 0; i < chat->message_count; i++)
        count += chat->messages[i].role == MDL_ROLE_USER;
    return count;
}
