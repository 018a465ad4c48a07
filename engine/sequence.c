/* Sequences: the length of one token stream in the cache, what is known of it, and the rows at its
 * end. Which pages it has: binding.c. Thread: the engine thread. */
#include "base/assert.h"
#include "engine/ops.h"

void eng_sequence_publish(eng_sequence *sequence, const eng_prefix *prefix)
{
    sl_assert(sequence->open && !sequence->in_step);
    eng_prefix_index *index = &sequence->engine->pages.prefix;
    uint32_t limit =
        prefix->token_count < sequence->length ? prefix->token_count : sequence->length;
    eng_chain chain = {0};
    for (uint32_t block = 0; (block + 1) * ENG_PAGE_TOKENS <= limit; block++) {
        const uint32_t *tokens = prefix->tokens + (size_t)block * ENG_PAGE_TOKENS;
        uint32_t page = sequence->pages[block];
        chain = eng_prefix_chain(index, prefix->space, chain, tokens);
        /* Maybe another page with the same tokens is known: then ours is not kept. */
        if (!eng_prefix_index_has(index, page))
            eng_prefix_index_add(index, page, chain, tokens);
    }
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
    return eng_engine_page(engine, page) + engine->h_final_offset;
}

const uint16_t *eng_sequence_h_final(const eng_sequence *sequence)
{
    sl_assert(sequence->open);
    if (sequence->length == 0)
        return NULL;
    eng_engine *engine = sequence->engine;
    return engine->ops->read(engine, eng_sequence_h_at(sequence, sequence->length),
                             eng_hidden_bytes(engine));
}

void eng_sequence_set_length(eng_sequence *sequence, uint32_t length)
{
    sl_assert(length <= sequence->capacity);
    eng_pages *pages = &sequence->engine->pages;
    uint32_t full = length / ENG_PAGE_TOKENS, was_full = sequence->length / ENG_PAGE_TOKENS;
    for (uint32_t i = was_full; i < full; i++)
        eng_pages_seal(pages, sequence->pages[i]);
    for (uint32_t i = full; i < was_full; i++)
        eng_pages_unseal(pages, sequence->pages[i]);
    sequence->length = length;
}

void eng_sequence_adopt(eng_sequence *sequence, uint32_t token_count, const uint16_t *h_final)
{
    sl_assert(sequence->open && token_count >= sequence->length);
    sl_assert(token_count > 0 && token_count <= sequence->capacity);
    sl_assert(!sequence->engine->plain);
    if (h_final && token_count > sequence->length)
        sequence->engine->ops->write(sequence->engine, eng_sequence_h_at(sequence, token_count),
                                     h_final, eng_hidden_bytes(sequence->engine));
    eng_sequence_set_length(sequence, token_count);
}

/* Zeroes `bytes` at `at` of each layer's slice of a page. */
static void clear_slices(eng_engine *engine, uint8_t *page, size_t at, size_t bytes)
{
    engine->ops->clear(engine, &(eng_pieces){.to = page + at,
                                             .to_stride = (size_t)engine->layout.layer_bytes,
                                             .bytes = bytes,
                                             .count = engine->layout.layer_count});
}

/* Zeroes rows [begin, end) of one page. */
static void clear_page_rows(eng_engine *engine, uint8_t *page, uint32_t begin, uint32_t end)
{
    size_t first = begin, count = end - begin;
    if (engine->plain) {
        size_t row = KRN_PLAIN_ROW_DIM * sizeof(float), key = KRN_INDEX_DIM * sizeof(float);
        clear_slices(engine, page, first * row, count * row);
        clear_slices(engine, page, KRN_PLAIN_INDEX_AT + first * key, count * key);
        return;
    }
    clear_slices(engine, page, first * KRN_LATENT_ROW_BYTES, count * KRN_LATENT_ROW_BYTES);
    clear_slices(engine, page, KRN_INDEX_CODES_AT + first * KRN_INDEX_DIM, count * KRN_INDEX_DIM);
    clear_slices(engine, page, KRN_INDEX_SCALES_AT + first * sizeof(float), count * sizeof(float));
}

void eng_sequence_clear_rows(eng_sequence *sequence, uint32_t begin, uint32_t end)
{
    eng_engine *engine = sequence->engine;
    sl_assert(end <= sequence->page_count * ENG_PAGE_TOKENS);
    while (begin < end) {
        uint32_t block = begin / ENG_PAGE_TOKENS, row = begin % ENG_PAGE_TOKENS;
        uint32_t stop = (block + 1) * ENG_PAGE_TOKENS;
        stop = stop < end ? stop : end;
        uint8_t *page = eng_engine_page(engine, sequence->pages[block]);
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
    size_t bytes = eng_hidden_bytes(engine);
    uint32_t row = sequence->step_row + (token_count - 1 - sequence->step_first);
    /* Pages wholly after the cut hold no h_final any more. */
    for (uint32_t block = (token_count - 1) / ENG_PAGE_TOKENS + 1;
         block * ENG_PAGE_TOKENS < sequence->length; block++)
        engine->ops->clear(
            engine, &(eng_pieces){.to = eng_sequence_h_at(sequence, block * ENG_PAGE_TOKENS + 1),
                                  .bytes = bytes,
                                  .count = 1});
    engine->ops->copy(engine, &(eng_pieces){.to = eng_sequence_h_at(sequence, token_count),
                                            .from = (uint8_t *)engine->s.h + row * bytes,
                                            .bytes = bytes,
                                            .count = 1});
    eng_sequence_clear_rows(sequence, token_count, sequence->length);
    eng_engine_settle(engine);
    eng_sequence_set_length(sequence, token_count);
}
