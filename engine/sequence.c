/* Sequences: pages bound to one token stream, its length, and the rows at its end.
 *
 * Thread: the engine thread. A sequence binds all its pages when it opens, so a running one never
 * waits for memory. */
#include "base/assert.h"
#include "engine/ops.h"

static sl_status sequence_check_capacity(const eng_engine *engine, uint32_t token_capacity,
                                         sl_err *err)
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
    return sl_ok();
}

/* Binds the pages of known blocks, in order; returns how many. */
static uint32_t sequence_share_known(eng_sequence *sequence, const eng_prefix *prefix)
{
    eng_pages *pages = &sequence->engine->pages;
    uint32_t count = 0, parent = ENG_NO_PAGE;
    uint32_t limit =
        prefix->token_count < sequence->capacity ? prefix->token_count : sequence->capacity;
    while ((count + 1) * ENG_PAGE_TOKENS <= limit) {
        const uint32_t *tokens = prefix->tokens + (size_t)count * ENG_PAGE_TOKENS;
        uint32_t page = eng_prefix_index_find(&pages->prefix, prefix->space, parent, tokens);
        if (page == ENG_NO_PAGE)
            break;
        eng_pages_share(pages, page);
        sequence->pages[count++] = parent = page;
    }
    return count;
}

/* The deepest block first, so that of kept pages the ends of prefixes are the older ones. */
static void sequence_give_pages(eng_sequence *sequence, uint32_t page_count)
{
    for (uint32_t i = page_count; i-- > 0;)
        eng_pages_give(&sequence->engine->pages, sequence->pages[i]);
}

/* A closed one, with its size set. */
static sl_status sequence_claim(eng_engine *engine, uint32_t token_capacity,
                                eng_sequence **out_sequence, sl_err *err)
{
    SL_TRY(sequence_check_capacity(engine, token_capacity, err));
    eng_sequence *sequence = NULL;
    for (uint32_t i = 0; i < engine->sequences_max && !sequence; i++) {
        if (!engine->sequences[i].open)
            sequence = &engine->sequences[i];
    }
    if (!sequence)
        return sl_fail(err, SL_FULL, "all %u sequences are open", engine->sequences_max);
    sequence->capacity = token_capacity;
    sequence->page_count = (token_capacity + ENG_PAGE_TOKENS - 1) / ENG_PAGE_TOKENS;
    *out_sequence = sequence;
    return sl_ok();
}

/* Opens it with `shared` pages bound already; on failure lets go of them. */
static sl_status sequence_bind(eng_sequence *sequence, uint32_t shared, sl_err *err)
{
    eng_engine *engine = sequence->engine;
    uint32_t available = eng_pages_available(&engine->pages);
    if (sequence->page_count - shared > available) {
        sl_status status = sl_fail(err, SL_FULL, "%u tokens need %u pages: %u are free",
                                   sequence->capacity, sequence->page_count - shared, available);
        sequence_give_pages(sequence, shared);
        sequence->page_count = 0;
        return status;
    }
    for (uint32_t i = shared; i < sequence->page_count; i++) {
        sequence->pages[i] = eng_pages_take(&engine->pages);
        sl_assert(sequence->pages[i] != ENG_NO_PAGE);
        engine->ops->clear(engine, &(eng_pieces){.to = eng_engine_page(engine, sequence->pages[i]),
                                                 .bytes = (size_t)engine->layout.page_bytes,
                                                 .count = 1});
    }
    engine->ops->bind(engine, sequence);
    sequence->open = true;
    sequence->length = shared * ENG_PAGE_TOKENS;
    sequence->step_id = 0;
    return sl_ok();
}

sl_status eng_sequence_open_prefix(eng_engine *engine, uint32_t token_capacity,
                                   const eng_prefix *prefix, eng_sequence **out_sequence,
                                   sl_err *err)
{
    eng_sequence *sequence = NULL;
    SL_TRY(sequence_claim(engine, token_capacity, &sequence, err));
    SL_TRY(sequence_bind(sequence, sequence_share_known(sequence, prefix), err));
    *out_sequence = sequence;
    return sl_ok();
}

sl_status eng_sequence_fork(const eng_sequence *source, uint32_t token_count,
                            const uint16_t *h_final, uint32_t token_capacity,
                            eng_sequence **out_sequence, sl_err *err)
{
    eng_engine *engine = source->engine;
    sl_assert(source->open && !source->in_step && !engine->plain);
    sl_assert(token_count > 0 && token_count <= source->length && token_count <= token_capacity);
    uint32_t whole = token_count / ENG_PAGE_TOKENS;
    eng_sequence *sequence = NULL;
    SL_TRY(sequence_claim(engine, token_capacity, &sequence, err));
    for (uint32_t i = 0; i < whole; i++) {
        eng_pages_share(&engine->pages, source->pages[i]);
        sequence->pages[i] = source->pages[i];
    }
    SL_TRY(sequence_bind(sequence, whole, err));
    if (token_count % ENG_PAGE_TOKENS > 0) {
        engine->ops->copy(engine,
                          &(eng_pieces){.to = eng_engine_page(engine, sequence->pages[whole]),
                                        .from = eng_engine_page(engine, source->pages[whole]),
                                        .bytes = (size_t)engine->layout.page_bytes,
                                        .count = 1});
        eng_sequence_clear_rows(sequence, token_count, (whole + 1) * ENG_PAGE_TOKENS);
    }
    eng_sequence_adopt(sequence, token_count, h_final);
    *out_sequence = sequence;
    return sl_ok();
}

sl_status eng_sequence_open(eng_engine *engine, uint32_t token_capacity,
                            eng_sequence **out_sequence, sl_err *err)
{
    const eng_prefix none = {0};
    return eng_sequence_open_prefix(engine, token_capacity, &none, out_sequence, err);
}

void eng_sequence_publish(eng_sequence *sequence, const eng_prefix *prefix)
{
    sl_assert(sequence->open && !sequence->in_step);
    eng_prefix_index *index = &sequence->engine->pages.prefix;
    uint32_t limit =
        prefix->token_count < sequence->length ? prefix->token_count : sequence->length;
    uint32_t parent = ENG_NO_PAGE;
    for (uint32_t block = 0; (block + 1) * ENG_PAGE_TOKENS <= limit; block++) {
        const uint32_t *tokens = prefix->tokens + (size_t)block * ENG_PAGE_TOKENS;
        uint32_t page = sequence->pages[block];
        uint32_t known = eng_prefix_index_find(index, prefix->space, parent, tokens);
        if (known == ENG_NO_PAGE && eng_prefix_index_has(index, page))
            return; /* its chain broke when a parent's page was taken: leave it to age */
        if (known == ENG_NO_PAGE) {
            eng_prefix_index_add(index, page, prefix->space, parent, tokens);
            known = page;
        }
        parent = known; /* maybe another page with the same tokens: ours is then not kept */
    }
}

void eng_sequence_close(eng_sequence *sequence)
{
    if (!sequence)
        return;
    sl_assert(sequence->open && !sequence->in_step);
    sequence_give_pages(sequence, sequence->page_count);
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
    eng_sequence_set_length(sequence, token_count);
}
