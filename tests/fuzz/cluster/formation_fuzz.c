/* Formations and placement tables: any bytes. What parses, its own text parses to the same. */
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "cluster/ranks.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void formation(const uint8_t *data, size_t size)
{
    static clu_formation one, again;
    if (!sl_is_ok(clu_formation_parse_json(data, size, &one, NULL)))
        return;
    sl_buf buf;
    sl_buf_init(&buf, 4 * CLU_FORMATION_JSON_MAX);
    clu_formation_write_json(&buf, &one);
    sl_assert(!buf.overflow);
    if (buf.size <= CLU_FORMATION_JSON_MAX) { /* escapes may make it longer */
        sl_status status = clu_formation_parse_json(buf.data, buf.size, &again, NULL);
        sl_assert(sl_is_ok(status) && again.number == one.number && again.ranks == one.ranks);
    }
    sl_buf_fini(&buf);
}

static void table(const uint8_t *data, size_t size)
{
    clu_placement *one, *again;
    if (!sl_is_ok(clu_placement_parse_json(data, size, &one, NULL)))
        return;
    sl_buf buf;
    sl_buf_init(&buf, 0);
    clu_placement_write_json(&buf, one);
    sl_status status = clu_placement_parse_json(buf.data, buf.size, &again, NULL);
    sl_assert(sl_is_ok(status) && again->version == one->version);
    sl_assert(clu_placement_fits(again, &one->shape));
    sl_assert(memcmp(again->slots, one->slots,
                     clu_placement_entries(&one->shape) * sizeof(uint16_t)) == 0);
    clu_placement_destroy(one);
    clu_placement_destroy(again);
    sl_buf_fini(&buf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    formation(data, size);
    table(data, size);
    sl_assert(sl_alloc_live() == 0);
    return 0;
}
