/* See handout.h. Threads: as said there. */
#include "decode/handout.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"

static uint64_t row_bytes(const dec_handout_options *o)
{
    return o->routing ? o->routing->row_bytes : 0;
}

static uint64_t mask_bytes(const dec_handout_options *o)
{
    return o->mask_vocab ? mdl_mask_bytes_max(o->mask_vocab) : 0;
}

sl_status dec_handout_check(const dec_handout_options *options, sl_err *err)
{
    uint64_t bytes = (row_bytes(options) + mask_bytes(options)) * options->token_capacity;
    if (bytes > DEC_HANDOUT_BYTES_MAX)
        return sl_fail(err, SL_TOO_LARGE,
                       "max_tokens: routing and masks of %u tokens may take %llu MiB, at most %llu",
                       options->token_capacity, (unsigned long long)(bytes >> 20),
                       (unsigned long long)(DEC_HANDOUT_BYTES_MAX >> 20));
    return sl_ok();
}

dec_handout *dec_handout_create(const dec_handout_options *options)
{
    dec_handout *handout = sl_alloc(1, sizeof(*handout), "decode hand-out");
    handout->o = *options;
    size_t count = options->token_capacity;
    if (options->routing) {
        handout->first_row = sl_alloc(1, row_bytes(options), "decode hand-out");
        handout->rows = sl_alloc(count, row_bytes(options), "decode hand-out");
    }
    if (options->mask_vocab) {
        handout->masks = sl_alloc(count, mask_bytes(options), "decode hand-out");
        handout->mask_ends = sl_alloc(count, sizeof(uint32_t), "decode hand-out");
    }
    return handout;
}

void dec_handout_destroy(dec_handout *handout)
{
    if (!handout)
        return;
    sl_free(handout->first_row);
    sl_free(handout->rows);
    sl_free(handout->masks);
    sl_free(handout->mask_ends);
    sl_free(handout);
}

static uint32_t mask_begin(const dec_handout *handout, uint32_t index)
{
    return index ? handout->mask_ends[index - 1] : 0;
}

void dec_handout_note(dec_handout *handout, eng_engine *engine, const uint8_t *routing)
{
    uint32_t at = handout->count++;
    sl_assert(at < handout->o.token_capacity && (!handout->o.routing || routing));
    if (handout->o.routing)
        memcpy(handout->rows + at * row_bytes(&handout->o), routing, row_bytes(&handout->o));
    if (handout->o.mask_vocab) {
        uint32_t begin = mask_begin(handout, at);
        handout->mask_ends[at] = begin + eng_sample_mask(engine, handout->masks + begin);
    }
}

sl_span dec_handout_mask(const dec_handout *handout, uint32_t index)
{
    uint32_t begin = mask_begin(handout, index);
    return (sl_span){handout->masks + begin, handout->mask_ends[index] - begin};
}

uint32_t dec_handout_bytes(const dec_handout *handout, uint32_t index)
{
    uint32_t mask = handout->o.mask_vocab ? (uint32_t)dec_handout_mask(handout, index).size : 0;
    return (uint32_t)row_bytes(&handout->o) + mask;
}
