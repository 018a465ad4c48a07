/* Member records: any bytes. What parses passes the check, and its own text parses to the same. */
#include "base/alloc.h"
#include "base/assert.h"
#include "cluster/member.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    clu_member_info info, again;
    sl_err err;
    if (sl_is_ok(clu_member_parse_json(data, size, &info, &err))) {
        sl_assert(sl_is_ok(clu_member_check(&info, &err)));
        sl_buf buf;
        sl_buf_init(&buf, CLU_MEMBER_JSON_MAX);
        clu_member_write_json(&buf, &info);
        sl_assert(!buf.overflow);
        sl_status status = clu_member_parse_json(buf.data, buf.size, &again, &err);
        sl_assert(sl_is_ok(status));
        sl_assert(clu_member_equal(&info, &again));
        sl_buf_fini(&buf);
    }
    sl_assert(sl_alloc_live() == 0);
    return 0;
}
