/* Tokenizer: any bytes. Valid UTF-8 survives encode and decode, whole and streamed, with and
 * without protected ranges; anything else is refused. The first byte chooses the protected range.
 * Run from the repository root (models/demo). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "model/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const mdl_tokenizer *tokenizer(void)
{
    static mdl_tokenizer *t;
    sl_err err;

    if (!t && !sl_is_ok(mdl_tokenizer_load("models/demo", &t, &err))) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    return t;
}

static void check_stream(const mdl_ids *ids, const char *text, size_t size)
{
    mdl_detok detok;
    sl_buf out;

    sl_buf_init(&out, 0);
    mdl_detok_init(&detok, tokenizer());
    for (size_t i = 0; i < ids->count; i++) {
        size_t before = out.size;

        mdl_detok_push(&detok, ids->data[i], &out);
        sl_assert(out.size == before || sl_utf8_valid(out.data + before, out.size - before));
    }
    mdl_detok_finish(&detok, &out);
    sl_assert(out.size == size && (size == 0 || memcmp(out.data, text, size) == 0));
    sl_buf_fini(&out);
}

/* No added token may lie in or across the range. */
static void check_protected(const mdl_ids *ids, mdl_range plain)
{
    size_t at = 0;

    for (size_t i = 0; i < ids->count; i++) {
        sl_span span = mdl_tokenizer_bytes(tokenizer(), ids->data[i]);

        if (mdl_tokenizer_is_added(tokenizer(), ids->data[i]))
            sl_assert(at + span.size <= plain.begin || at >= plain.end);
        at += span.size;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mdl_range plain = {0, 0};
    mdl_encode_options options = {.plain = &plain};
    const char *text = (const char *)data + 1;
    mdl_ids ids = {0};
    sl_err err;
    bool valid;

    if (size < 1)
        return 0;
    size--;
    if (data[0] & 1) {
        plain.begin = size * (data[0] >> 5) / 8;
        plain.end = plain.begin + (size - plain.begin) * ((data[0] >> 1 & 15) + 1) / 16;
        options.plain_count = plain.end > plain.begin;
    }
    valid = sl_utf8_valid(text, size);
    sl_assert(sl_is_ok(mdl_tokenizer_encode(tokenizer(), text, size, &options, &ids, &err)) ==
              valid);
    if (valid) {
        check_stream(&ids, text, size);
        if (options.plain_count > 0)
            check_protected(&ids, plain);
    } else {
        sl_assert(ids.count == 0 && err.code == SL_INVALID);
    }
    mdl_ids_fini(&ids);
    return 0;
}
