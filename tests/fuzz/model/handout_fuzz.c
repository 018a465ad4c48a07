/* Sampling masks and scores off the wire: what is taken holds as many ids as it says, all of the
 * vocabulary. */
#include "base/assert.h"
#include "model/handout.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_mask(sl_reader r, uint32_t vocab)
{
    uint32_t seen = 0;
    uint8_t kind = sl_read_u8(&r);
    uint32_t count = sl_read_u32(&r);
    for (uint32_t id = 0; kind == MDL_MASK_BITMAP && id < vocab; id++)
        seen += r.data[r.at + id / 8] >> (id % 8) & 1;
    for (; kind == MDL_MASK_LIST && sl_reader_left(&r) > 0; seen++)
        sl_assert(sl_read_u32(&r) < vocab);
    sl_assert(seen == count && sl_reader_ok(&r));
}

static void check_score(sl_reader r, uint32_t vocab)
{
    mdl_score_top top[20];
    mdl_score score;
    uint32_t alternatives = sl_read_u8(&r) % 21;
    sl_span bytes = sl_read_span(&r, mdl_score_bytes(alternatives));
    if (!bytes.data || !mdl_score_unpack(bytes.data, alternatives, vocab, top, &score))
        return;
    sl_assert(score.top == top && score.top_count <= alternatives);
    for (uint32_t i = 0; i < score.top_count; i++)
        sl_assert(top[i].id < vocab);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sl_reader r = sl_reader_init(data, size);
    uint32_t vocab = 1 + sl_read_u16(&r) % 4096;
    if (!sl_reader_ok(&r))
        return 0;
    if (mdl_mask_check((sl_span){data + r.at, sl_reader_left(&r)}, vocab))
        check_mask(r, vocab);
    check_score(r, vocab);
    return 0;
}
