/* Output parser: any bytes at any cut. Events say the same for every cut, arguments of complete
 * calls are JSON objects, and where nothing is markup no byte is lost or doubled. The first two
 * bytes set options and cuts. */
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/output.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct result {
    mdl_message message;
    mdl_finish finish;
    bool stopped;
    mdl_output_counts counts;
} result;

static const char *const STOPS[] = {"\n\n", "stop", "<", "a</"};

static void parse(const uint8_t *text, size_t size, const mdl_output_options *options,
                  mdl_finish cause, uint32_t cuts, result *out)
{
    mdl_output *o;
    sl_err err;
    sl_status status;

    memset(out, 0, sizeof(*out));
    mdl_message_init(&out->message);
    status = mdl_output_create(options, mdl_message_collect, &out->message, &o, &err);
    sl_assert(sl_is_ok(status));
    for (size_t at = 0; at < size && !out->stopped;) {
        size_t n = size;

        if (cuts != 0) {
            cuts = cuts * 1664525u + 1013904223u;
            n = cuts % 255 == cuts ? 1 : 1 + (cuts >> 24) % 9;
        }
        if (n > size - at)
            n = size - at;
        out->stopped = !mdl_output_push(o, (const char *)text + at, n);
        at += n;
    }
    out->finish = mdl_output_finish(o, cause);
    out->counts = *mdl_output_counts_get(o);
    mdl_output_destroy(o);
}

static bool same(const sl_buf *a, const sl_buf *b)
{
    return a->size == b->size && (a->size == 0 || memcmp(a->data, b->data, a->size) == 0);
}

static void compare(const result *a, const result *b)
{
    sl_assert(a->finish == b->finish && a->stopped == b->stopped);
    sl_assert(same(&a->message.reasoning, &b->message.reasoning));
    sl_assert(same(&a->message.content, &b->message.content));
    sl_assert(a->message.call_count == b->message.call_count);
    sl_assert(a->counts.calls == b->counts.calls);
    sl_assert(a->counts.broken_calls == b->counts.broken_calls);
    for (size_t i = 0; i < a->message.call_count; i++) {
        const mdl_call *x = &a->message.calls[i], *y = &b->message.calls[i];

        sl_assert(strcmp(x->name, y->name) == 0 && strcmp(x->id, y->id) == 0);
        sl_assert(x->complete && y->complete && same(&x->arguments, &y->arguments));
    }
}

static void check_arguments(const mdl_message *m, bool utf8)
{
    for (size_t i = 0; i < m->call_count; i++) {
        sl_json_doc *doc = NULL;
        sl_err err;
        sl_status status =
            sl_json_parse(m->calls[i].arguments.data, m->calls[i].arguments.size, NULL, &doc, &err);

        sl_assert(sl_is_ok(status) || !utf8);
        sl_assert(!doc || sl_json_typeof(sl_json_root(doc)) == SL_JSON_OBJECT);
        sl_json_doc_destroy(doc);
    }
}

/* Without calls and stops the text is reasoning, then content, less the think tags. */
static void check_plain(const uint8_t *text, size_t size, const mdl_output_options *options,
                        const mdl_message *m)
{
    static const char END[] = "</think>", BEGIN[] = "<think>";
    sl_buf reasoning, content;
    bool open = options->reasoning_open && !options->raw;
    size_t at = 0;

    sl_buf_init(&reasoning, 0);
    sl_buf_init(&content, 0);
    if (open && size >= 7 && memcmp(text, BEGIN, 7) == 0)
        at = 7;
    for (; at < size; at++) {
        if (!options->raw && size - at >= 8 && memcmp(text + at, END, 8) == 0) {
            open = false;
            at += 7;
            continue;
        }
        sl_buf_putc(open ? &reasoning : &content, (char)text[at]);
    }
    sl_assert(same(&reasoning, &m->reasoning) && same(&content, &m->content));
    sl_buf_fini(&reasoning);
    sl_buf_fini(&content);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mdl_output_options options = {.request_id = "r", .stops = STOPS};
    mdl_finish cause;
    result whole, cut, bytes;
    mdl_message strict;

    if (size < 2 || memchr(data + 2, 0, size - 2)) /* tokens hold no NUL inside names */
        return 0;
    options.raw = data[0] & 1;
    options.reasoning_open = data[0] & 2;
    options.parse_calls = data[0] & 4 || data[0] & 8;
    options.stop_count = data[0] & 16 ? 1 + (data[0] >> 5) % 4 : 0;
    cause = data[0] & 128 ? MDL_FINISH_LENGTH : MDL_FINISH_STOP;
    parse(data + 2, size - 2, &options, cause, 0, &whole);
    parse(data + 2, size - 2, &options, cause, data[1] + 1000u, &cut);
    compare(&whole, &cut);
    parse(data + 2, size - 2, &options, cause, 77 + data[1], &bytes);
    compare(&whole, &bytes);
    check_arguments(&whole.message, sl_utf8_valid(data + 2, size - 2));
    if (options.stop_count == 0 && (!options.parse_calls || options.raw))
        check_plain(data + 2, size - 2, &options, &whole.message);
    mdl_message_init(&strict);
    if (!sl_is_ok(
            mdl_message_parse_strict((const char *)data + 2, size - 2, data[0] & 2, &strict, NULL)))
        sl_assert(strict.call_count <= MDL_CALLS_MAX || size > 1000);
    mdl_message_fini(&strict);
    mdl_message_fini(&whole.message);
    mdl_message_fini(&cut.message);
    mdl_message_fini(&bytes.message);
    sl_assert(sl_alloc_live() == 0);
    return 0;
}
