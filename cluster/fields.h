/* Fields of the JSON records that etcd keeps: untrusted, each error names the field.
 *
 * A path is a key of the root, or of an object in it ("stamp.model_hash"). What is not required may
 * be absent: the output then stays as it was. Errors are SL_INVALID. Thread: any. */
#ifndef CLUSTER_FIELDS_H
#define CLUSTER_FIELDS_H

#include "base/json.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CLU_FIELDS_DEPTH_MAX 8u /* of values in values */

/* Parses a record of at most size_max bytes that must be an object. The caller's:
 * sl_json_doc_destroy. */
SL_MUST_USE sl_status clu_fields_open(const void *data, size_t size, size_t size_max,
                                      sl_json_doc **out_doc, sl_err *err);
/* Without NUL, at most field_size - 1 bytes. */
SL_MUST_USE sl_status clu_field_text(const sl_json *root, const char *path, bool required,
                                     char *out_field, size_t field_size, sl_err *err);
SL_MUST_USE sl_status clu_field_number(const sl_json *root, const char *path, bool required,
                                       int64_t least, int64_t most, int64_t *out_value,
                                       sl_err *err);
SL_MUST_USE sl_status clu_field_bool(const sl_json *root, const char *path, bool required,
                                     bool *out_value, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
