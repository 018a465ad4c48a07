/* Transit pages: which are free, who has which, and what goes in and out. See transit.h.
 *
 * Owns the pool; the copies are the backend's. Thread: the engine thread. Allocates at create only;
 * bounded by the pool: who finds none is refused and comes again. */
#include "engine/transit.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/sum.h"
#include "engine/ops.h"

#define OUT_AT_ONCE 64u /* pieces handed to the backend in one call */

sl_status eng_transit_create(eng_engine *engine, uint64_t bytes, sl_err *err)
{
    eng_transit *transit = &engine->transit;
    if (bytes == 0)
        return sl_ok();
    uint64_t pages = bytes / engine->layout.page_bytes;
    if (pages < engine->blocks_max)
        return sl_fail(err, SL_INVALID,
                       "transit memory of %llu bytes: a sequence's %u pages need %llu",
                       (unsigned long long)bytes, engine->blocks_max,
                       (unsigned long long)(engine->blocks_max * engine->layout.page_bytes));
    transit->page_count = pages < ENG_NO_PAGE ? (uint32_t)pages : ENG_NO_PAGE - 1;
    transit->bytes = transit->page_count * engine->layout.page_bytes;
    void *memory;
    SL_TRY(engine->ops->memory_create(engine->model, ENG_MEMORY_HOST, (size_t)transit->bytes,
                                      &memory, err));
    transit->memory = memory;
    transit->free_list = sl_alloc(transit->page_count, sizeof(uint32_t), "transit free pages");
    for (uint32_t i = 0; i < transit->page_count; i++)
        transit->free_list[transit->free_count++] = transit->page_count - 1 - i;
    transit->pages = sl_alloc((size_t)engine->sequences_max * engine->blocks_max, sizeof(uint32_t),
                              "transit pages");
    return sl_ok();
}

void eng_transit_destroy(eng_engine *engine)
{
    eng_transit *transit = &engine->transit;
    if (transit->memory)
        engine->ops->memory_destroy(engine->model, ENG_MEMORY_HOST, transit->memory,
                                    (size_t)transit->bytes);
    sl_free(transit->free_list);
    sl_free(transit->pages);
}

void eng_transit_memory(const eng_engine *engine, uint8_t **out_base, uint64_t *out_bytes)
{
    const eng_transit *transit = &engine->transit;
    *out_base = transit->memory ? transit->memory : engine->cache;
    *out_bytes =
        transit->memory ? transit->bytes : engine->layout.page_bytes * engine->layout.page_count;
}

bool eng_transit_is_cache(const eng_engine *engine)
{
    return !engine->transit.memory;
}

static bool landed(eng_sequence *sequence, bool wait)
{
    eng_engine *engine = sequence->engine;
    if (sequence->landing && engine->ops->page_done(engine, sequence->transit_ticket, wait)) {
        sequence->landing = false;
        engine->landing--;
    }
    return !sequence->landing;
}

/* ---- pages ---- */

static uint32_t *pages_of(const eng_sequence *sequence)
{
    const eng_engine *engine = sequence->engine;
    return engine->transit.pages + (size_t)(sequence - engine->sequences) * engine->blocks_max;
}

sl_status eng_transit_take(eng_sequence *sequence, uint32_t first, uint32_t count, sl_err *err)
{
    eng_engine *engine = sequence->engine;
    eng_transit *transit = &engine->transit;
    sl_assert(sequence->open && sequence->transit_count == 0);
    sl_assert(first + count <= sequence->page_count);
    if (!transit->memory && !eng_engine_host_reaches(engine))
        return sl_fail(err, SL_UNSUPPORTED, "the cache is on a device and there is no transit");
    if (transit->memory && count > transit->free_count)
        return sl_fail(err, SL_FULL, "%u transit pages: %u are free", count, transit->free_count);
    sequence->transit_first = first;
    sequence->transit_count = count;
    uint32_t *pages = transit->memory ? pages_of(sequence) : NULL;
    for (uint32_t i = 0; pages && i < count; i++)
        pages[i] = transit->free_list[--transit->free_count];
    return sl_ok();
}

void eng_transit_give(eng_sequence *sequence)
{
    eng_transit *transit = &sequence->engine->transit;
    (void)landed(sequence, true); /* its pages must not be somebody else's before */
    const uint32_t *pages = transit->memory ? pages_of(sequence) : NULL;
    for (uint32_t i = sequence->transit_count; pages && i-- > 0;)
        transit->free_list[transit->free_count++] = pages[i];
    sequence->transit_count = 0;
}

uint8_t *eng_transit_page(const eng_sequence *sequence, uint32_t block)
{
    const eng_engine *engine = sequence->engine;
    sl_assert(sequence->open);
    uint32_t index = block - sequence->transit_first;
    if (block < sequence->transit_first || index >= sequence->transit_count)
        return NULL;
    if (!engine->transit.memory)
        return eng_engine_page(engine, sequence->pages[block]);
    return engine->transit.memory + pages_of(sequence)[index] * engine->layout.page_bytes;
}

/* ---- out ---- */

/* The host reaches the pieces where they are. */
static void sum_in_place(eng_engine *engine, const eng_outgoing *pieces, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        *pieces[i].out_sum =
            sl_sum64(engine->sum_key, pieces[i].tweak, pieces[i].from, pieces[i].bytes);
}

static void send_out(eng_engine *engine, const eng_outgoing *pieces, uint32_t count)
{
    if (!engine->transit.memory)
        sum_in_place(engine, pieces, count);
    else if (count > 0)
        engine->ops->pieces_out(engine, pieces, count);
}

void eng_transit_out(eng_sequence *sequence, uint32_t group, uint32_t first, uint32_t end,
                     uint64_t *sums)
{
    eng_engine *engine = sequence->engine;
    eng_outgoing pieces[OUT_AT_ONCE];
    uint32_t count = 0;
    uint64_t offset, bytes;
    eng_layout_piece(&engine->layout, &engine->model->shape, group, &offset, &bytes);
    for (uint32_t block = first; block < end; block++) {
        uint8_t *page = eng_transit_page(sequence, block);
        sl_assert(page);
        pieces[count++] = (eng_outgoing){
            .to = page + offset,
            .from = eng_engine_page(engine, sequence->pages[block]) + offset,
            .bytes = (size_t)bytes,
            .tweak = eng_sum_tweak(block, group),
            .out_sum = sums + (size_t)block * engine->layout.group_count + group,
        };
        if (count < OUT_AT_ONCE)
            continue;
        send_out(engine, pieces, count);
        count = 0;
    }
    send_out(engine, pieces, count);
}

bool eng_transit_busy(const eng_engine *engine)
{
    return engine->transit.memory && engine->ops->out_busy(engine);
}

sl_status eng_transit_wait(eng_engine *engine, sl_err *err)
{
    if (!eng_transit_busy(engine) || engine->ops->out_wait(engine))
        return sl_ok();
    return eng_engine_check(engine, err);
}

/* ---- in ---- */

void eng_transit_in(eng_sequence *sequence)
{
    eng_engine *engine = sequence->engine;
    sl_assert(sequence->open && !sequence->in_step && !sequence->landing);
    if (!engine->transit.memory || sequence->transit_count == 0)
        return;
    uint32_t end = sequence->transit_first + sequence->transit_count;
    for (uint32_t block = sequence->transit_first; block < end; block++)
        engine->ops->page_in(engine, eng_engine_page(engine, sequence->pages[block]),
                             eng_transit_page(sequence, block));
    sequence->transit_ticket = engine->ops->page_mark(engine);
    sequence->landing = true;
    engine->landing++;
}

bool eng_transit_landed(eng_sequence *sequence)
{
    return landed(sequence, false);
}
