/* Whole answers: collected from events, or parsed strictly. Owner's thread. */
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/output.h"

#define BOS       "<｜begin▁of▁sentence｜>"
#define EOS       "<｜end▁of▁sentence｜>"
#define THINK     "<think>"
#define END_THINK "</think>"
#define DSML      "｜DSML｜"

void mdl_message_init(mdl_message *message)
{
    memset(message, 0, sizeof(*message));
    sl_buf_init(&message->reasoning, 0);
    sl_buf_init(&message->content, 0);
}

static void fini_call(mdl_call *call)
{
    sl_free(call->name);
    sl_buf_fini(&call->arguments);
}

void mdl_message_fini(mdl_message *message)
{
    for (size_t i = 0; i < message->call_count; i++)
        fini_call(&message->calls[i]);
    sl_free(message->calls);
    sl_buf_fini(&message->reasoning);
    sl_buf_fini(&message->content);
    memset(message, 0, sizeof(*message));
}

static mdl_call *add_call(mdl_message *m, const char *name, size_t size)
{
    mdl_call *call;

    if (m->call_count == m->call_capacity) {
        m->call_capacity = m->call_capacity ? m->call_capacity * 2 : 4;
        m->calls = sl_realloc(m->calls, m->call_capacity, sizeof(*m->calls), "calls");
    }
    call = &m->calls[m->call_count++];
    memset(call, 0, sizeof(*call));
    call->name = sl_strndup(name, size, "call name");
    sl_buf_init(&call->arguments, 0);
    return call;
}

void mdl_message_collect(void *context, const mdl_event *event)
{
    mdl_message *m = context;
    mdl_call *call = m->call_count > 0 ? &m->calls[m->call_count - 1] : NULL;

    switch (event->kind) {
    case MDL_EVENT_REASONING:
        sl_buf_append(&m->reasoning, event->text, event->size);
        break;
    case MDL_EVENT_CONTENT:
        sl_buf_append(&m->content, event->text, event->size);
        break;
    case MDL_EVENT_CALL_BEGIN:
        sl_assert(!call || call->complete);
        call = add_call(m, event->text, event->size);
        memcpy(call->id, event->id, sizeof(call->id));
        break;
    case MDL_EVENT_ARGUMENTS:
        sl_assert(call && !call->complete);
        sl_buf_append(&call->arguments, event->text, event->size);
        break;
    case MDL_EVENT_CALL_END:
        sl_assert(call && !call->complete);
        call->complete = true;
        break;
    case MDL_EVENT_CALL_BROKEN:
        sl_assert(call && !call->complete);
        fini_call(call);
        m->call_count--;
        if (!m->length_limited)
            sl_buf_append(&m->content, event->text, event->size);
        break;
    }
}

/* --- the strict grammar --- */

typedef struct scanner {
    const char *data;
    size_t size;
    size_t at;
    sl_err *err;
} scanner;

static sl_status fail_at(const scanner *s, const char *what)
{
    return sl_fail(s->err, SL_INVALID, "at byte %zu: %s", s->at, what);
}

static bool accept(scanner *s, const char *literal)
{
    size_t size = strlen(literal);

    if (s->size - s->at < size || memcmp(s->data + s->at, literal, size) != 0)
        return false;
    s->at += size;
    return true;
}

/* Moves behind the next `literal`; the text before it is the result. */
static bool take_until(scanner *s, const char *literal, const char **out_text, size_t *out_size)
{
    const char *begin = s->data + s->at;
    const char *found = memmem(begin, s->size - s->at, literal, strlen(literal));

    if (!found)
        return false;
    *out_text = begin;
    *out_size = (size_t)(found - begin);
    s->at += *out_size + strlen(literal);
    return true;
}

static bool has_marker(const char *text, size_t size)
{
    static const char *const MARKERS[] = {BOS, EOS, THINK, END_THINK, DSML};

    for (size_t i = 0; i < sizeof(MARKERS) / sizeof(MARKERS[0]); i++) {
        if (memmem(text, size, MARKERS[i], strlen(MARKERS[i])))
            return true;
    }
    return false;
}

static bool key_seen(const sl_buf *keys, const char *key, size_t size)
{
    for (size_t at = 0; at < keys->size; at += strlen(keys->data + at) + 1) {
        if (strlen(keys->data + at) == size && memcmp(keys->data + at, key, size) == 0)
            return true;
    }
    return false;
}

static sl_status parse_parameter(scanner *s, sl_buf *keys, mdl_call *call)
{
    const char *key, *flag, *value;
    size_t key_size, flag_size, value_size;
    bool is_string;

    if (!take_until(s, "\" string=\"", &key, &key_size) || memchr(key, '>', key_size) ||
        !take_until(s, "\">", &flag, &flag_size))
        return fail_at(s, "bad parameter tag");
    is_string = flag_size == 4 && memcmp(flag, "true", 4) == 0;
    if (!is_string && !(flag_size == 5 && memcmp(flag, "false", 5) == 0))
        return fail_at(s, "string must be true or false");
    if (!take_until(s, "</" DSML "parameter>", &value, &value_size))
        return fail_at(s, "parameter is not closed");
    if (key_seen(keys, key, key_size))
        return fail_at(s, "parameter name occurs twice");
    sl_buf_puts(&call->arguments, keys->size > 0 ? ", " : "");
    sl_buf_append(keys, key, key_size);
    sl_buf_putc(keys, '\0');
    sl_json_write_string(&call->arguments, key, key_size);
    sl_buf_puts(&call->arguments, ": ");
    if (is_string)
        sl_json_write_string(&call->arguments, value, value_size);
    else
        sl_buf_append(&call->arguments, value, value_size);
    return accept(s, "\n") ? sl_ok() : fail_at(s, "newline is missing after a parameter");
}

/* Behind `<DSML invoke name="`. */
static sl_status parse_invoke(scanner *s, mdl_message *m)
{
    const char *name;
    size_t size;
    mdl_call *call;
    sl_buf keys;
    sl_status status = sl_ok();

    if (!take_until(s, "\">\n", &name, &size) || size == 0 || memchr(name, '\n', size))
        return fail_at(s, "bad invoke tag");
    call = add_call(m, name, size);
    sl_buf_init(&keys, 0);
    sl_buf_putc(&call->arguments, '{');
    while (sl_is_ok(status) && accept(s, "<" DSML "parameter name=\""))
        status = parse_parameter(s, &keys, call);
    sl_buf_putc(&call->arguments, '}');
    sl_buf_fini(&keys);
    if (!sl_is_ok(status))
        return status;
    (void)accept(s, "\n");
    if (!accept(s, "</" DSML "invoke>\n"))
        return fail_at(s, "invoke is not closed");
    call->complete = true;
    return sl_ok();
}

static sl_status parse_content(scanner *s, mdl_message *m)
{
    static const char CALLS[] = "\n\n<" DSML "function_calls>\n";
    const char *begin = s->data + s->at;
    size_t left = s->size - s->at;
    const char *eos = memmem(begin, left, EOS, strlen(EOS));
    const char *calls = memmem(begin, left, CALLS, strlen(CALLS));
    size_t size;

    if (!eos)
        return fail_at(s, "no end of sentence");
    if (calls > eos)
        calls = NULL;
    size = (size_t)((calls ? calls : eos) - begin);
    if (has_marker(begin, size))
        return fail_at(s, "marker inside content");
    sl_buf_append(&m->content, begin, size);
    s->at += size;
    if (calls) {
        s->at += strlen(CALLS);
        if (!accept(s, "<" DSML "invoke name=\""))
            return fail_at(s, "no invoke in function_calls");
        do
            SL_TRY(parse_invoke(s, m));
        while (accept(s, "<" DSML "invoke name=\""));
        if (!accept(s, "</" DSML "function_calls>"))
            return fail_at(s, "function_calls is not closed");
    }
    if (!accept(s, EOS) || s->at != s->size)
        return fail_at(s, "text after the end");
    return sl_ok();
}

sl_status mdl_message_parse_strict(const char *text, size_t size, bool thinking,
                                   mdl_message *message, sl_err *err)
{
    scanner s = {text, size, 0, err};
    const char *reasoning;
    size_t reasoning_size;

    if (thinking) {
        if (!take_until(&s, END_THINK, &reasoning, &reasoning_size))
            return fail_at(&s, "reasoning is not closed");
        if (has_marker(reasoning, reasoning_size))
            return fail_at(&s, "marker inside reasoning");
        sl_buf_append(&message->reasoning, reasoning, reasoning_size);
    }
    return parse_content(&s, message);
}
