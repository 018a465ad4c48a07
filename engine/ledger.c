/* The ledger of an engine's pages: see ledger.h. Only copies; who reads it judges. */
#include "engine/ledger.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "engine/state.h"

void eng_sequence_set_owner(eng_sequence *sequence, uint32_t owner)
{
    sl_assert(sequence->open);
    sequence->owner = owner;
}

eng_ledger *eng_ledger_create(const eng_engine *engine)
{
    eng_ledger *ledger = sl_alloc(1, sizeof(*ledger), "engine ledger");
    size_t sequences = engine->sequences_max;
    ledger->page_count = engine->layout.page_count;
    ledger->pages = sl_alloc(ledger->page_count, sizeof(*ledger->pages), "engine ledger");
    ledger->sequences = sl_alloc(sequences, sizeof(*ledger->sequences), "engine ledger");
    /* Untouched memory of it costs nothing. */
    ledger->bound = sl_alloc(sequences * engine->blocks_max, sizeof(uint32_t), "engine ledger");
    ledger->slot_count = engine->tier ? eng_tier_slot_count(engine->tier) : 0;
    ledger->slots = sl_alloc(ledger->slot_count ? ledger->slot_count : 1, sizeof(*ledger->slots),
                             "engine ledger");
    return ledger;
}

void eng_ledger_destroy(eng_ledger *ledger)
{
    if (!ledger)
        return;
    sl_free(ledger->pages);
    sl_free(ledger->sequences);
    sl_free(ledger->bound);
    sl_free(ledger->slots);
    sl_free(ledger);
}

static void take_sequence(const eng_sequence *sequence, eng_ledger *ledger, uint32_t *used)
{
    ledger->sequences[ledger->sequence_count++] = (eng_ledger_sequence){
        .owner = sequence->owner,
        .promised = eng_pages_of(sequence->capacity) - sequence->page_count,
        .transit = ledger->transit_count > 0 ? sequence->transit_count : 0,
        .first = *used,
        .count = sequence->page_count,
    };
    for (uint32_t block = 0; block < sequence->page_count; block++)
        ledger->bound[(*used)++] = sequence->pages[block];
}

void eng_ledger_take(const eng_engine *engine, eng_ledger *ledger)
{
    const eng_pages *pages = &engine->pages;
    uint32_t used = 0;
    sl_assert(ledger->page_count == pages->page_count);
    for (uint32_t page = 0; page < pages->page_count; page++)
        ledger->pages[page] =
            (eng_ledger_page){pages->table[page].state, pages->table[page].ref_count};
    ledger->free_count = pages->free_count;
    ledger->kept_count = pages->kept_count;
    ledger->promised = engine->promised;
    ledger->transit_count = engine->transit.page_count;
    ledger->transit_free = engine->transit.free_count;
    ledger->sequence_count = 0;
    for (uint32_t i = 0; i < engine->sequences_max; i++)
        if (engine->sequences[i].open)
            take_sequence(&engine->sequences[i], ledger, &used);
    if (engine->tier)
        eng_tier_take_ledger(engine->tier, ledger);
}
