/* Fixed pool of equal items, and the map from nonce to transfer. Carved once; full means refuse.
 *
 * Thread: the progress thread (create and destroy: the owner's, before and after it). */
#ifndef KVTRANSFER_POOL_H
#define KVTRANSFER_POOL_H

#include "kvtransfer/kvtransfer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvt_pool {
    uint8_t *items;
    size_t item_bytes; /* rounded up to 64 */
    uint32_t capacity;
    uint32_t touched; /* items ever handed out: the rest of the memory is never committed */
    uint32_t used;
    void *free; /* the first word of a free item links to the next */
} kvt_pool;

void kvt_pool_init(kvt_pool *pool, size_t item_bytes, uint32_t capacity);
void kvt_pool_fini(kvt_pool *pool);
void *kvt_pool_take(kvt_pool *pool); /* not zeroed; NULL when full */
void kvt_pool_give(kvt_pool *pool, void *item);

#define KVT_MAP_SLOTS 1024u /* four times the entries at most */

typedef struct kvt_map {
    struct {
        kvt_nonce nonce;
        void *value; /* NULL: free */
    } slots[KVT_MAP_SLOTS];
    uint64_t key[2];
    uint32_t used;
} kvt_map;

void kvt_map_init(kvt_map *map);
void *kvt_map_get(const kvt_map *map, kvt_nonce nonce);
void kvt_map_put(kvt_map *map, kvt_nonce nonce, void *value); /* must be absent */
void kvt_map_remove(kvt_map *map, kvt_nonce nonce);           /* must be there */

static inline bool kvt_nonce_equal(kvt_nonce a, kvt_nonce b)
{
    return a.high == b.high && a.low == b.low;
}

#ifdef __cplusplus
}
#endif
#endif
