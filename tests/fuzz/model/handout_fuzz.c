/* Sampling masks off the wire: what is taken holds as many ids as it says, all of the vocabulary.
 */
#include "base/assert.h"
#include "model/handout.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sl_reader r = sl_reader_init(data, size);
    uint32_t vocab = 1 + sl_read_u16(&r) % 4096, seen = 0;
    sl_span record = {data + r.at, sl_reader_left(&r)};
    if (!sl_reader_ok(&r) || !mdl_mask_check(record, vocab))
        return 0;
    uint8_t kind = sl_read_u8(&r);
    uint32_t count = sl_read_u32(&r);
    for (uint32_t id = 0; kind == MDL_MASK_BITMAP && id < vocab; id++)
        seen += r.data[r.at + id / 8] >> (id % 8) & 1;
    for (; kind == MDL_MASK_LIST && sl_reader_left(&r) > 0; seen++)
        sl_assert(sl_read_u32(&r) < vocab);
    sl_assert(seen == count && sl_reader_ok(&r));
    return 0;
}
