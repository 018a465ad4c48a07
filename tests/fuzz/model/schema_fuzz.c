/* JSON schemas: any JSON. What is accepted never leads into a dead end, and texts that may end are
 * JSON. The first byte seeds the walk and chooses strict. */
#include "base/alloc.h"
#include "tests/fuzz/model/walk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_json(const char *text, size_t size)
{
    sl_json_doc *doc = NULL;
    sl_status status = sl_json_parse(text, size, NULL, &doc, NULL);
    sl_assert(sl_is_ok(status));
    sl_json_doc_destroy(doc);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mdl_constraint constraint;
    mdl_grammar *grammar = NULL;
    sl_err err = {0};
    if (size < 1)
        return 0;
    mdl_constraint_init(&constraint);
    constraint.kind = MDL_CONSTRAINT_JSON_SCHEMA;
    constraint.strict = data[0] & 1;
    sl_buf_append(&constraint.text, data + 1, size - 1);
    if (sl_is_ok(mdl_constraint_compile(&constraint, &grammar, &err)))
        fuzz_walk(grammar, data[0], check_json);
    else
        sl_assert(!grammar && err.text[0]);
    mdl_grammar_destroy(grammar);
    mdl_constraint_fini(&constraint);
    sl_assert(sl_alloc_live() == 0);
    return 0;
}
