/* Expressions: any bytes. What is accepted never leads into a dead end, and its texts are UTF-8;
 * inside a JSON string (bit 1 of the first byte) they are what such a string may hold. */
#include "base/alloc.h"
#include "model/regex.h"
#include "tests/fuzz/model/walk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_utf8(const char *text, size_t size)
{
    sl_assert(sl_utf8_valid(text, size));
}

static void check_string(const char *text, size_t size)
{
    sl_buf quoted;
    sl_json_doc *doc = NULL;
    sl_buf_init(&quoted, 0);
    sl_buf_putc(&quoted, '"');
    sl_buf_append(&quoted, text, size);
    sl_buf_putc(&quoted, '"');
    sl_status status = sl_json_parse(quoted.data, quoted.size, NULL, &doc, NULL);
    sl_assert(sl_is_ok(status));
    sl_json_doc_destroy(doc);
    sl_buf_fini(&quoted);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sl_err err = {0};
    mdl_node node = MDL_NODE_NONE;
    if (size < 1)
        return 0;
    mdl_grammar *grammar = mdl_grammar_create();
    unsigned flags = data[0] & (MDL_REGEX_SEARCH | MDL_REGEX_JSON | MDL_REGEX_UNMARKED);
    sl_status status =
        mdl_regex_compile(grammar, (const char *)data + 1, size - 1, flags, &node, &err);
    if (sl_is_ok(status))
        status = mdl_grammar_finish(grammar, node, &err);
    if (sl_is_ok(status))
        fuzz_walk(grammar, data[0], flags & MDL_REGEX_JSON ? check_string : check_utf8);
    else
        sl_assert(err.text[0]);
    mdl_grammar_destroy(grammar);
    sl_assert(sl_alloc_live() == 0);
    return 0;
}
