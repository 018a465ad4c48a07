/* What an answer must look like: the request's fields, the form in which it travels, its grammar.
 *
 * A constraint is the same on every node: it is text, and its grammar and the generated tokens give
 * the state. It covers the whole answer: reasoning (free, up to its end), then content of the asked
 * form or, with tools, calls. Functions that are strict constrain an answer unasked: its text is
 * free, and once calls begin, those of strict functions satisfy their parameters. Thread: any. */
#ifndef MODEL_CONSTRAINT_H
#define MODEL_CONSTRAINT_H

#include "base/bytes.h"
#include "base/json.h"
#include "model/chat.h"
#include "model/grammar.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MDL_CONSTRAINT_BYTES_MAX ((size_t)128 << 10) /* of the text, and of the tools */
#define MDL_CHOICES_MAX          8192u

/* The numbers travel: only append. */
typedef enum mdl_constraint_kind {
    MDL_CONSTRAINT_NONE,
    MDL_CONSTRAINT_JSON_SCHEMA, /* text: the schema */
    MDL_CONSTRAINT_JSON_OBJECT, /* any object */
    MDL_CONSTRAINT_REGEX,       /* text: the expression */
    MDL_CONSTRAINT_CHOICE,      /* text: a JSON array of strings */
    MDL_CONSTRAINT_TEXT,        /* any text: for the calls behind it, of which some are strict */
    MDL_CONSTRAINT_KIND_COUNT,
} mdl_constraint_kind;

typedef enum mdl_constraint_calls {
    MDL_CALLS_NONE,
    MDL_CALLS_ALLOWED,  /* instead of content; behind it, where that is any text */
    MDL_CALLS_REQUIRED, /* instead of content, which there is none of */
    MDL_CALLS_COUNT,
} mdl_constraint_calls;

/* What errors call the members of structured_outputs. */
typedef struct mdl_constraint_names {
    const char *json, *regex, *choice, *json_object;
} mdl_constraint_names;

typedef struct mdl_constraint {
    mdl_constraint_kind kind;
    mdl_constraint_calls calls;
    bool reasoning; /* the answer begins inside reasoning */
    bool strict;    /* OpenAI's rules for schemas */
    bool one_call;
    const char *field; /* what errors call it; NULL = "constraint" */
    const mdl_constraint_names
        *names; /* borrowed, set before parsing; NULL: as a request has them */
    sl_buf text;
    sl_buf tools; /* a JSON array of functions, when calls may come; each says if it is strict */
} mdl_constraint;

void mdl_constraint_init(mdl_constraint *constraint);
void mdl_constraint_fini(mdl_constraint *constraint);
/* Does it say anything? (Calls alone, allowed and not required, do not.) */
bool mdl_constraint_is_set(const mdl_constraint *constraint);

/* Reads response_format, structured_outputs, guided_json, guided_regex and guided_choice of a
 * request, and what its chat (NULL: a raw completion) says of tools. constraint: initialised.
 * Errors name the field. */
SL_MUST_USE sl_status mdl_constraint_parse(const sl_json *request, const mdl_chat *chat,
                                           mdl_constraint *constraint, sl_err *err);
/* Everything is checked here. */
SL_MUST_USE sl_status mdl_constraint_compile(const mdl_constraint *constraint,
                                             mdl_grammar **out_grammar, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
