/* Strict, lossless JSON (RFC 8259): reader into an arena-owned tree, and a writer.
 *
 * Lossless: object keys keep their order, numbers keep their source text (spec encoding.md section
 * 3 needs both; Debian's jansson keeps neither). Duplicate keys: last value, first position. Lone
 * surrogates and invalid UTF-8 are refused. Depth and size are bounded. Thread: owner; a tree is
 * immutable after parsing and may be shared. */
#ifndef BASE_JSON_H
#define BASE_JSON_H

#include "base/bytes.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum sl_json_type {
    SL_JSON_NULL,
    SL_JSON_FALSE,
    SL_JSON_TRUE,
    SL_JSON_NUMBER,
    SL_JSON_STRING,
    SL_JSON_ARRAY,
    SL_JSON_OBJECT,
} sl_json_type;

typedef struct sl_json sl_json; /* a value inside a document */
typedef struct sl_json_doc sl_json_doc;

typedef struct sl_json_limits {
    size_t bytes_max; /* 0 = 64 MiB */
    int depth_max;    /* 0 = 128 */
} sl_json_limits;

/* Copies what it keeps; `text` need not be terminated. The error names line and column. */
SL_MUST_USE sl_status sl_json_parse(const char *text, size_t size, const sl_json_limits *limits,
                                    sl_json_doc **out_doc, sl_err *err);
/* Reads a whole file; errors name it. */
SL_MUST_USE sl_status sl_json_parse_file(const char *path, const sl_json_limits *limits,
                                         sl_json_doc **out_doc, sl_err *err);
void sl_json_doc_destroy(sl_json_doc *doc);
const sl_json *sl_json_root(const sl_json_doc *doc);

sl_json_type sl_json_typeof(const sl_json *value); /* NULL value counts as SL_JSON_NULL */
const char *sl_json_type_name(sl_json_type type);  /* "string", "object", ... */
/* String bytes (NUL-terminated, may hold NULs); NULL if not a string. */
const char *sl_json_string(const sl_json *value, size_t *out_size);
/* The number's source text, NUL-terminated; NULL if not a number. */
const char *sl_json_number_text(const sl_json *value);
bool sl_json_number_is_integer(const sl_json *value); /* no '.', no exponent */
bool sl_json_i64(const sl_json *value,
                 int64_t *out_value); /* integers in range (also 3.0 and 1e2), else false */
bool sl_json_double(const sl_json *value, double *out_value);
bool sl_json_bool(const sl_json *value, bool *out_value);
/* Arrays and objects: number of entries; 0 for others. */
size_t sl_json_count(const sl_json *value);
const sl_json *sl_json_at(const sl_json *value,
                          size_t index); /* array element or object member's value */
const char *sl_json_key(const sl_json *value, size_t index, size_t *out_size);
/* Member by name; NULL if absent or not an object. O(1) expected for large objects. */
const sl_json *sl_json_get(const sl_json *object, const char *key);

/* Writers append to a buffer. */
void sl_json_write_string(sl_buf *buf, const char *text,
                          size_t size); /* with quotes; escapes per encoding.md section 3 */
/* Compact (no spaces) rendering that keeps order and number text. */
void sl_json_write(sl_buf *buf, const sl_json *value);
/* Python's json.dumps(ensure_ascii=False) style: ", " and ": ", numbers normalised per encoding.md
 * section 3. */
void sl_json_write_python(sl_buf *buf, const sl_json *value);

#ifdef __cplusplus
}
#endif
#endif
