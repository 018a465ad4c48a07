/* Byte-pair merging of one piece: lowest rank first, leftmost among equals.
 *
 * Short pieces (nearly all) scan for the best pair; long ones keep a heap of at most two entries a
 * byte. Both give the same ids. Owns only scratch. Thread: any. */
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/tokenizer_parts.h"

#define SHORT_MAX 48 /* bytes; below, scanning beats a heap */
#define NO_RANK   UINT32_MAX

const mdl_merge *mdl_merge_find(const mdl_tokenizer *tokenizer, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t hash = pair * 0x9E3779B97F4A7C15ull;
    size_t mask = tokenizer->merge_slot_count - 1;
    size_t at = (size_t)(hash >> 32) & mask;

    for (;;) {
        const mdl_merge *m = &tokenizer->merges[at];

        if (m->pair == pair)
            return m;
        if (m->pair == UINT64_MAX)
            return NULL;
        at = (at + 1) & mask;
    }
}

static uint32_t pair_rank(const mdl_tokenizer *t, int32_t left, int32_t right)
{
    const mdl_merge *m = mdl_merge_find(t, left, right);

    return m ? m->rank : NO_RANK;
}

static void encode_short(const mdl_tokenizer *t, const uint8_t *piece, size_t size, mdl_ids *ids)
{
    int32_t symbols[SHORT_MAX];
    uint32_t ranks[SHORT_MAX]; /* of the pair (i, i + 1) */
    size_t count = size;

    for (size_t i = 0; i < count; i++)
        symbols[i] = t->byte_ids[piece[i]];
    for (size_t i = 0; i + 1 < count; i++)
        ranks[i] = pair_rank(t, symbols[i], symbols[i + 1]);
    for (;;) {
        size_t best = 0;
        uint32_t rank = NO_RANK;

        for (size_t i = 0; i + 1 < count; i++) {
            if (ranks[i] < rank) {
                rank = ranks[i];
                best = i;
            }
        }
        if (rank == NO_RANK)
            break;
        symbols[best] = mdl_merge_find(t, symbols[best], symbols[best + 1])->id;
        count--;
        memmove(&symbols[best + 1], &symbols[best + 2], (count - best - 1) * sizeof(*symbols));
        memmove(&ranks[best], &ranks[best + 1], (count - best) * sizeof(*ranks));
        if (best + 1 < count)
            ranks[best] = pair_rank(t, symbols[best], symbols[best + 1]);
        if (best > 0)
            ranks[best - 1] = pair_rank(t, symbols[best - 1], symbols[best]);
    }
    for (size_t i = 0; i < count; i++)
        mdl_ids_push(ids, symbols[i]);
}

/* --- long pieces --- */

typedef struct symbol {
    int32_t id; /* MDL_TOKEN_NONE: merged into its left neighbour */
    uint32_t previous, next;
} symbol;

typedef struct candidate {
    uint32_t rank;
    uint32_t at;
} candidate;

typedef struct heap {
    candidate *items;
    size_t count;
    size_t capacity;
} heap;

#define NOWHERE UINT32_MAX

static bool candidate_less(candidate a, candidate b)
{
    return a.rank != b.rank ? a.rank < b.rank : a.at < b.at;
}

static void heap_push(heap *h, candidate item)
{
    size_t i = h->count++;

    sl_assert(h->count <= h->capacity);
    while (i > 0 && candidate_less(item, h->items[(i - 1) / 2])) {
        h->items[i] = h->items[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    h->items[i] = item;
}

static candidate heap_pop(heap *h)
{
    candidate top = h->items[0];
    candidate last = h->items[--h->count];
    size_t i = 0;

    for (;;) {
        size_t child = 2 * i + 1;

        if (child >= h->count)
            break;
        if (child + 1 < h->count && candidate_less(h->items[child + 1], h->items[child]))
            child++;
        if (!candidate_less(h->items[child], last))
            break;
        h->items[i] = h->items[child];
        i = child;
    }
    if (h->count > 0)
        h->items[i] = last;
    return top;
}

static void push_pair(const mdl_tokenizer *t, heap *h, const symbol *symbols, uint32_t at)
{
    uint32_t rank;

    if (at == NOWHERE || symbols[at].next == NOWHERE)
        return;
    rank = pair_rank(t, symbols[at].id, symbols[symbols[at].next].id);
    if (rank != NO_RANK)
        heap_push(h, (candidate){rank, at});
}

/* A rank belongs to one pair only, so an entry is stale exactly if the pair at its place now has
 * another rank. */
static void merge_all(const mdl_tokenizer *t, heap *h, symbol *symbols)
{
    while (h->count > 0) {
        candidate c = heap_pop(h);
        symbol *left = &symbols[c.at], *right;
        const mdl_merge *m;

        if (left->id == MDL_TOKEN_NONE || left->next == NOWHERE)
            continue;
        right = &symbols[left->next];
        m = mdl_merge_find(t, left->id, right->id);
        if (!m || m->rank != c.rank)
            continue;
        left->id = m->id;
        right->id = MDL_TOKEN_NONE;
        left->next = right->next;
        if (left->next != NOWHERE)
            symbols[left->next].previous = c.at;
        push_pair(t, h, symbols, left->previous);
        push_pair(t, h, symbols, c.at);
    }
}

static void encode_long(const mdl_tokenizer *t, const uint8_t *piece, size_t size, mdl_ids *ids)
{
    symbol *symbols = sl_alloc(size, sizeof(*symbols), "bpe symbols");
    heap h = {.items = sl_alloc(2 * size, sizeof(candidate), "bpe heap"), .capacity = 2 * size};

    sl_assert(size < NOWHERE);
    for (size_t i = 0; i < size; i++) {
        symbols[i].id = t->byte_ids[piece[i]];
        symbols[i].previous = i > 0 ? (uint32_t)(i - 1) : NOWHERE;
        symbols[i].next = i + 1 < size ? (uint32_t)(i + 1) : NOWHERE;
    }
    for (size_t i = 0; i + 1 < size; i++)
        push_pair(t, &h, symbols, (uint32_t)i);
    merge_all(t, &h, symbols);
    for (uint32_t i = 0; i != NOWHERE; i = symbols[i].next)
        mdl_ids_push(ids, symbols[i].id);
    sl_free(h.items);
    sl_free(symbols);
}

void mdl_bpe_encode(const mdl_tokenizer *tokenizer, const uint8_t *piece, size_t size, mdl_ids *ids)
{
    if (size == 0)
        return;
    if (size <= SHORT_MAX)
        encode_short(tokenizer, piece, size, ids);
    else
        encode_long(tokenizer, piece, size, ids);
}
