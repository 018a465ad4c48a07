/* The page pool: a stack of free pages over one mapped cache.
 *
 * Thread: the engine thread. Never grows, never blocks, never touches a page that is not bound. */
#include "engine/pages.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"

/* Legal moves of a page; a sealed page may open again when a draft's tokens are dropped. */
static const bool PAGE_MOVES[ENG_PAGE_STATE_COUNT][ENG_PAGE_STATE_COUNT] = {
    [ENG_PAGE_STATE_FREE] = {[ENG_PAGE_STATE_PRIVATE] = true},
    [ENG_PAGE_STATE_PRIVATE] = {[ENG_PAGE_STATE_SEALED] = true, [ENG_PAGE_STATE_FREE] = true},
    [ENG_PAGE_STATE_SEALED] = {[ENG_PAGE_STATE_PRIVATE] = true, [ENG_PAGE_STATE_FREE] = true},
};

sl_status eng_pages_init(eng_pages *pages, uint64_t page_bytes, uint32_t page_count, sl_err *err)
{
    sl_assert(page_count > 0 && page_bytes % 64 == 0);
    void *memory = NULL;
    SL_TRY(sl_alloc_pages((size_t)(page_bytes * page_count), &memory, err));
    *pages = (eng_pages){
        .memory = memory,
        .page_bytes = page_bytes,
        .page_count = page_count,
        .free_count = page_count,
        .free_list = sl_alloc(page_count, sizeof(uint32_t), "engine free pages"),
        .state = sl_alloc(page_count, 1, "engine page states"),
    };
    for (uint32_t i = 0; i < page_count; i++)
        pages->free_list[i] = page_count - 1 - i; /* page 0 is taken first */
    return sl_ok();
}

void eng_pages_fini(eng_pages *pages)
{
    if (pages->memory)
        sl_free_pages(pages->memory, (size_t)(pages->page_bytes * pages->page_count));
    sl_free(pages->free_list);
    sl_free(pages->state);
    *pages = (eng_pages){0};
}

void eng_pages_set_state(eng_pages *pages, uint32_t page, eng_page_state state)
{
    sl_assert(page < pages->page_count);
    sl_assert(PAGE_MOVES[pages->state[page]][state]);
    pages->state[page] = (uint8_t)state;
}

uint32_t eng_pages_take(eng_pages *pages)
{
    if (pages->free_count == 0)
        return ENG_NO_PAGE;
    uint32_t page = pages->free_list[--pages->free_count];
    eng_pages_set_state(pages, page, ENG_PAGE_STATE_PRIVATE);
    memset(eng_pages_at(pages, page), 0, (size_t)pages->page_bytes);
    return page;
}

void eng_pages_give(eng_pages *pages, uint32_t page)
{
    eng_pages_set_state(pages, page, ENG_PAGE_STATE_FREE);
    sl_assert(pages->free_count < pages->page_count);
    pages->free_list[pages->free_count++] = page;
}
