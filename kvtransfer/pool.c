/* Fixed pool and nonce map. Owns their memory; never grows, never blocks. */
#include "kvtransfer/pool.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"

_Static_assert(KVT_MAP_SLOTS >= 4 * KVT_SENDS_MAX && KVT_MAP_SLOTS >= 4 * KVT_RECVS_MAX,
               "open addressing stays short");

/* Not sl_alloc_pages: one item used would commit a huge page. */
void kvt_pool_init(kvt_pool *pool, size_t item_bytes, uint32_t capacity)
{
    memset(pool, 0, sizeof *pool);
    pool->item_bytes = (item_bytes + 63) & ~(size_t)63;
    pool->capacity = capacity;
    pool->items = sl_alloc(capacity, pool->item_bytes, "kvt pool");
}

void kvt_pool_fini(kvt_pool *pool)
{
    sl_free(pool->items);
    memset(pool, 0, sizeof *pool);
}

void *kvt_pool_take(kvt_pool *pool)
{
    void *item = pool->free;
    if (item) {
        memcpy(&pool->free, item, sizeof pool->free);
    } else if (pool->touched < pool->capacity) {
        item = pool->items + pool->item_bytes * pool->touched++;
    } else {
        return NULL;
    }
    pool->used++;
    return item;
}

void kvt_pool_give(kvt_pool *pool, void *item)
{
    sl_assert(pool->used > 0);
    sl_assert((uint8_t *)item >= pool->items &&
              (uint8_t *)item < pool->items + pool->item_bytes * pool->capacity);
    memcpy(item, &pool->free, sizeof pool->free);
    pool->free = item;
    pool->used--;
}

void kvt_map_init(kvt_map *map)
{
    memset(map, 0, sizeof *map);
    sl_random_bytes(map->key, sizeof map->key);
}

/* The key is secret: nonces come from outside. */
static uint32_t map_home(const kvt_map *map, kvt_nonce nonce)
{
    return (uint32_t)sl_siphash(map->key, &nonce, sizeof nonce) & (KVT_MAP_SLOTS - 1);
}

/* The slot of the nonce, or the free slot that ends its probe. */
static uint32_t map_find(const kvt_map *map, kvt_nonce nonce)
{
    uint32_t at = map_home(map, nonce);
    while (map->slots[at].value && !kvt_nonce_equal(map->slots[at].nonce, nonce))
        at = (at + 1) & (KVT_MAP_SLOTS - 1);
    return at;
}

void *kvt_map_get(const kvt_map *map, kvt_nonce nonce)
{
    return map->slots[map_find(map, nonce)].value;
}

void kvt_map_put(kvt_map *map, kvt_nonce nonce, void *value)
{
    uint32_t at = map_find(map, nonce);
    sl_assert(value && !map->slots[at].value && map->used < KVT_MAP_SLOTS / 2);
    map->slots[at].nonce = nonce;
    map->slots[at].value = value;
    map->used++;
}

void kvt_map_remove(kvt_map *map, kvt_nonce nonce)
{
    uint32_t hole = map_find(map, nonce);
    sl_assert(map->slots[hole].value);
    map->used--;
    /* Entries of the same probe run move up, so that no tombstones are needed. */
    for (uint32_t at = (hole + 1) & (KVT_MAP_SLOTS - 1); map->slots[at].value;
         at = (at + 1) & (KVT_MAP_SLOTS - 1)) {
        uint32_t home = map_home(map, map->slots[at].nonce);
        uint32_t from_home = (at - home) & (KVT_MAP_SLOTS - 1);
        uint32_t from_hole = (at - hole) & (KVT_MAP_SLOTS - 1);
        if (from_home >= from_hole) {
            map->slots[hole] = map->slots[at];
            hole = at;
        }
    }
    map->slots[hole].value = NULL;
}
