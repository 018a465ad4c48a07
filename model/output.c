/* The tolerant streaming parser of answers.
 *
 * A state machine over held-back text. A step consumes bytes only when no continuation could change
 * what they are, so events do not depend on how the text was cut. `raw` keeps the text of what
 * might still turn out not to be a call, to give it back. Owner's thread; no I/O, no time. */
#include "model/output.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"
#include "model/output_tags.h"

#define HOLD_BYTES_MAX  ((size_t)64 << 20) /* one push; the parser itself holds little */
#define VALUE_BYTES_MAX ((size_t)64 << 20)
#define THINK           "<think>"
#define END_THINK       "</think>"
#define DSML            "\uff5cDSML\uff5c"

typedef enum output_state {
    STATE_RAW,
    STATE_REASONING_START, /* a repeated THINK may stand here */
    STATE_REASONING,
    STATE_CONTENT,
    STATE_CALLS,  /* inside a block, between calls */
    STATE_INVOKE, /* inside a call, between parameters */
    STATE_VALUE,
    STATE_AFTER, /* behind a block: white space does not count */
} output_state;

struct mdl_output {
    mdl_output_options options;
    mdl_event_fn fn;
    void *context;
    char *request_id;
    char *stops[MDL_STOP_STRINGS_MAX];
    size_t stop_count;

    output_state state;
    bool stopped;
    bool stops_held;
    bool begun; /* content has begun */
    bool final; /* no more input comes */
    mdl_finish cause;
    sl_buf hold;
    size_t at; /* hold is consumed up to here */
    sl_buf raw;
    bool fresh; /* the block has shown no call yet */
    bool stray; /* inside text of a block or call that is no tag: white space counts */

    int32_t call_index;
    bool announced;
    char name[MDL_FUNCTION_NAME_MAX + 1];
    size_t parameter_count;
    sl_buf body; /* text inside a call outside of parameters */
    sl_buf keys; /* seen in this call, each with its NUL */

    sl_buf key;
    mdl_tag_string string;
    sl_buf value; /* unless it streams */
    sl_buf scratch;
    mdl_output_counts counts;
};

const char *mdl_finish_name(mdl_finish finish)
{
    static const char *const NAMES[] = {"stop", "length", "tool_calls"};

    return NAMES[finish];
}

void mdl_call_id(const char *request_id, int32_t call_index, char out_id[MDL_CALL_ID_SIZE])
{
    static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    size_t used = 5;

    memcpy(out_id, "call_", 5);
    for (int part = 0; part < 3; part++) { /* 8 characters from each 64 bits */
        uint64_t key[2] = {0, (uint64_t)(uint32_t)call_index << 8 ^ (uint64_t)part};
        uint64_t hash = sl_siphash(key, request_id, strlen(request_id));

        for (int i = 0; i < 8; i++, hash /= 62)
            out_id[used++] = DIGITS[hash % 62];
    }
    out_id[used] = '\0';
}

/* --- events --- */

static void emit(mdl_output *o, mdl_event_kind kind, const char *text, size_t size)
{
    mdl_event event = {.kind = kind, .call_index = o->call_index, .text = text, .size = size};
    char id[MDL_CALL_ID_SIZE];

    if (kind == MDL_EVENT_CALL_BEGIN) {
        mdl_call_id(o->request_id, o->call_index, id);
        event.id = id;
    }
    o->fn(o->context, &event);
}

static void emit_delta(mdl_output *o, mdl_event_kind kind, const char *text, size_t size)
{
    if (size > 0)
        emit(o, kind, text, size);
}

static void emit_arguments(mdl_output *o, const char *text, size_t size)
{
    if (o->announced)
        emit_delta(o, MDL_EVENT_ARGUMENTS, text, size);
}

/* --- held text --- */

static const char *rest(const mdl_output *o, size_t *out_size)
{
    *out_size = o->hold.size - o->at;
    return o->hold.data ? o->hold.data + o->at : "";
}

static const char *rest_of(const mdl_output *o)
{
    size_t size;
    return rest(o, &size);
}

static void consume_text(mdl_output *o, size_t size)
{
    o->at += size;
    o->counts.bytes_text += size;
}

static void consume_markup(mdl_output *o, size_t size)
{
    o->at += size;
    o->counts.bytes_markup += size;
}

/* Bytes of an unfinished UTF-8 sequence at the end, which wait for the next piece. */
static size_t unfinished_tail(const mdl_output *o, const char *data, size_t size)
{
    if (o->final)
        return 0;
    for (size_t n = 1; n <= 3 && n <= size; n++) {
        unsigned char lead = (unsigned char)data[size - n];

        if (lead < 0x80)
            return 0;
        if (lead >= 0xC0)
            return sl_utf8_length(data + size - n, n) < 0 ? n : 0;
    }
    return 0;
}

static bool is_space(char ch)
{
    return ch == ' ' || ch == '\t' || ch == '\n' || ch == '\r';
}

static size_t space_run(const char *data, size_t size)
{
    size_t n = 0;

    while (n < size && is_space(data[n]))
        n++;
    return n;
}

static bool at_length_limit(const mdl_output *o)
{
    return o->final && o->cause == MDL_FINISH_LENGTH;
}

/* --- reasoning and content --- */

typedef enum special {
    SPECIAL_END_THINK,
    SPECIAL_CALLS,
    SPECIAL_STOP,
} special;

/* Up to two newlines and the opening tag. */
static mdl_match match_calls(const char *data, size_t size, size_t *out_length)
{
    size_t newlines = 0;
    mdl_tag tag;
    mdl_match m;

    while (newlines < 2 && newlines < size && data[newlines] == '\n')
        newlines++;
    if (newlines == size)
        return MDL_MATCH_PARTIAL;
    m = mdl_tag_parse(data + newlines, size - newlines, MDL_TAG_OPEN_CALLS, &tag);
    if (m == MDL_MATCH_YES)
        *out_length = newlines + tag.length;
    return m;
}

static mdl_match match_marker(const mdl_output *o, const char *data, size_t size,
                              special *out_special, size_t *out_length)
{
    mdl_match think, calls = MDL_MATCH_NO;

    if (o->state == STATE_RAW || (data[0] != '<' && data[0] != '\n') ||
        (o->options.literal && o->state == STATE_CONTENT && (o->begun || data > rest_of(o))))
        return MDL_MATCH_NO;
    think = mdl_literal_match(data, size, END_THINK);
    if (think == MDL_MATCH_YES) {
        *out_special = SPECIAL_END_THINK;
        *out_length = strlen(END_THINK);
        return think;
    }
    if (o->options.parse_calls)
        calls = match_calls(data, size, out_length);
    if (calls == MDL_MATCH_YES)
        *out_special = SPECIAL_CALLS;
    return calls != MDL_MATCH_NO ? calls : think;
}

/* A stop string counts only if all of it is content: none of its bytes may begin a marker. */
static mdl_match match_stop(const mdl_output *o, const char *data, size_t size, size_t *out_length)
{
    mdl_match best = MDL_MATCH_NO;

    if (o->stops_held || (o->state != STATE_CONTENT && o->state != STATE_RAW))
        return MDL_MATCH_NO;
    for (size_t i = 0; i < o->stop_count; i++) {
        size_t length = strlen(o->stops[i]);
        mdl_match m = mdl_literal_match(data, size, o->stops[i]);

        for (size_t k = 1; m == MDL_MATCH_YES && k < length; k++) {
            special ignored;
            size_t ignored_length;
            mdl_match marker = match_marker(o, data + k, size - k, &ignored, &ignored_length);

            if (marker == MDL_MATCH_YES)
                m = MDL_MATCH_NO;
            else if (marker == MDL_MATCH_PARTIAL && !o->final)
                m = MDL_MATCH_PARTIAL;
        }
        if (m == MDL_MATCH_YES) {
            *out_length = length;
            return m;
        }
        if (m == MDL_MATCH_PARTIAL)
            best = m;
    }
    return best;
}

/* The tag of calls, cut by the length limit behind the symbol that nothing else begins with. It is
 * dropped, as calls are that the limit cuts later. */
static bool is_cut_tag(const mdl_output *o, const char *data, size_t size)
{
    return at_length_limit(o) && memmem(data, size, DSML, strlen(DSML)) != NULL;
}

static mdl_match match_special(const mdl_output *o, const char *data, size_t size,
                               special *out_special, size_t *out_length)
{
    mdl_match marker = match_marker(o, data, size, out_special, out_length);
    mdl_match stop;

    if (marker == MDL_MATCH_YES ||
        (marker == MDL_MATCH_PARTIAL && (!o->final || is_cut_tag(o, data, size))))
        return marker;
    stop = match_stop(o, data, size, out_length);
    if (stop == MDL_MATCH_YES)
        *out_special = SPECIAL_STOP;
    return stop;
}

static void begin_block(mdl_output *o, const char *data, size_t size)
{
    o->state = STATE_CALLS;
    o->fresh = true;
    o->stray = false;
    sl_buf_clear(&o->raw);
    sl_buf_append(&o->raw, data, size);
}

static bool step_text(mdl_output *o)
{
    size_t size, at = 0, length = 0;
    const char *data = rest(o, &size);
    mdl_event_kind kind = o->state == STATE_REASONING ? MDL_EVENT_REASONING : MDL_EVENT_CONTENT;
    mdl_match m = MDL_MATCH_NO;
    special what = SPECIAL_STOP;

    for (; at < size; at++) {
        m = match_special(o, data + at, size - at, &what, &length);
        if (m == MDL_MATCH_YES ||
            (m == MDL_MATCH_PARTIAL && (!o->final || is_cut_tag(o, data + at, size - at))))
            break;
        m = MDL_MATCH_NO;
    }
    if (m == MDL_MATCH_NO)
        at -= unfinished_tail(o, data, at);
    emit_delta(o, kind, data, at);
    o->begun |= kind == MDL_EVENT_CONTENT && at > 0;
    consume_text(o, at);
    if (m == MDL_MATCH_PARTIAL && o->final)
        consume_markup(o, size - at);
    if (m != MDL_MATCH_YES)
        return false;
    if (what == SPECIAL_CALLS) {
        begin_block(o, data + at, length);
    } else if (what == SPECIAL_END_THINK) {
        o->state = STATE_CONTENT;
    } else {
        o->stopped = true;
        if (o->options.include_stop) {
            emit_delta(o, kind, data + at, length);
            consume_text(o, length);
            at += length;
        }
        length = size - at; /* what came behind it in this piece goes too */
    }
    consume_markup(o, length);
    return true;
}

static bool step_reasoning_start(mdl_output *o)
{
    size_t size;
    const char *data = rest(o, &size);
    mdl_match m = mdl_literal_match(data, size, THINK);

    if (m == MDL_MATCH_PARTIAL && !o->final)
        return false;
    if (m == MDL_MATCH_YES)
        consume_markup(o, strlen(THINK));
    o->state = STATE_REASONING;
    return true;
}

static bool step_after(mdl_output *o)
{
    size_t size;
    const char *data = rest(o, &size);
    size_t spaces = space_run(data, size);

    consume_markup(o, spaces);
    if (spaces == size)
        return false;
    o->state = STATE_CONTENT;
    return true;
}

/* --- calls --- */

static void give_back_raw(mdl_output *o)
{
    emit_delta(o, MDL_EVENT_CONTENT, o->raw.data, o->raw.size);
    sl_buf_clear(&o->raw);
}

/* The call will never be complete. At the length limit it is dropped, else its text is kept (raw,
 * to which the caller has added the body). */
static void break_call(mdl_output *o)
{
    if (at_length_limit(o))
        sl_buf_clear(&o->raw);
    if (o->announced) {
        emit(o, MDL_EVENT_CALL_BROKEN, o->raw.data ? o->raw.data : "", o->raw.size);
        o->call_index++;
    } else {
        give_back_raw(o);
    }
    sl_buf_clear(&o->raw);
    sl_buf_clear(&o->body);
    o->stray = false;
    o->counts.broken_calls++;
    o->state = STATE_CALLS;
}

static void complete_call(mdl_output *o)
{
    if (!o->announced) {
        give_back_raw(o);
    } else {
        emit(o, MDL_EVENT_CALL_END, "", 0);
        o->call_index++;
        o->counts.calls++;
    }
    sl_buf_clear(&o->raw);
    sl_buf_clear(&o->body);
    o->stray = false;
    o->state = STATE_CALLS;
}

static bool is_json(const char *text, size_t size, bool object)
{
    sl_json_doc *doc = NULL;
    bool good = sl_is_ok(sl_json_parse(text, size, NULL, &doc, NULL));

    if (good && object)
        good = sl_json_typeof(sl_json_root(doc)) == SL_JSON_OBJECT;
    sl_json_doc_destroy(doc);
    return good;
}

static void end_call(mdl_output *o)
{
    size_t size = o->body.size;

    if (o->parameter_count > 0) {
        emit_arguments(o, "}", 1);
        complete_call(o);
        return;
    }
    while (size > 0 && is_space(o->body.data[size - 1]))
        size--;
    if (size == 0) {
        emit_arguments(o, "{}", 2);
        complete_call(o);
    } else if (is_json(o->body.data, size, true)) {
        emit_arguments(o, o->body.data, size);
        complete_call(o);
    } else {
        break_call(o);
    }
}

static void begin_call(mdl_output *o, const mdl_tag *tag)
{
    bool unknown;

    memcpy(o->name, tag->name, tag->name_size);
    o->name[tag->name_size] = '\0';
    unknown = o->options.chat && !mdl_chat_tool_known(o->options.chat, o->name);
    o->counts.unknown_names += unknown;
    o->announced = !(unknown && o->options.refuse_unknown) && o->call_index < MDL_CALLS_MAX;
    o->fresh = false;
    o->stray = false;
    o->parameter_count = 0;
    sl_buf_clear(&o->body);
    sl_buf_clear(&o->keys);
    o->state = STATE_INVOKE;
    if (o->announced)
        emit(o, MDL_EVENT_CALL_BEGIN, o->name, tag->name_size);
}

static void consume_tag(mdl_output *o, const char *data, size_t size)
{
    sl_buf_append(&o->raw, data, size);
    consume_markup(o, size);
}

/* Text in a block that is no tag. Right behind the opening tag it shows that this was no block at
 * all but talk about one: everything goes back to content. */
static bool step_stray(mdl_output *o, const char *data, size_t size, size_t length)
{
    if (o->fresh) {
        give_back_raw(o);
        o->state = STATE_CONTENT;
        return true;
    }
    if (length == size)
        length -= unfinished_tail(o, data, size);
    if (length == 0)
        return false;
    give_back_raw(o); /* white space before it */
    o->stray = true;
    emit_delta(o, MDL_EVENT_CONTENT, data, length);
    consume_text(o, length);
    return true;
}

static size_t until_bracket(const char *data, size_t size)
{
    const char *found = size > 1 ? memchr(data + 1, '<', size - 1) : NULL;

    return found ? (size_t)(found - data) : size;
}

static bool step_calls(mdl_output *o)
{
    size_t size;
    const char *data = rest(o, &size);
    size_t spaces = o->stray ? 0 : space_run(data, size);
    mdl_tag tag;
    mdl_match m;

    if (spaces > 0)
        consume_tag(o, data, spaces);
    data = rest(o, &size);
    if (size == 0)
        return false;
    m = mdl_tag_parse(data, size, MDL_TAG_OPEN_INVOKE | MDL_TAG_CLOSE_CALLS | MDL_TAG_OPEN_CALLS,
                      &tag);
    if (m == MDL_MATCH_PARTIAL)
        return false;
    if (m == MDL_MATCH_NO)
        return step_stray(o, data, size, until_bracket(data, size));
    if (!o->fresh)
        sl_buf_clear(&o->raw); /* white space only */
    consume_tag(o, data, tag.length);
    if (tag.kind == MDL_TAG_OPEN_INVOKE) {
        begin_call(o, &tag);
        if (tag.self_closing)
            end_call(o);
    } else if (tag.kind == MDL_TAG_CLOSE_CALLS) {
        if (o->fresh) /* an empty block is no call, and its text is not lost */
            give_back_raw(o);
        sl_buf_clear(&o->raw);
        o->state = STATE_AFTER;
    }
    return true;
}

/* --- parameters --- */

static bool key_seen(const mdl_output *o)
{
    size_t at = 0;

    while (at < o->keys.size) {
        size_t length = strlen(o->keys.data + at);

        if (length == o->key.size && memcmp(o->keys.data + at, o->key.data, length) == 0)
            return true;
        at += length + 1;
    }
    return false;
}

static void put_key(mdl_output *o)
{
    sl_buf_clear(&o->scratch);
    sl_buf_puts(&o->scratch, o->parameter_count == 0 ? "{" : ", ");
    sl_json_write_string(&o->scratch, o->key.data ? o->key.data : "", o->key.size);
    sl_buf_puts(&o->scratch, ": ");
}

static void end_value(mdl_output *o);

static void begin_value(mdl_output *o, const mdl_tag *tag)
{
    /* Text before the first parameter was held in case it is a JSON body. */
    emit_delta(o, MDL_EVENT_CONTENT, o->body.data, o->body.size);
    sl_buf_clear(&o->body);
    sl_buf_clear(&o->key);
    sl_buf_append(&o->key, tag->name, tag->name_size);
    sl_buf_clear(&o->value);
    o->stray = false;
    o->string = tag->string;
    if (key_seen(o)) {
        o->counts.duplicate_keys++;
    } else {
        sl_buf_append(&o->keys, o->key.data, o->key.size);
        sl_buf_putc(&o->keys, '\0');
    }
    o->state = STATE_VALUE;
    if (o->string == MDL_TAG_STRING_TRUE) {
        put_key(o);
        sl_buf_putc(&o->scratch, '"');
        emit_arguments(o, o->scratch.data, o->scratch.size);
    }
    if (tag->self_closing)
        end_value(o);
}

static void put_value(mdl_output *o, const char *data, size_t size)
{
    sl_buf_append(&o->raw, data, size);
    if (o->string != MDL_TAG_STRING_TRUE) {
        sl_buf_append(&o->value, data, size);
        return;
    }
    if (size == 0)
        return;
    sl_buf_clear(&o->scratch);
    sl_json_write_string(&o->scratch, data, size);
    emit_arguments(o, o->scratch.data + 1, o->scratch.size - 2); /* without the quotes */
}

static bool schema_says_string(const mdl_output *o)
{
    const sl_json *schema;
    const char *type;

    if (!o->options.chat)
        return false;
    schema = mdl_chat_parameter_schema(o->options.chat, o->name, o->key.data ? o->key.data : "");
    type = sl_json_string(sl_json_get(schema, "type"), NULL);
    return type && strcmp(type, "string") == 0;
}

static void end_value(mdl_output *o)
{
    const char *text = o->value.data ? o->value.data : "";
    bool as_it_is;

    if (o->string == MDL_TAG_STRING_TRUE) {
        emit_arguments(o, "\"", 1);
    } else {
        as_it_is = !(o->string == MDL_TAG_STRING_OTHER && schema_says_string(o)) &&
                   is_json(text, o->value.size, false);
        o->counts.invalid_json_values += o->string == MDL_TAG_STRING_FALSE && !as_it_is;
        put_key(o);
        if (as_it_is)
            sl_buf_append(&o->scratch, text, o->value.size);
        else
            sl_json_write_string(&o->scratch, text, o->value.size);
        emit_arguments(o, o->scratch.data, o->scratch.size);
    }
    o->parameter_count++;
    o->state = STATE_INVOKE;
}

static bool step_value(mdl_output *o)
{
    size_t size, at = 0;
    const char *data = rest(o, &size);
    mdl_tag tag;
    mdl_match m = MDL_MATCH_NO;

    for (; at < size; at++) {
        if (data[at] != '<')
            continue;
        m = mdl_tag_parse(data + at, size - at, MDL_TAG_CLOSE_PARAMETER, &tag);
        if (m != MDL_MATCH_NO)
            break;
    }
    if (m == MDL_MATCH_NO)
        at -= unfinished_tail(o, data, at);
    put_value(o, data, at);
    consume_text(o, at);
    if (m != MDL_MATCH_YES)
        return false;
    consume_tag(o, data + at, tag.length);
    end_value(o);
    return true;
}

/* Text in a call outside of its parameters: perhaps a JSON body, else content. */
static bool step_body(mdl_output *o, const char *data, size_t size, size_t length)
{
    if (length == size)
        length -= unfinished_tail(o, data, size);
    if (length == 0)
        return false;
    o->stray = true;
    if (o->parameter_count == 0)
        sl_buf_append(&o->body, data, length);
    else
        emit_delta(o, MDL_EVENT_CONTENT, data, length);
    consume_text(o, length);
    return true;
}

static bool step_invoke(mdl_output *o)
{
    size_t size;
    const char *data = rest(o, &size);
    size_t spaces = o->stray ? 0 : space_run(data, size);
    mdl_tag tag;
    mdl_match m;

    if (spaces > 0)
        consume_tag(o, data, spaces);
    data = rest(o, &size);
    if (size == 0)
        return false;
    m = mdl_tag_parse(data, size,
                      MDL_TAG_OPEN_PARAMETER | MDL_TAG_CLOSE_INVOKE | MDL_TAG_OPEN_INVOKE |
                          MDL_TAG_CLOSE_CALLS,
                      &tag);
    if (m == MDL_MATCH_PARTIAL)
        return false;
    if (m == MDL_MATCH_NO)
        return step_body(o, data, size, until_bracket(data, size));
    if (tag.kind != MDL_TAG_OPEN_PARAMETER)
        sl_buf_append(&o->raw, o->body.data, o->body.size);
    if (tag.kind == MDL_TAG_OPEN_INVOKE || tag.kind == MDL_TAG_CLOSE_CALLS) {
        break_call(o); /* its end is missing; the tag is looked at again, as one of the block */
        return true;
    }
    consume_tag(o, data, tag.length);
    if (tag.kind == MDL_TAG_CLOSE_INVOKE)
        end_call(o);
    else
        begin_value(o, &tag);
    return true;
}

/* --- driving --- */

static bool step(mdl_output *o)
{
    switch (o->state) {
    case STATE_REASONING_START:
        return step_reasoning_start(o);
    case STATE_RAW:
    case STATE_REASONING:
    case STATE_CONTENT:
        return step_text(o);
    case STATE_CALLS:
        return step_calls(o);
    case STATE_INVOKE:
        return step_invoke(o);
    case STATE_VALUE:
        return step_value(o);
    case STATE_AFTER:
        return step_after(o);
    }
    return false;
}

static void advance(mdl_output *o)
{
    while (!o->stopped && step(o))
        ;
    sl_buf_consume(&o->hold, o->at);
    o->at = 0;
}

void mdl_output_hold_stops(mdl_output *output, bool held)
{
    output->stops_held = held;
}

bool mdl_output_push(mdl_output *output, const char *text, size_t size)
{
    if (output->stopped)
        return false;
    sl_assert(!output->final);
    output->counts.bytes_in += size;
    sl_buf_append(&output->hold, text, size);
    sl_assert(!output->hold.overflow);
    advance(output);
    return !output->stopped;
}

/* What no step could decide: an unfinished tag, inside a block. */
static void finish_block(mdl_output *o)
{
    size_t size;
    const char *data = rest(o, &size);

    if (o->state == STATE_CALLS) {
        if (!o->fresh)
            sl_buf_clear(&o->raw); /* white space only */
        sl_buf_append(&o->raw, data, size);
        if (!at_length_limit(o))
            give_back_raw(o);
    } else if (o->state == STATE_INVOKE || o->state == STATE_VALUE) {
        sl_buf_append(&o->raw, o->body.data, o->body.size);
        sl_buf_append(&o->raw, data, size);
        break_call(o);
    }
    consume_text(o, size);
    sl_buf_clear(&o->raw);
}

mdl_finish mdl_output_finish(mdl_output *output, mdl_finish cause)
{
    sl_assert(cause == MDL_FINISH_STOP || cause == MDL_FINISH_LENGTH);
    sl_assert(!output->final);
    output->final = true;
    output->cause = cause;
    if (!output->stopped) {
        advance(output);
        finish_block(output);
    }
    sl_assert(output->counts.bytes_text + output->counts.bytes_markup == output->counts.bytes_in);
    if (cause == MDL_FINISH_STOP && output->counts.calls > 0)
        return MDL_FINISH_TOOL_CALLS;
    return cause;
}

static sl_status copy_stops(mdl_output *o, const mdl_output_options *options, sl_err *err)
{
    if (options->stop_count > MDL_STOP_STRINGS_MAX)
        return sl_fail(err, SL_INVALID, "stop: more than %d strings", MDL_STOP_STRINGS_MAX);
    for (size_t i = 0; i < options->stop_count; i++) {
        size_t size = strlen(options->stops[i]);

        if (size == 0 || size > MDL_STOP_STRING_BYTES_MAX)
            return sl_fail(err, SL_INVALID, "stop[%zu]: must have 1 to %d bytes", i,
                           MDL_STOP_STRING_BYTES_MAX);
        o->stops[o->stop_count++] = sl_strdup(options->stops[i], "stop string");
    }
    return sl_ok();
}

sl_status mdl_output_create(const mdl_output_options *options, mdl_event_fn fn, void *context,
                            mdl_output **out_output, sl_err *err)
{
    mdl_output *o = sl_alloc(1, sizeof(*o), "output parser");
    sl_buf *const bufs[] = {&o->hold, &o->raw, &o->body, &o->keys, &o->key, &o->value, &o->scratch};
    sl_status status;

    for (size_t i = 0; i < sizeof(bufs) / sizeof(bufs[0]); i++)
        sl_buf_init(bufs[i], i == 0 ? HOLD_BYTES_MAX : VALUE_BYTES_MAX);
    o->options = *options;
    o->options.stops = NULL;
    o->options.request_id = NULL;
    o->fn = fn;
    o->context = context;
    o->request_id = sl_strdup(options->request_id ? options->request_id : "", "request id");
    o->state = options->raw              ? STATE_RAW
               : options->reasoning_open ? STATE_REASONING_START
                                         : STATE_CONTENT;
    status = copy_stops(o, options, err);
    if (!sl_is_ok(status)) {
        mdl_output_destroy(o);
        return status;
    }
    *out_output = o;
    return sl_ok();
}

void mdl_output_destroy(mdl_output *output)
{
    if (!output)
        return;
    sl_buf_fini(&output->hold);
    sl_buf_fini(&output->raw);
    sl_buf_fini(&output->body);
    sl_buf_fini(&output->keys);
    sl_buf_fini(&output->key);
    sl_buf_fini(&output->value);
    sl_buf_fini(&output->scratch);
    for (size_t i = 0; i < output->stop_count; i++)
        sl_free(output->stops[i]);
    sl_free(output->request_id);
    sl_free(output);
}

const mdl_output_counts *mdl_output_counts_get(const mdl_output *output)
{
    return &output->counts;
}

bool mdl_output_in_reasoning(const mdl_output *output)
{
    return output->state == STATE_REASONING_START || output->state == STATE_REASONING;
}
