/* What operators want and did, as etcd keeps it: any bytes. What parses, its own text parses to the
 * same. */
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "cluster/action.h"
#include "cluster/desired.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void desired(const uint8_t *data, size_t size)
{
    clu_desired one, again;
    if (!sl_is_ok(clu_desired_parse_json(data, size, &one, NULL)))
        return;
    sl_buf buf;
    sl_buf_init(&buf, 0);
    clu_desired_write_json(&buf, &one); /* escapes make it longer by far less than the bound */
    sl_status status = clu_desired_parse_json(buf.data, buf.size, &again, NULL);
    sl_assert(sl_is_ok(status) && again.cordoned == one.cordoned);
    sl_assert(strcmp(again.reason, one.reason) == 0);
    sl_buf_fini(&buf);
}

static void scale(const uint8_t *data, size_t size)
{
    clu_scale one, again;
    if (!sl_is_ok(clu_scale_parse_json(data, size, &one, NULL)))
        return;
    sl_buf buf;
    sl_buf_init(&buf, 0);
    clu_scale_write_json(&buf, &one);
    sl_status status = clu_scale_parse_json(buf.data, buf.size, &again, NULL);
    sl_assert(sl_is_ok(status) && again.prefill == one.prefill && again.decode == one.decode);
    sl_buf_fini(&buf);
}

static void audit(const uint8_t *data, size_t size)
{
    static clu_audit_record one, again;
    if (!sl_is_ok(clu_audit_parse_json(data, size, &one, NULL)))
        return;
    sl_buf buf;
    sl_buf_init(&buf, 0);
    clu_audit_write_json(&buf, &one);
    if (buf.size <= CLU_AUDIT_JSON_MAX) { /* escapes may make it longer */
        sl_status status = clu_audit_parse_json(buf.data, buf.size, &again, NULL);
        sl_assert(sl_is_ok(status) && again.sequence == one.sequence &&
                  again.time_us == one.time_us && again.fence == one.fence);
        sl_assert(strcmp(again.actor, one.actor) == 0 && strcmp(again.verb, one.verb) == 0 &&
                  strcmp(again.target, one.target) == 0 && strcmp(again.detail, one.detail) == 0);
    }
    sl_buf_fini(&buf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    desired(data, size);
    scale(data, size);
    audit(data, size);
    sl_assert(sl_alloc_live() == 0);
    return 0;
}
