/* Regular expressions as grammars, over code points.
 *
 * The subset (docs/API.md lists it): literals, escapes, `.`, classes, groups, alternation, greedy
 * or lazy quantifiers, ^ at the start and $ at the end of an alternative. All else is
 * SL_UNSUPPORTED and named with its place. Thread: any. */
#ifndef MODEL_REGEX_H
#define MODEL_REGEX_H

#include "model/grammar.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MDL_REGEX_BYTES_MAX 8192u
#define MDL_REGEX_DEPTH_MAX 64 /* groups inside one another */

typedef enum mdl_regex_flags {
    /* The expression need only occur in the text (JSON schema's pattern); else it is all of it. */
    MDL_REGEX_SEARCH = 1 << 0,
    /* Texts are written as the inside of a JSON string: what must be escaped is. */
    MDL_REGEX_JSON = 1 << 1,
    /* Without U+FF5C, which the model's markup is written with. */
    MDL_REGEX_UNMARKED = 1 << 2,
} mdl_regex_flags;

SL_MUST_USE sl_status mdl_regex_compile(mdl_grammar *grammar, const char *pattern, size_t size,
                                        unsigned flags, mdl_node *out_node, sl_err *err);
/* Any one code point. */
mdl_node mdl_regex_any(mdl_grammar *grammar, unsigned flags);

#ifdef __cplusplus
}
#endif
#endif
