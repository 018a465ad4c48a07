/* Sequences: pages bound to one token stream, its length, and the rows at its end.
 *
 * Thread: the engine thread. A sequence binds all its pages when it opens, so a running one never
 * waits for memory. */
#include <string.h>

#include "base/assert.h"
#include "engine/state.h"

sl_status eng_sequence_open(eng_engine *engine, uint32_t token_capacity,
                            eng_sequence **out_sequence, sl_err *err)
{
    if (token_capacity == 0)
        return sl_fail(err, SL_INVALID, "a sequence of no tokens");
    if (token_capacity > engine->context_max)
        return sl_fail(err, SL_TOO_LARGE, "%u tokens: the context is %u", token_capacity,
                       engine->context_max);
    uint32_t page_count = (token_capacity + ENG_PAGE_TOKENS - 1) / ENG_PAGE_TOKENS;
    if (page_count > engine->layout.page_count)
        return sl_fail(err, SL_TOO_LARGE, "%u tokens need %u pages: the cache has %u",
                       token_capacity, page_count, engine->layout.page_count);
    if (page_count > engine->pages.free_count)
        return sl_fail(err, SL_FULL, "%u tokens need %u pages: %u are free", token_capacity,
                       page_count, engine->pages.free_count);
    eng_sequence *sequence = NULL;
    for (uint32_t i = 0; i < engine->sequences_max && !sequence; i++) {
        if (!engine->sequences[i].open)
            sequence = &engine->sequences[i];
    }
    if (!sequence)
        return sl_fail(err, SL_FULL, "all %u sequences are open", engine->sequences_max);
    sequence->open = true;
    sequence->length = 0;
    sequence->capacity = token_capacity;
    sequence->page_count = page_count;
    sequence->step_id = 0;
    for (uint32_t i = 0; i < page_count; i++) {
        sequence->pages[i] = eng_pages_take(&engine->pages);
        sl_assert(sequence->pages[i] != ENG_NO_PAGE);
    }
    *out_sequence = sequence;
    return sl_ok();
}

void eng_sequence_close(eng_sequence *sequence)
{
    if (!sequence)
        return;
    sl_assert(sequence->open && !sequence->in_step);
    for (uint32_t i = 0; i < sequence->page_count; i++)
        eng_pages_give(&sequence->engine->pages, sequence->pages[i]);
    sequence->open = false;
    sequence->page_count = 0;
    sequence->length = 0;
}

uint32_t eng_sequence_length(const eng_sequence *sequence)
{
    sl_assert(sequence->open);
    return sequence->length;
}

uint32_t eng_sequence_page(const eng_sequence *sequence, uint32_t block)
{
    sl_assert(sequence->open && block < sequence->page_count);
    return sequence->pages[block];
}

void *eng_sequence_h_at(const eng_sequence *sequence, uint32_t length)
{
    sl_assert(length > 0 && length <= sequence->capacity);
    const eng_engine *engine = sequence->engine;
    uint32_t page = sequence->pages[(length - 1) / ENG_PAGE_TOKENS];
    return eng_pages_at(&engine->pages, page) + engine->h_final_offset;
}

const uint16_t *eng_sequence_h_final(const eng_sequence *sequence)
{
    sl_assert(sequence->open);
    return sequence->length ? eng_sequence_h_at(sequence, sequence->length) : NULL;
}

/* Pages before `length` are sealed, the others private. */
static void sequence_seal(eng_sequence *sequence, uint32_t length)
{
    eng_pages *pages = &sequence->engine->pages;
    for (uint32_t i = 0; i < sequence->page_count; i++) {
        bool full = (i + 1) * ENG_PAGE_TOKENS <= length;
        eng_page_state wanted = full ? ENG_PAGE_STATE_SEALED : ENG_PAGE_STATE_PRIVATE;
        if (pages->state[sequence->pages[i]] != wanted)
            eng_pages_set_state(pages, sequence->pages[i], wanted);
    }
}

void eng_sequence_set_length(eng_sequence *sequence, uint32_t length)
{
    sl_assert(length <= sequence->capacity);
    sequence->length = length;
    sequence_seal(sequence, length);
}

void eng_sequence_adopt(eng_sequence *sequence, uint32_t token_count, const uint16_t *h_final)
{
    sl_assert(sequence->open && sequence->length == 0);
    sl_assert(token_count > 0 && token_count <= sequence->capacity);
    sl_assert(!sequence->engine->plain);
    if (h_final)
        memcpy(eng_sequence_h_at(sequence, token_count), h_final,
               (size_t)sequence->engine->model->shape.hidden_size * sizeof(uint16_t));
    eng_sequence_set_length(sequence, token_count);
}

/* Zeroes rows [begin, end) of one page. */
static void clear_page_rows(const eng_engine *engine, uint8_t *page, uint32_t begin, uint32_t end)
{
    uint32_t count = end - begin;
    for (uint32_t layer = 0; layer < engine->layout.layer_count; layer++) {
        uint8_t *slice = page + layer * engine->layout.layer_bytes;
        if (engine->plain) {
            size_t row = KRN_PLAIN_ROW_DIM * sizeof(float), key = KRN_INDEX_DIM * sizeof(float);
            memset(slice + begin * row, 0, count * row);
            memset(slice + KRN_PLAIN_INDEX_AT + begin * key, 0, count * key);
            continue;
        }
        memset(slice + (size_t)begin * KRN_LATENT_ROW_BYTES, 0,
               (size_t)count * KRN_LATENT_ROW_BYTES);
        memset(slice + KRN_INDEX_CODES_AT + (size_t)begin * KRN_INDEX_DIM, 0,
               (size_t)count * KRN_INDEX_DIM);
        memset(slice + KRN_INDEX_SCALES_AT + begin * sizeof(float), 0, count * sizeof(float));
    }
}

void eng_sequence_clear_rows(eng_sequence *sequence, uint32_t begin, uint32_t end)
{
    eng_engine *engine = sequence->engine;
    sl_assert(end <= sequence->page_count * ENG_PAGE_TOKENS);
    while (begin < end) {
        uint32_t block = begin / ENG_PAGE_TOKENS, row = begin % ENG_PAGE_TOKENS;
        uint32_t stop = (block + 1) * ENG_PAGE_TOKENS;
        stop = stop < end ? stop : end;
        uint8_t *page = eng_pages_at(&engine->pages, sequence->pages[block]);
        clear_page_rows(engine, page, row, row + (stop - begin));
        begin = stop;
    }
}

void eng_sequence_truncate(eng_sequence *sequence, uint32_t token_count)
{
    eng_engine *engine = sequence->engine;
    sl_assert(sequence->open && token_count <= sequence->length);
    if (token_count == sequence->length)
        return;
    sl_assert(sequence->step_id == engine->step_id && token_count > sequence->step_first);
    size_t bytes = (size_t)engine->model->shape.hidden_size * engine->element_bytes;
    uint32_t row = sequence->step_row + (token_count - 1 - sequence->step_first);
    /* Pages wholly after the cut hold no h_final any more. */
    for (uint32_t block = (token_count - 1) / ENG_PAGE_TOKENS + 1;
         block * ENG_PAGE_TOKENS < sequence->length; block++)
        memset(eng_sequence_h_at(sequence, block * ENG_PAGE_TOKENS + 1), 0, bytes);
    memcpy(eng_sequence_h_at(sequence, token_count), (uint8_t *)engine->s.h + row * bytes, bytes);
    eng_sequence_clear_rows(sequence, token_count, sequence->length);
    eng_sequence_set_length(sequence, token_count);
}
