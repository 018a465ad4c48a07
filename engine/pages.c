/* The page pool: a stack of free pages, counted sharing of sealed ones, an age list of kept ones.
 *
 * Thread: the engine thread. Never grows, never blocks, never touches a page that is not bound. */
#include "engine/pages.h"

#include "base/alloc.h"
#include "base/assert.h"

static const bool PAGE_MOVES[ENG_PAGE_STATE_COUNT][ENG_PAGE_STATE_COUNT] = {
    [ENG_PAGE_STATE_FREE] = {[ENG_PAGE_STATE_PRIVATE] = true},
    [ENG_PAGE_STATE_PRIVATE] = {[ENG_PAGE_STATE_SEALED] = true, [ENG_PAGE_STATE_FREE] = true},
    [ENG_PAGE_STATE_SEALED] = {[ENG_PAGE_STATE_PRIVATE] = true,
                               [ENG_PAGE_STATE_FREE] = true,
                               [ENG_PAGE_STATE_KEPT] = true},
    [ENG_PAGE_STATE_KEPT] = {[ENG_PAGE_STATE_SEALED] = true, [ENG_PAGE_STATE_FREE] = true},
};

void eng_pages_init(eng_pages *pages, uint32_t page_count, const uint64_t key[ENG_CHAIN_KEY_WORDS])
{
    sl_assert(page_count > 0);
    *pages = (eng_pages){
        .page_count = page_count,
        .free_count = page_count,
        .free_list = sl_alloc(page_count, sizeof(uint32_t), "engine free pages"),
        .table = sl_alloc(page_count, sizeof(eng_page), "engine pages"),
        .oldest = ENG_NO_PAGE,
        .youngest = ENG_NO_PAGE,
        .unspilled = ENG_NO_PAGE,
    };
    for (uint32_t i = 0; i < page_count; i++)
        pages->free_list[i] = page_count - 1 - i; /* page 0 is taken first */
    eng_prefix_index_init(&pages->prefix, page_count, key);
}

void eng_pages_fini(eng_pages *pages)
{
    sl_free(pages->free_list);
    sl_free(pages->table);
    eng_prefix_index_fini(&pages->prefix);
    *pages = (eng_pages){0};
}

static void page_set_state(eng_pages *pages, uint32_t page, eng_page_state state)
{
    sl_assert(page < pages->page_count);
    sl_assert(PAGE_MOVES[pages->table[page].state][state]);
    pages->table[page].state = (uint8_t)state;
}

uint32_t eng_pages_available(const eng_pages *pages)
{
    return pages->free_count + pages->kept_count;
}

/* ---- the kept ones, by age ---- */

static void kept_push(eng_pages *pages, uint32_t page)
{
    eng_page *entry = &pages->table[page];
    entry->older = pages->youngest;
    entry->younger = ENG_NO_PAGE;
    if (pages->youngest != ENG_NO_PAGE)
        pages->table[pages->youngest].younger = page;
    else
        pages->oldest = page;
    pages->youngest = page;
    if (pages->unspilled == ENG_NO_PAGE)
        pages->unspilled = page;
    pages->kept_count++;
}

static void kept_remove(eng_pages *pages, uint32_t page)
{
    eng_page *entry = &pages->table[page];
    if (entry->older != ENG_NO_PAGE)
        pages->table[entry->older].younger = entry->younger;
    else
        pages->oldest = entry->younger;
    if (entry->younger != ENG_NO_PAGE)
        pages->table[entry->younger].older = entry->older;
    else
        pages->youngest = entry->older;
    if (pages->unspilled == page)
        pages->unspilled = entry->younger;
    pages->kept_count--;
}

static void page_free(eng_pages *pages, uint32_t page)
{
    sl_assert(pages->table[page].ref_count == 0 && pages->free_count < pages->page_count);
    page_set_state(pages, page, ENG_PAGE_STATE_FREE);
    eng_prefix_index_remove(&pages->prefix, page);
    pages->free_list[pages->free_count++] = page;
}

static void kept_free_oldest(eng_pages *pages)
{
    uint32_t page = pages->oldest;
    kept_remove(pages, page);
    page_free(pages, page);
}

bool eng_pages_spill_ahead(eng_pages *pages)
{
    uint32_t page = pages->unspilled;
    if (!pages->spill || page == ENG_NO_PAGE || !pages->spill(pages->spill_context, page))
        return false;
    pages->unspilled = pages->table[page].younger;
    return true;
}

void eng_pages_drop_kept(eng_pages *pages)
{
    while (pages->kept_count > 0)
        kept_free_oldest(pages);
}

/* ---- binding ---- */

uint32_t eng_pages_take(eng_pages *pages)
{
    if (pages->free_count == 0 && pages->kept_count > 0) {
        /* Mostly it was spilled ahead; if it was not and cannot be now, it is forgotten: a step
         * must not wait for a disk. */
        if (pages->oldest == pages->unspilled)
            (void)eng_pages_spill_ahead(pages);
        kept_free_oldest(pages);
    }
    if (pages->free_count == 0)
        return ENG_NO_PAGE;
    uint32_t page = pages->free_list[--pages->free_count];
    page_set_state(pages, page, ENG_PAGE_STATE_PRIVATE);
    pages->table[page].ref_count = 1;
    return page;
}

void eng_pages_share(eng_pages *pages, uint32_t page)
{
    sl_assert(page < pages->page_count);
    eng_page *entry = &pages->table[page];
    if (entry->state == ENG_PAGE_STATE_KEPT) {
        kept_remove(pages, page);
        page_set_state(pages, page, ENG_PAGE_STATE_SEALED);
    }
    sl_assert(entry->state == ENG_PAGE_STATE_SEALED);
    entry->ref_count++;
}

void eng_pages_give(eng_pages *pages, uint32_t page)
{
    sl_assert(page < pages->page_count);
    eng_page *entry = &pages->table[page];
    sl_assert(entry->ref_count > 0);
    if (--entry->ref_count > 0)
        return;
    if (entry->state == ENG_PAGE_STATE_SEALED && eng_prefix_index_has(&pages->prefix, page)) {
        page_set_state(pages, page, ENG_PAGE_STATE_KEPT);
        kept_push(pages, page);
        return;
    }
    page_free(pages, page);
}

void eng_pages_seal(eng_pages *pages, uint32_t page)
{
    if (pages->table[page].state != ENG_PAGE_STATE_SEALED)
        page_set_state(pages, page, ENG_PAGE_STATE_SEALED);
}

void eng_pages_unseal(eng_pages *pages, uint32_t page)
{
    if (pages->table[page].state == ENG_PAGE_STATE_PRIVATE)
        return;
    sl_assert(pages->table[page].ref_count == 1 && !eng_prefix_index_has(&pages->prefix, page));
    page_set_state(pages, page, ENG_PAGE_STATE_PRIVATE);
}
