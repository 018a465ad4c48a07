/* The prefix index: pages by the chain of their block, in buckets.
 *
 * Thread: the engine thread. Never frees a page. */
#include "engine/prefix.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"

void eng_prefix_index_init(eng_prefix_index *index, uint32_t page_count,
                           const uint64_t key[ENG_CHAIN_KEY_WORDS])
{
    uint32_t bucket_count = 16;
    while (bucket_count < page_count && bucket_count < 1u << 30)
        bucket_count *= 2;
    *index = (eng_prefix_index){
        .page_count = page_count,
        .bucket_count = bucket_count,
        .buckets = sl_alloc(bucket_count, sizeof(uint32_t), "prefix buckets"),
        .entries = sl_alloc(page_count, sizeof(eng_prefix_entry), "prefix entries"),
    };
    memcpy(index->key, key, sizeof(index->key));
    for (uint32_t i = 0; i < bucket_count; i++)
        index->buckets[i] = ENG_NO_PAGE;
}

void eng_prefix_index_fini(eng_prefix_index *index)
{
    sl_free(index->buckets);
    sl_free(index->entries);
    *index = (eng_prefix_index){0};
}

bool eng_prefix_index_has(const eng_prefix_index *index, uint32_t page)
{
    sl_assert(page < index->page_count);
    return index->entries[page].indexed;
}

eng_chain eng_prefix_chain(const eng_prefix_index *index, uint64_t space, eng_chain parent,
                           const uint32_t tokens[ENG_PAGE_TOKENS])
{
    struct {
        uint64_t space;
        eng_chain parent;
        uint32_t tokens[ENG_PAGE_TOKENS];
    } block = {.space = space, .parent = parent};
    memcpy(block.tokens, tokens, sizeof(block.tokens));
    return (eng_chain){sl_siphash(index->key, &block, sizeof(block)),
                       sl_siphash(index->key + 2, &block, sizeof(block))};
}

static uint32_t *bucket_of(const eng_prefix_index *index, eng_chain chain)
{
    return &index->buckets[chain.low & (index->bucket_count - 1)];
}

uint32_t eng_prefix_index_find(const eng_prefix_index *index, eng_chain chain,
                               const uint32_t tokens[ENG_PAGE_TOKENS])
{
    uint32_t page = *bucket_of(index, chain);
    for (; page != ENG_NO_PAGE; page = index->entries[page].next) {
        const eng_prefix_entry *entry = &index->entries[page];
        sl_assert(entry->indexed);
        if (eng_chain_equal(entry->chain, chain) &&
            memcmp(entry->tokens, tokens, sizeof(entry->tokens)) == 0)
            return page;
    }
    return ENG_NO_PAGE;
}

void eng_prefix_index_note(eng_prefix_index *index, uint32_t page, eng_chain chain,
                           const uint32_t tokens[ENG_PAGE_TOKENS])
{
    sl_assert(page < index->page_count && !index->entries[page].indexed);
    index->entries[page].chain = chain;
    memcpy(index->entries[page].tokens, tokens, sizeof(index->entries[page].tokens));
}

void eng_prefix_index_add_noted(eng_prefix_index *index, uint32_t page)
{
    eng_prefix_entry *entry = &index->entries[page];
    if (eng_prefix_index_find(index, entry->chain, entry->tokens) != ENG_NO_PAGE)
        return;
    uint32_t *bucket = bucket_of(index, entry->chain);
    entry->indexed = true;
    entry->next = *bucket;
    *bucket = page;
}

void eng_prefix_index_add(eng_prefix_index *index, uint32_t page, eng_chain chain,
                          const uint32_t tokens[ENG_PAGE_TOKENS])
{
    eng_prefix_index_note(index, page, chain, tokens);
    eng_prefix_index_add_noted(index, page);
}

void eng_prefix_index_remove(eng_prefix_index *index, uint32_t page)
{
    sl_assert(page < index->page_count);
    eng_prefix_entry *entry = &index->entries[page];
    if (!entry->indexed)
        return;
    uint32_t *at = bucket_of(index, entry->chain);
    while (*at != page) {
        sl_assert(*at != ENG_NO_PAGE);
        at = &index->entries[*at].next;
    }
    *at = entry->next;
    entry->indexed = false;
}
