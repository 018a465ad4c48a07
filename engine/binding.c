/* Which pages a sequence has: promised when it opens, bound as its tokens come, found by their
 * tokens in the cache, read from the second tier, given back at its end.
 *
 * Thread: the engine thread. Never waits: reads are asked for here and taken in by eng_engine_poll.
 */
#include "base/assert.h"
#include "base/clock.h"
#include "engine/ops.h"
#include "engine/transit.h"

/* Reads that bring nothing for so long are not waited for any more. */
#define TIER_PATIENCE_NS (2 * SL_S_NS)
/* How often those who wait for the cache look: a limit on their wait, and for copies that nobody
 * tells of. */
#define TIER_POLL_NS    (50 * SL_MS_NS)
#define LANDING_POLL_NS (SL_MS_NS / 5)
/* Pages copied for the second tier in one turn: bounds how long a step is held up. */
#define SPILL_AHEAD_MAX 2u

/* ---- promises ---- */

/* Keeps the engine's counts right when a sequence's share of the promises changes. */
static void count_promise(eng_engine *engine, const eng_sequence *sequence, bool add)
{
    uint32_t promised = eng_pages_of(sequence->capacity) - sequence->page_count;
    if (promised == 0)
        return;
    engine->promised += add ? promised : 0u - promised;
    engine->growing += add ? 1u : 0u - 1u;
}

static sl_status check_capacity(const eng_engine *engine, uint32_t token_capacity, sl_err *err)
{
    if (token_capacity == 0)
        return sl_fail(err, SL_INVALID, "a sequence of no tokens");
    if (token_capacity > engine->context_max)
        return sl_fail(err, SL_TOO_LARGE, "%u tokens: the context is %u", token_capacity,
                       engine->context_max);
    if (eng_pages_of(token_capacity) > engine->layout.page_count)
        return sl_fail(err, SL_TOO_LARGE, "%u tokens need %u pages: the cache has %u",
                       token_capacity, eng_pages_of(token_capacity), engine->layout.page_count);
    return sl_ok();
}

/* fresh: pages to take now. Leaves one page for each sequence that may grow, and the reserve. */
static sl_status check_room(const eng_engine *engine, const eng_sequence *sequence, uint32_t fresh,
                            uint32_t promised, sl_err *err)
{
    uint32_t available = eng_pages_available(&engine->pages);
    uint32_t awaited = engine->growing + engine->reserve.pages;
    if ((uint64_t)fresh + awaited > available)
        return sl_fail(err, SL_FULL, "%u tokens need %u pages now: %u are free, %u of them awaited",
                       sequence->capacity, fresh, available, awaited);
    uint64_t bound = engine->layout.page_count - available;
    uint64_t promises = bound + engine->promised + engine->reserve.promised + fresh + promised;
    if (promises > engine->pages_promisable)
        return sl_fail(err, SL_FULL, "%u tokens need %u pages: %u are free and not promised",
                       sequence->capacity, fresh + promised, eng_engine_pages_free(engine));
    return sl_ok();
}

/* ---- known blocks ---- */

/* The deepest block first, so that of kept pages the ends of prefixes are the older ones. */
static void give_pages(eng_sequence *sequence, uint32_t from)
{
    for (uint32_t i = sequence->page_count; i-- > from;)
        eng_pages_give(&sequence->engine->pages, sequence->pages[i]);
    sequence->page_count = from;
}

/* Binds the pages of known blocks that are in memory. Those that the second tier has are left open
 * (ENG_NO_PAGE). Returns how many are known, and how many of them are open. */
static uint32_t find_known(eng_sequence *sequence, const eng_prefix *prefix, uint32_t limit,
                           uint32_t *out_open)
{
    eng_engine *engine = sequence->engine;
    eng_chain chain = {0};
    uint32_t count = 0;
    *out_open = 0;
    for (; (count + 1) * ENG_PAGE_TOKENS <= limit; count++) {
        const uint32_t *tokens = prefix->tokens + (size_t)count * ENG_PAGE_TOKENS;
        chain = eng_prefix_chain(&engine->pages.prefix, prefix->space, chain, tokens);
        uint32_t page = eng_prefix_index_find(&engine->pages.prefix, chain, tokens);
        if (page != ENG_NO_PAGE)
            eng_pages_share(&engine->pages, page);
        else if (engine->tier && eng_tier_touch(engine->tier, chain, tokens))
            ++*out_open;
        else
            break;
        sequence->pages[count] = page;
    }
    if (engine->tier && (count + 1) * ENG_PAGE_TOKENS <= limit)
        eng_tier_note_miss(engine->tier);
    return count;
}

static void forget_known(eng_sequence *sequence, uint32_t known)
{
    for (uint32_t i = known; i-- > 0;)
        if (sequence->pages[i] != ENG_NO_PAGE)
            eng_pages_give(&sequence->engine->pages, sequence->pages[i]);
}

/* A page for the sequence's next block. */
static uint32_t take_page(eng_sequence *sequence)
{
    eng_engine *engine = sequence->engine;
    uint32_t page = eng_pages_take(&engine->pages);
    sl_assert(page != ENG_NO_PAGE);
    engine->ops->clear(engine, &(eng_pieces){.to = eng_engine_page(engine, page),
                                             .bytes = (size_t)engine->layout.page_bytes,
                                             .count = 1});
    return page;
}

static void bind_fresh(eng_sequence *sequence, uint32_t page_count)
{
    while (sequence->page_count < page_count)
        sequence->pages[sequence->page_count++] = take_page(sequence);
    sequence->engine->ops->bind(sequence->engine, sequence);
    eng_engine_settle(sequence->engine);
}

/* Takes pages for blocks that the second tier has; eng_engine_poll asks for them. */
static void begin_loading(eng_sequence *sequence, const eng_prefix *prefix, uint32_t known)
{
    eng_engine *engine = sequence->engine;
    eng_chain chain = {0};
    for (uint32_t i = 0; i < known; i++) {
        const uint32_t *tokens = prefix->tokens + (size_t)i * ENG_PAGE_TOKENS;
        chain = eng_prefix_chain(&engine->pages.prefix, prefix->space, chain, tokens);
        if (sequence->pages[i] != ENG_NO_PAGE)
            continue;
        sequence->pages[i] = take_page(sequence);
        eng_prefix_index_note(&engine->pages.prefix, sequence->pages[i], chain, tokens);
    }
    /* Of this prefix the first blocks shall stay there longest: the others are useless without. */
    for (uint32_t i = known; i-- > 0;) {
        const eng_prefix_entry *entry = &engine->pages.prefix.entries[sequence->pages[i]];
        (void)eng_tier_touch(engine->tier, entry->chain, entry->tokens);
    }
    sequence->loading = true;
    sequence->known = sequence->found = known;
    sequence->asked = 0;
    sequence->patience = sl_now_ns() + TIER_PATIENCE_NS;
    engine->loading++;
}

/* ---- open and close ---- */

static eng_sequence *take_sequence(eng_engine *engine)
{
    for (uint32_t i = 0; i < engine->sequences_max; i++)
        if (!engine->sequences[i].open)
            return &engine->sequences[i];
    return NULL;
}

/* A closed one, with its size set and no page. */
static sl_status claim(eng_engine *engine, uint32_t token_capacity, eng_sequence **out_sequence,
                       sl_err *err)
{
    SL_TRY(check_capacity(engine, token_capacity, err));
    eng_sequence *sequence = take_sequence(engine);
    if (!sequence)
        return sl_fail(err, SL_FULL, "all %u sequences are open", engine->sequences_max);
    sequence->capacity = token_capacity;
    sequence->page_count = 0;
    sequence->owner = 0;
    sequence->loading = false;
    *out_sequence = sequence;
    return sl_ok();
}

/* With the pages of its first `known` blocks, and fresh ones up to `bound`. */
static void open_with(eng_sequence *sequence, uint32_t known, uint32_t bound)
{
    sequence->page_count = known;
    sequence->wanted = bound;
    bind_fresh(sequence, bound);
    sequence->open = true;
    sequence->opening++;
    sequence->length = sequence->loading ? 0 : known * ENG_PAGE_TOKENS;
    sequence->step_id = 0;
    count_promise(sequence->engine, sequence, true);
}

sl_status eng_sequence_open_prefix(eng_engine *engine, uint32_t token_capacity,
                                   uint32_t token_bound, const eng_prefix *prefix,
                                   eng_sequence **out_sequence, sl_err *err)
{
    sl_assert(token_bound <= token_capacity);
    eng_sequence *sequence = NULL;
    SL_TRY(claim(engine, token_capacity, &sequence, err));
    uint32_t limit = prefix->token_count < token_bound ? prefix->token_count : token_bound;
    uint32_t bound = eng_pages_of(token_bound), open;
    uint32_t known = find_known(sequence, prefix, limit, &open);
    sl_status status = check_room(engine, sequence, bound - known + open,
                                  eng_pages_of(token_capacity) - bound, err);
    if (!sl_is_ok(status)) {
        forget_known(sequence, known);
        return status;
    }
    if (open > 0)
        begin_loading(sequence, prefix, known);
    open_with(sequence, known, bound);
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
    uint32_t whole = token_count / ENG_PAGE_TOKENS, bound = eng_pages_of(token_count);
    eng_sequence *sequence = NULL;
    SL_TRY(claim(engine, token_capacity, &sequence, err));
    SL_TRY(check_room(engine, sequence, bound - whole, eng_pages_of(token_capacity) - bound, err));
    for (uint32_t i = 0; i < whole; i++) {
        eng_pages_share(&engine->pages, source->pages[i]);
        sequence->pages[i] = source->pages[i];
    }
    open_with(sequence, whole, bound);
    if (bound > whole) {
        engine->ops->copy(engine,
                          &(eng_pieces){.to = eng_engine_page(engine, sequence->pages[whole]),
                                        .from = eng_engine_page(engine, source->pages[whole]),
                                        .bytes = (size_t)engine->layout.page_bytes,
                                        .count = 1});
        eng_sequence_clear_rows(sequence, token_count, bound * ENG_PAGE_TOKENS);
    }
    eng_sequence_adopt(sequence, token_count, h_final);
    eng_engine_settle(engine);
    *out_sequence = sequence;
    return sl_ok();
}

sl_status eng_sequence_open(eng_engine *engine, uint32_t token_capacity,
                            eng_sequence **out_sequence, sl_err *err)
{
    const eng_prefix none = {0};
    return eng_sequence_open_prefix(engine, token_capacity, token_capacity, &none, out_sequence,
                                    err);
}

void eng_sequence_close(eng_sequence *sequence)
{
    if (!sequence)
        return;
    sl_assert(sequence->open && !sequence->in_step);
    eng_transit_give(sequence);
    count_promise(sequence->engine, sequence, false);
    give_pages(sequence, 0);
    if (sequence->loading)
        sequence->engine->loading--;
    sequence->loading = false;
    sequence->open = false;
    sequence->length = 0;
}

sl_status eng_sequence_bind(eng_sequence *sequence, uint32_t token_count, sl_err *err)
{
    eng_engine *engine = sequence->engine;
    sl_assert(sequence->open && token_count <= sequence->capacity);
    uint32_t wanted = eng_pages_of(token_count), have = sequence->page_count;
    if (wanted <= have)
        return sl_ok();
    if (wanted - have > eng_pages_available(&engine->pages))
        return sl_fail(err, SL_FULL, "%u more pages: %u are free", wanted - have,
                       eng_pages_available(&engine->pages));
    count_promise(engine, sequence, false);
    bind_fresh(sequence, wanted);
    count_promise(engine, sequence, true);
    return sl_ok();
}

uint32_t eng_sequence_room(const eng_sequence *sequence)
{
    uint32_t room = sequence->page_count * ENG_PAGE_TOKENS;
    return room < sequence->capacity ? room : sequence->capacity;
}

bool eng_sequence_ready(const eng_sequence *sequence)
{
    sl_assert(sequence->open);
    return !sequence->loading;
}

/* ---- reads from the second tier ---- */

static bool is_there(const eng_sequence *sequence, uint32_t block)
{
    const eng_pages *pages = &sequence->engine->pages;
    return pages->table[sequence->pages[block]].state == ENG_PAGE_STATE_SEALED;
}

/* Asks for blocks as long as the tier takes them. */
static void ask(eng_sequence *sequence)
{
    eng_engine *engine = sequence->engine;
    for (; sequence->asked < sequence->known; sequence->asked++) {
        if (is_there(sequence, sequence->asked))
            continue;
        const eng_prefix_entry *entry =
            &engine->pages.prefix.entries[sequence->pages[sequence->asked]];
        const eng_tier_tag tag = {(uint32_t)(sequence - engine->sequences), sequence->opening,
                                  sequence->asked};
        eng_tier_answer answer = eng_tier_get(engine->tier, entry->chain, entry->tokens, tag);
        if (answer == ENG_TIER_GONE) /* its slot was given away meanwhile */
            sequence->known = sequence->asked;
        if (answer != ENG_TIER_ASKED)
            return;
    }
}

/* A block that somebody may still wait for. */
static void take_in(eng_engine *engine, const eng_tier_arrival *arrival)
{
    eng_sequence *sequence = &engine->sequences[arrival->tag.sequence];
    uint32_t block = arrival->tag.block;
    if (!sequence->open || !sequence->loading || sequence->opening != arrival->tag.opening ||
        block >= sequence->known)
        return;
    if (!arrival->page) {
        sequence->known = block;
        return;
    }
    uint32_t page = sequence->pages[block];
    engine->ops->write(engine, eng_engine_page(engine, page), arrival->page,
                       (size_t)engine->layout.page_bytes);
    eng_pages_seal(&engine->pages, page);
    eng_prefix_index_add_noted(&engine->pages.prefix, page);
    sequence->patience = sl_now_ns() + TIER_PATIENCE_NS;
}

/* Ends the wait when every block is there that can come, or when time is up. Behind them the
 * sequence gets pages of its own instead of those that it shares: maybe only once others are
 * closed, if these are shared by others too. While it waits for that it holds no page at all:
 * others may need one to come to their end. */
static void settle(eng_sequence *sequence, uint64_t now)
{
    eng_engine *engine = sequence->engine;
    uint32_t there = 0;
    while (there < sequence->known && is_there(sequence, there))
        there++;
    if (there < sequence->known && now < sequence->patience)
        return;
    count_promise(engine, sequence, false);
    if (there < sequence->found)
        give_pages(sequence, there);
    if (sequence->wanted - sequence->page_count > eng_pages_available(&engine->pages)) {
        there = 0;
        give_pages(sequence, 0);
    }
    sequence->known = sequence->found = there;
    if (sequence->wanted - sequence->page_count <= eng_pages_available(&engine->pages)) {
        bind_fresh(sequence, sequence->wanted);
        sequence->length = there * ENG_PAGE_TOKENS;
        sequence->loading = false;
        engine->loading--;
    }
    count_promise(engine, sequence, true);
}

uint64_t eng_engine_poll_ns(const eng_engine *engine)
{
    if (engine->landing > 0)
        return LANDING_POLL_NS;
    return engine->loading > 0 ? TIER_POLL_NS : 0;
}

bool eng_engine_poll(eng_engine *engine, uint64_t now_ns)
{
    eng_tier_arrival arrival;
    if (!engine->tier)
        return false;
    while (eng_tier_poll(engine->tier, &arrival)) {
        take_in(engine, &arrival);
        eng_tier_done(engine->tier, &arrival);
    }
    for (uint32_t i = 0; i < engine->sequences_max && engine->loading > 0; i++) {
        eng_sequence *sequence = &engine->sequences[i];
        if (!sequence->open || !sequence->loading)
            continue;
        ask(sequence);
        settle(sequence, now_ns);
    }
    return engine->loading > 0;
}

void eng_engine_spill(eng_engine *engine)
{
    for (uint32_t i = 0; i < SPILL_AHEAD_MAX && eng_pages_spill_ahead(&engine->pages); i++)
        ;
}
