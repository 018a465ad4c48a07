/* See desired.h. */
#include "cluster/desired.h"

#include <string.h>

#include "base/json.h"
#include "cluster/fields.h"

void clu_desired_write_json(sl_buf *buf, const clu_desired *desired)
{
    sl_buf_printf(buf, "{\"cordoned\":%s,\"reason\":", desired->cordoned ? "true" : "false");
    sl_json_write_string(buf, desired->reason, strlen(desired->reason));
    sl_buf_putc(buf, '}');
}

static sl_status parse_root(const sl_json *root, clu_desired *desired, sl_err *err)
{
    SL_TRY(clu_field_bool(root, "cordoned", false, &desired->cordoned, err));
    return clu_field_text(root, "reason", false, desired->reason, sizeof(desired->reason), err);
}

sl_status clu_desired_parse_json(const void *data, size_t size, clu_desired *out_desired,
                                 sl_err *err)
{
    sl_json_doc *doc;
    clu_desired desired;
    memset(&desired, 0, sizeof(desired));
    sl_status status = clu_fields_open(data, size, CLU_DESIRED_JSON_MAX, &doc, err);
    if (sl_is_ok(status)) {
        status = parse_root(sl_json_root(doc), &desired, err);
        sl_json_doc_destroy(doc);
    }
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

static sl_status parse_scale(const sl_json *root, clu_scale *scale, sl_err *err)
{
    int64_t prefill = 0, decode = 0;
    SL_TRY(clu_field_number(root, "prefill", true, 0, CLU_SCALE_MAX, &prefill, err));
    SL_TRY(clu_field_number(root, "decode", true, 0, CLU_SCALE_MAX, &decode, err));
    *scale = (clu_scale){(uint32_t)prefill, (uint32_t)decode};
    return clu_scale_check(scale, err);
}

sl_status clu_scale_parse_json(const void *data, size_t size, clu_scale *out_scale, sl_err *err)
{
    clu_scale scale = {0, 0};
    sl_json_doc *doc;
    sl_status status = clu_fields_open(data, size, CLU_DESIRED_JSON_MAX, &doc, err);
    if (sl_is_ok(status)) {
        status = parse_scale(sl_json_root(doc), &scale, err);
        sl_json_doc_destroy(doc);
    }
    if (!sl_is_ok(status))
        return sl_wrap(err, status, "scale");
    *out_scale = scale;
    return status;
}
