/* The prefix index: pages chained by (namespace, parent page, tokens), hashed under a secret key.
 *
 * A chain is followed from the first block on: an entry counts only while its parent still holds
 * what it held then (generation). Thread: the engine thread. Never frees a page. */
#include "engine/prefix.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"

void eng_prefix_index_init(eng_prefix_index *index, uint32_t page_count)
{
    uint32_t bucket_count = 16;
    while (bucket_count < page_count && bucket_count < 1u << 30)
        bucket_count *= 2;
    *index = (eng_prefix_index){
        .page_count = page_count,
        .bucket_count = bucket_count,
        .buckets = sl_alloc(bucket_count, sizeof(uint32_t), "prefix buckets"),
        .entries = sl_alloc(page_count, sizeof(eng_prefix_entry), "prefix entries"),
        .key = {sl_random_u64(), sl_random_u64()}, /* tokens are foreign input */
    };
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

static uint64_t block_hash(const eng_prefix_index *index, uint64_t space, uint32_t parent,
                           const uint32_t *tokens)
{
    struct {
        uint64_t space;
        uint32_t parent;
        uint32_t parent_generation;
        uint32_t tokens[ENG_PAGE_TOKENS];
    } block = {.space = space, .parent = parent};
    if (parent != ENG_NO_PAGE)
        block.parent_generation = index->entries[parent].generation;
    memcpy(block.tokens, tokens, sizeof(block.tokens));
    return sl_siphash(index->key, &block, sizeof(block));
}

uint32_t eng_prefix_index_find(const eng_prefix_index *index, uint64_t space, uint32_t parent,
                               const uint32_t tokens[ENG_PAGE_TOKENS])
{
    uint64_t hash = block_hash(index, space, parent, tokens);
    uint32_t page = index->buckets[hash & (index->bucket_count - 1)];
    for (; page != ENG_NO_PAGE; page = index->entries[page].next) {
        const eng_prefix_entry *entry = &index->entries[page];
        sl_assert(entry->indexed);
        if (entry->hash != hash || entry->space != space || entry->parent != parent)
            continue;
        if (parent != ENG_NO_PAGE && entry->parent_generation != index->entries[parent].generation)
            continue;
        if (memcmp(entry->tokens, tokens, sizeof(entry->tokens)) == 0)
            return page;
    }
    return ENG_NO_PAGE;
}

void eng_prefix_index_add(eng_prefix_index *index, uint32_t page, uint64_t space, uint32_t parent,
                          const uint32_t tokens[ENG_PAGE_TOKENS])
{
    sl_assert(page < index->page_count && page != parent);
    eng_prefix_entry *entry = &index->entries[page];
    sl_assert(!entry->indexed);
    sl_assert(parent == ENG_NO_PAGE || index->entries[parent].indexed);
    entry->indexed = true;
    entry->space = space;
    entry->parent = parent;
    entry->parent_generation = parent == ENG_NO_PAGE ? 0 : index->entries[parent].generation;
    entry->hash = block_hash(index, space, parent, tokens);
    memcpy(entry->tokens, tokens, sizeof(entry->tokens));
    uint32_t *bucket = &index->buckets[entry->hash & (index->bucket_count - 1)];
    entry->next = *bucket;
    *bucket = page;
}

void eng_prefix_index_remove(eng_prefix_index *index, uint32_t page)
{
    sl_assert(page < index->page_count);
    eng_prefix_entry *entry = &index->entries[page];
    if (!entry->indexed)
        return;
    uint32_t *at = &index->buckets[entry->hash & (index->bucket_count - 1)];
    while (*at != page) {
        sl_assert(*at != ENG_NO_PAGE);
        at = &index->entries[*at].next;
    }
    *at = entry->next;
    entry->indexed = false;
    entry->generation++;
}
