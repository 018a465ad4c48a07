/* JSON: any bytes. What parses must survive both writers: the compact text parses to the same text,
 * the Python text is stable after one turn. */
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static sl_buf rewritten(const char *text, size_t size, void (*writer)(sl_buf *, const sl_json *))
{
    sl_json_doc *doc;
    sl_buf buf;
    sl_err err;
    sl_buf_init(&buf, 0);
    sl_status status = sl_json_parse(text, size, NULL, &doc, &err);
    sl_assert(sl_is_ok(status));
    writer(&buf, sl_json_root(doc));
    sl_json_doc_destroy(doc);
    return buf;
}

static bool has_infinity(const sl_json *value)
{
    double number;
    if (sl_json_typeof(value) == SL_JSON_NUMBER && !sl_json_number_is_integer(value))
        return !sl_json_double(value, &number);
    for (size_t i = 0; i < sl_json_count(value); i++)
        if (has_infinity(sl_json_at(value, i)))
            return true;
    return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sl_json_doc *doc;
    sl_err err;
    sl_status status = sl_json_parse((const char *)data, size, NULL, &doc, &err);
    if (!sl_is_ok(status)) {
        sl_assert(err.code == status.code && err.text[0]);
        return 0;
    }
    bool infinite = has_infinity(sl_json_root(doc));
    sl_json_doc_destroy(doc);
    sl_buf once = rewritten((const char *)data, size, sl_json_write);
    sl_buf twice = rewritten(once.data, once.size, sl_json_write);
    sl_assert(once.size == twice.size && memcmp(once.data, twice.data, once.size) == 0);
    sl_buf_fini(&once);
    sl_buf_fini(&twice);
    if (!infinite) { /* 1e999 becomes Infinity there, which is not JSON */
        once = rewritten((const char *)data, size, sl_json_write_python);
        twice = rewritten(once.data, once.size, sl_json_write_python);
        sl_assert(once.size == twice.size && memcmp(once.data, twice.data, once.size) == 0);
        sl_buf_fini(&once);
        sl_buf_fini(&twice);
    }
    sl_assert(sl_alloc_live() == 0);
    return 0;
}
