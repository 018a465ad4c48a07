/* See handout.h. Owns nothing. Thread: any. */
#include "model/handout.h"

#include <string.h>

#include "base/assert.h"

static void put_f32(sl_writer *w, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    sl_write_u32(w, bits);
}

static float get_f32(sl_reader *r)
{
    uint32_t bits = sl_read_u32(r);
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* ---- routing */

void mdl_routing_layout_init(const mdl_shape *shape, mdl_routing_layout *out_layout)
{
    *out_layout = (mdl_routing_layout){
        .first_layer = (uint16_t)shape->dense_layer_count,
        .layer_count = (uint16_t)(shape->layer_count - shape->dense_layer_count),
        .chosen = (uint16_t)shape->experts_per_token,
    };
    out_layout->row_bytes = (uint32_t)out_layout->layer_count * out_layout->chosen *
                            (uint32_t)(sizeof(uint16_t) + sizeof(float));
}

void mdl_routing_put(const mdl_routing_layout *layout, uint32_t layer, const uint32_t *experts,
                     const float *weights, uint8_t *row)
{
    sl_assert(layer >= layout->first_layer && layer - layout->first_layer < layout->layer_count);
    size_t at = (size_t)(layer - layout->first_layer) * layout->chosen;
    size_t cells = (size_t)layout->layer_count * layout->chosen;
    sl_writer ids = sl_writer_init(row + at * sizeof(uint16_t), layout->chosen * sizeof(uint16_t));
    sl_writer gates = sl_writer_init(row + cells * sizeof(uint16_t) + at * sizeof(float),
                                     layout->chosen * sizeof(float));
    for (uint32_t i = 0; i < layout->chosen; i++) {
        sl_write_u16(&ids, (uint16_t)experts[i]);
        put_f32(&gates, weights[i]);
    }
}

static void put_header(const char magic[4], uint16_t a, uint16_t b, uint16_t c, uint32_t row_count,
                       sl_buf *out)
{
    uint8_t bytes[MDL_HANDOUT_HEADER_BYTES];
    sl_writer w = sl_writer_init(bytes, sizeof(bytes));
    sl_write_bytes(&w, magic, 4);
    sl_write_u16(&w, MDL_HANDOUT_VERSION);
    sl_write_u16(&w, a);
    sl_write_u16(&w, b);
    sl_write_u16(&w, c);
    sl_write_u32(&w, row_count);
    sl_buf_append(out, bytes, sizeof(bytes));
}

void mdl_routing_header(const mdl_routing_layout *layout, uint32_t row_count, sl_buf *out)
{
    put_header("SLRT", layout->first_layer, layout->layer_count, layout->chosen, row_count, out);
}

/* ---- scores */

void mdl_score_pack(const mdl_score *score, uint32_t alternatives, uint8_t *out)
{
    sl_assert(score->top_count <= alternatives);
    sl_writer w = sl_writer_init(out, mdl_score_bytes(alternatives));
    memset(out, 0, w.size);
    put_f32(&w, score->logprob);
    sl_write_u32(&w, score->rank);
    sl_write_u32(&w, score->top_count);
    for (uint32_t i = 0; i < score->top_count; i++) {
        sl_write_u32(&w, score->top[i].id);
        put_f32(&w, score->top[i].logprob);
    }
}

bool mdl_score_unpack(const uint8_t *data, uint32_t alternatives, uint32_t vocab_size,
                      mdl_score_top *top, mdl_score *out_score)
{
    sl_reader r = sl_reader_init(data, mdl_score_bytes(alternatives));
    mdl_score score = {.logprob = get_f32(&r), .top = top};
    score.rank = sl_read_u32(&r);
    score.top_count = sl_read_u32(&r);
    if (score.top_count > alternatives)
        return false;
    for (uint32_t i = 0; i < score.top_count; i++) {
        top[i].id = sl_read_u32(&r);
        top[i].logprob = get_f32(&r);
        if (top[i].id >= vocab_size)
            return false;
    }
    *out_score = score;
    return true;
}

/* ---- masks */

static uint32_t bitmap_bytes(uint32_t vocab_size)
{
    return (vocab_size + 7) / 8;
}

uint32_t mdl_mask_bytes_max(uint32_t vocab_size)
{
    return MDL_MASK_HEAD_BYTES + bitmap_bytes(vocab_size);
}

static void put_head(sl_writer *w, mdl_mask_kind kind, uint32_t count)
{
    sl_write_u8(w, (uint8_t)kind);
    sl_write_u32(w, count);
}

uint32_t mdl_mask_pack(const uint64_t *kept, uint32_t vocab_size, uint8_t *out)
{
    sl_writer w = sl_writer_init(out, mdl_mask_bytes_max(vocab_size));
    if (!kept) {
        put_head(&w, MDL_MASK_UNCUT, 0);
        return (uint32_t)w.at;
    }
    uint32_t count = 0, words = (vocab_size + 63) / 64;
    for (uint32_t i = 0; i < words; i++)
        count += (uint32_t)__builtin_popcountll(kept[i]);
    if ((uint64_t)count * sizeof(uint32_t) > bitmap_bytes(vocab_size)) {
        put_head(&w, MDL_MASK_BITMAP, count);
        for (uint32_t byte = 0; byte < bitmap_bytes(vocab_size); byte++)
            sl_write_u8(&w, (uint8_t)(kept[byte / 8] >> (byte % 8 * 8)));
    } else {
        put_head(&w, MDL_MASK_LIST, count);
        for (uint32_t i = 0; i < words; i++)
            for (uint64_t word = kept[i]; word; word &= word - 1)
                sl_write_u32(&w, i * 64 + (uint32_t)__builtin_ctzll(word));
    }
    sl_assert(!w.failed);
    return (uint32_t)w.at;
}

uint32_t mdl_mask_pack_one(uint32_t id, uint8_t *out)
{
    sl_writer w = sl_writer_init(out, MDL_MASK_HEAD_BYTES + sizeof(id));
    put_head(&w, MDL_MASK_LIST, 1);
    sl_write_u32(&w, id);
    return (uint32_t)w.at;
}

static bool list_ok(sl_reader *r, uint32_t count, uint32_t vocab_size)
{
    if (count > vocab_size || sl_reader_left(r) != (size_t)count * sizeof(uint32_t))
        return false;
    for (uint32_t i = 0, least = 0; i < count; i++) {
        uint32_t id = sl_read_u32(r);
        if (id < least || id >= vocab_size)
            return false;
        least = id + 1;
    }
    return true;
}

static bool bitmap_ok(sl_reader *r, uint32_t count, uint32_t vocab_size)
{
    sl_span bits = sl_read_span(r, bitmap_bytes(vocab_size));
    uint32_t found = 0;
    if (!sl_reader_ok(r) || sl_reader_left(r) != 0)
        return false;
    for (size_t i = 0; i < bits.size; i++)
        found += (uint32_t)__builtin_popcount(bits.data[i]);
    bool beyond = vocab_size % 8 && bits.data[bits.size - 1] >> (vocab_size % 8) != 0;
    return found == count && !beyond;
}

bool mdl_mask_check(sl_span record, uint32_t vocab_size)
{
    sl_reader r = sl_reader_init(record.data, record.size);
    uint8_t kind = sl_read_u8(&r);
    uint32_t count = sl_read_u32(&r);
    if (!sl_reader_ok(&r))
        return false;
    if (kind == MDL_MASK_UNCUT)
        return count == 0 && sl_reader_left(&r) == 0;
    if (kind == MDL_MASK_LIST)
        return list_ok(&r, count, vocab_size);
    return kind == MDL_MASK_BITMAP && bitmap_ok(&r, count, vocab_size);
}

void mdl_mask_header(uint32_t vocab_size, uint32_t row_count, sl_buf *out)
{
    put_header("SLSM", (uint16_t)vocab_size, (uint16_t)(vocab_size >> 16), 0, row_count, out);
}
