/* See desired.h. */
#include "cluster/desired.h"

#include <string.h>

#include "base/json.h"

void clu_desired_write_json(sl_buf *buf, const clu_desired *desired)
{
    sl_buf_printf(buf, "{\"cordoned\":%s,\"reason\":", desired->cordoned ? "true" : "false");
    sl_json_write_string(buf, desired->reason, strlen(desired->reason));
    sl_buf_putc(buf, '}');
}

static sl_status parse_root(const sl_json *root, clu_desired *desired, sl_err *err)
{
    const sl_json *cordoned = sl_json_get(root, "cordoned"), *reason = sl_json_get(root, "reason");
    size_t size;
    if (sl_json_typeof(root) != SL_JSON_OBJECT)
        return sl_fail(err, SL_INVALID, "want an object");
    if (cordoned && !sl_json_bool(cordoned, &desired->cordoned))
        return sl_fail(err, SL_INVALID, "cordoned: want true or false");
    if (!reason)
        return sl_ok();
    const char *text = sl_json_string(reason, &size);
    if (!text || size >= sizeof(desired->reason) || memchr(text, 0, size))
        return sl_fail(err, SL_INVALID, "reason: want a text of at most %u bytes",
                       CLU_REASON_MAX - 1);
    memcpy(desired->reason, text, size + 1);
    return sl_ok();
}

sl_status clu_desired_parse_json(const void *data, size_t size, clu_desired *out_desired,
                                 sl_err *err)
{
    static const sl_json_limits LIMITS = {CLU_DESIRED_JSON_MAX, 4};
    sl_json_doc *doc;
    clu_desired desired;
    memset(&desired, 0, sizeof(desired));
    if (!sl_is_ok(sl_json_parse(data, size, &LIMITS, &doc, err)))
        return sl_fail(err, SL_INVALID, "desired record: not JSON of its kind");
    sl_status status = parse_root(sl_json_root(doc), &desired, err);
    sl_json_doc_destroy(doc);
    if (!sl_is_ok(status))
        return sl_wrap(err, status, "desired record");
    *out_desired = desired;
    return status;
}

/* ---- scale ---- */

sl_status clu_scale_check(const clu_scale *scale, sl_err *err)
{
    if (scale->decode == 0)
        return sl_fail(err, SL_INVALID, "decode: at least one node is needed to answer anything");
    if (scale->prefill > CLU_SCALE_MAX || scale->decode > CLU_SCALE_MAX)
        return sl_fail(err, SL_INVALID, "at most %u nodes of a role", CLU_SCALE_MAX);
    return sl_ok();
}

void clu_scale_write_json(sl_buf *buf, const clu_scale *scale)
{
    sl_buf_printf(buf, "{\"prefill\":%u,\"decode\":%u}", scale->prefill, scale->decode);
}

static sl_status get_count(const sl_json *root, const char *key, uint32_t *out_count, sl_err *err)
{
    const sl_json *value = sl_json_get(root, key);
    int64_t number;
    if (sl_json_typeof(value) != SL_JSON_NUMBER || !sl_json_i64(value, &number) || number < 0 ||
        number > CLU_SCALE_MAX)
        return sl_fail(err, SL_INVALID, "scale: %s: want 0 to %u", key, CLU_SCALE_MAX);
    *out_count = (uint32_t)number;
    return sl_ok();
}

sl_status clu_scale_parse_json(const void *data, size_t size, clu_scale *out_scale, sl_err *err)
{
    static const sl_json_limits LIMITS = {CLU_DESIRED_JSON_MAX, 4};
    clu_scale scale = {0, 0};
    sl_json_doc *doc;
    if (!sl_is_ok(sl_json_parse(data, size, &LIMITS, &doc, err)))
        return sl_fail(err, SL_INVALID, "scale: not JSON of its kind");
    sl_status status = get_count(sl_json_root(doc), "prefill", &scale.prefill, err);
    if (sl_is_ok(status))
        status = get_count(sl_json_root(doc), "decode", &scale.decode, err);
    sl_json_doc_destroy(doc);
    if (sl_is_ok(status))
        status = clu_scale_check(&scale, err);
    if (sl_is_ok(status))
        *out_scale = scale;
    return status;
}
