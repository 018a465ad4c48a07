/* Records of ranks: any bytes. What parses, its own text parses to the same. */
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "cluster/ranks.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    clu_rank_record record, again;
    sl_err err;
    if (sl_is_ok(clu_rank_parse_json(data, size, &record, &err))) {
        sl_buf buf;
        sl_buf_init(&buf, 4 * CLU_RANK_JSON_MAX);
        clu_rank_write_json(&buf, &record);
        sl_assert(!buf.overflow);
        if (buf.size <= CLU_RANK_JSON_MAX) { /* escapes may make it longer */
            sl_status status = clu_rank_parse_json(buf.data, buf.size, &again, &err);
            sl_assert(sl_is_ok(status));
            sl_assert(strcmp(record.node, again.node) == 0 &&
                      strcmp(record.contact, again.contact) == 0 && record.size == again.size &&
                      record.leaving == again.leaving);
        }
        sl_buf_fini(&buf);
    }
    sl_assert(sl_alloc_live() == 0);
    return 0;
}
