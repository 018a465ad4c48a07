/* Recognising the model's markup in text that may end anywhere. Not for other folders. */
#ifndef MODEL_OUTPUT_TAGS_H
#define MODEL_OUTPUT_TAGS_H

#include <stdbool.h>
#include <stddef.h>

typedef enum mdl_match {
    MDL_MATCH_NO,      /* whatever follows */
    MDL_MATCH_PARTIAL, /* depends on what follows */
    MDL_MATCH_YES,
} mdl_match;

typedef enum mdl_tag_kind {
    MDL_TAG_OPEN_CALLS = 1 << 0,
    MDL_TAG_CLOSE_CALLS = 1 << 1,
    MDL_TAG_OPEN_INVOKE = 1 << 2,
    MDL_TAG_CLOSE_INVOKE = 1 << 3,
    MDL_TAG_OPEN_PARAMETER = 1 << 4,
    MDL_TAG_CLOSE_PARAMETER = 1 << 5,
} mdl_tag_kind;

typedef enum mdl_tag_string {
    MDL_TAG_STRING_OTHER, /* missing, or neither true nor false */
    MDL_TAG_STRING_TRUE,
    MDL_TAG_STRING_FALSE,
} mdl_tag_string;

typedef struct mdl_tag {
    mdl_tag_kind kind;
    size_t length;
    const char *name; /* OPEN_INVOKE, OPEN_PARAMETER; not terminated */
    size_t name_size;
    mdl_tag_string string;
    bool self_closing;
} mdl_tag;

/* Is there one of the wanted tags (bits of mdl_tag_kind) at the start of data? Tolerates white
 * space and stray "｜" before ">". Writes *out_tag only for YES. */
mdl_match mdl_tag_parse(const char *data, size_t size, unsigned wanted, mdl_tag *out_tag);
/* Is `literal` at the start? */
mdl_match mdl_literal_match(const char *data, size_t size, const char *literal);

#endif
