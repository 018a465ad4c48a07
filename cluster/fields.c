/* See fields.h. */
#include "cluster/fields.h"

#include <inttypes.h>
#include <string.h>

#include "base/assert.h"

sl_status clu_fields_open(const void *data, size_t size, size_t size_max, sl_json_doc **out_doc,
                          sl_err *err)
{
    const sl_json_limits limits = {size_max, CLU_FIELDS_DEPTH_MAX};
    sl_err why;
    if (size > size_max)
        return sl_fail(err, SL_INVALID, "over %zu bytes", size_max);
    if (!sl_is_ok(sl_json_parse(data, size, &limits, out_doc, &why)))
        return sl_fail(err, SL_INVALID, "%s", why.text); /* if too deep as well */
    if (sl_json_typeof(sl_json_root(*out_doc)) == SL_JSON_OBJECT)
        return sl_ok();
    sl_json_doc_destroy(*out_doc);
    return sl_fail(err, SL_INVALID, "want an object");
}

/* What stands there, NULL for nothing. */
static sl_status find(const sl_json *root, const char *path, bool required,
                      const sl_json **out_value, sl_err *err)
{
    const char *dot = strchr(path, '.');
    char key[64];
    if (dot) {
        sl_assert((size_t)(dot - path) < sizeof(key)); /* paths are ours */
        memcpy(key, path, (size_t)(dot - path));
        key[dot - path] = 0;
        root = sl_json_get(root, key);
        if (root && sl_json_typeof(root) != SL_JSON_OBJECT)
            return sl_fail(err, SL_INVALID, "%s: want an object", key);
    }
    *out_value = root ? sl_json_get(root, dot ? dot + 1 : path) : NULL;
    if (!*out_value && required)
        return sl_fail(err, SL_INVALID, "%s: missing", path);
    return sl_ok();
}

sl_status clu_field_text(const sl_json *root, const char *path, bool required, char *out_field,
                         size_t field_size, sl_err *err)
{
    const sl_json *value;
    size_t size;
    SL_TRY(find(root, path, required, &value, err));
    if (!value)
        return sl_ok();
    const char *text = sl_json_string(value, &size);
    if (!text)
        return sl_fail(err, SL_INVALID, "%s: want a string, got %s", path,
                       sl_json_type_name(sl_json_typeof(value)));
    if (memchr(text, 0, size))
        return sl_fail(err, SL_INVALID, "%s: holds a NUL", path);
    if (size >= field_size)
        return sl_fail(err, SL_INVALID, "%s: %zu bytes, at most %zu", path, size, field_size - 1);
    memcpy(out_field, text, size + 1);
    return sl_ok();
}

sl_status clu_field_number(const sl_json *root, const char *path, bool required, int64_t least,
                           int64_t most, int64_t *out_value, sl_err *err)
{
    const sl_json *value;
    int64_t number;
    SL_TRY(find(root, path, required, &value, err));
    if (!value)
        return sl_ok();
    if (!sl_json_i64(value, &number) || number < least || number > most)
        return sl_fail(err, SL_INVALID, "%s: want an integer of %" PRId64 "..%" PRId64, path, least,
                       most);
    *out_value = number;
    return sl_ok();
}

sl_status clu_field_bool(const sl_json *root, const char *path, bool required, bool *out_value,
                         sl_err *err)
{
    const sl_json *value;
    SL_TRY(find(root, path, required, &value, err));
    if (value && !sl_json_bool(value, out_value))
        return sl_fail(err, SL_INVALID, "%s: want true or false", path);
    return sl_ok();
}
