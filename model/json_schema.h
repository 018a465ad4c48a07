/* JSON schemas as grammars: every text of the grammar is JSON that the schema accepts.
 *
 * The converse does not hold, by design: white space is bounded, properties come in the schema's
 * order, and where a schema leaves the type open its keywords narrow it. docs/API.md lists the
 * keywords; an unsupported one is SL_UNSUPPORTED and named with its path, never ignored. Thread:
 * any. */
#ifndef MODEL_JSON_SCHEMA_H
#define MODEL_JSON_SCHEMA_H

#include "base/json.h"
#include "model/grammar.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MDL_SCHEMA_DEPTH_MAX 64 /* schemas inside one another while compiling */

typedef struct mdl_schema_options {
    const char *path; /* what errors call the schema */
    bool strict;      /* OpenAI's rules: closed objects, all properties required */
} mdl_schema_options;

SL_MUST_USE sl_status mdl_schema_compile(mdl_grammar *grammar, const sl_json *schema,
                                         const mdl_schema_options *options, mdl_node *out_node,
                                         sl_err *err);
/* Any JSON object. */
mdl_node mdl_schema_any_object(mdl_grammar *grammar);
/* The parameters of a call in the model's own markup, one tag a line, for a function's parameters
 * schema (NULL: none). */
SL_MUST_USE sl_status mdl_schema_parameters(mdl_grammar *grammar, const sl_json *schema,
                                            const mdl_schema_options *options, mdl_node *out_node,
                                            sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
