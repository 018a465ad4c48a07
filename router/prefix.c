/* The record of prefixes: see prefix.h. A table of sets; within one, what was seen longest ago
 * gives way. */
#include "router/prefix.h"

#include "base/alloc.h"
#include "base/sum.h"

#include <string.h>

#define WAYS 8u
#define SETS (RTR_PREFIX_BLOCKS_MAX / WAYS)

_Static_assert((SETS & (SETS - 1)) == 0, "a set is chosen by some bits of the name");

typedef struct entry {
    uint64_t name;                        /* 0: free */
    uint64_t nodes[RTR_PREFIX_NODES_MAX]; /* the one noted last is first; 0: none */
    uint32_t seen;
} entry;

struct rtr_prefixes {
    uint64_t key;
    uint32_t turn; /* counts calls; wraps, and so do ages */
    entry entries[SETS][WAYS];
};

typedef struct walk { /* over the whole blocks of a prefix */
    const rtr_prefixes *prefixes;
    const rtr_prefix *prefix;
    uint32_t block; /* behind the one that is named */
    uint64_t name;
} walk;

static walk walk_begin(const rtr_prefixes *prefixes, const rtr_prefix *prefix)
{
    return (walk){prefixes, prefix, 0, prefix->root};
}

static bool walk_next(walk *w)
{
    const rtr_prefix *prefix = w->prefix;
    if ((size_t)(w->block + 1) * RTR_PAGE_TOKENS > prefix->token_count)
        return false;
    w->name =
        sl_sum64(w->prefixes->key, w->name, prefix->tokens + (size_t)w->block * RTR_PAGE_TOKENS,
                 RTR_PAGE_TOKENS * sizeof *prefix->tokens);
    w->name += w->name == 0;
    w->block++;
    return true;
}

static entry *entry_find(rtr_prefixes *prefixes, uint64_t name)
{
    entry *set = prefixes->entries[name & (SETS - 1)];
    for (uint32_t i = 0; i < WAYS; i++) {
        if (set[i].name == name)
            return &set[i];
    }
    return NULL;
}

/* Free, or the one whose place is taken. */
static entry *entry_take(rtr_prefixes *prefixes, uint64_t name)
{
    entry *set = prefixes->entries[name & (SETS - 1)];
    entry *oldest = NULL;
    for (uint32_t i = 0; i < WAYS; i++) {
        if (set[i].name == 0) {
            oldest = &set[i];
            break;
        }
        if (!oldest || prefixes->turn - set[i].seen > prefixes->turn - oldest->seen)
            oldest = &set[i];
    }
    *oldest = (entry){.name = name};
    return oldest;
}

static uint32_t node_place(const entry *e, uint64_t node)
{
    uint32_t place = 0;
    while (place < RTR_PREFIX_NODES_MAX && e->nodes[place] != node)
        place++;
    return place;
}

static void entry_add(entry *e, uint64_t node)
{
    uint32_t place = node_place(e, node);
    if (place == RTR_PREFIX_NODES_MAX)
        place--;
    memmove(e->nodes + 1, e->nodes, place * sizeof *e->nodes);
    e->nodes[0] = node;
}

static void entry_remove(entry *e, uint64_t node)
{
    uint32_t place = node_place(e, node);
    if (place == RTR_PREFIX_NODES_MAX)
        return;
    memmove(e->nodes + place, e->nodes + place + 1,
            (RTR_PREFIX_NODES_MAX - 1 - place) * sizeof *e->nodes);
    e->nodes[RTR_PREFIX_NODES_MAX - 1] = 0;
    if (e->nodes[0] == 0)
        *e = (entry){0};
}

rtr_prefixes *rtr_prefixes_create(uint64_t key)
{
    rtr_prefixes *prefixes = sl_alloc(1, sizeof *prefixes, "router prefixes");
    prefixes->key = key;
    return prefixes;
}

void rtr_prefixes_destroy(rtr_prefixes *prefixes)
{
    sl_free(prefixes);
}

uint64_t rtr_prefixes_root(const rtr_prefixes *prefixes, const clu_stamp *stamp,
                           uint64_t cache_space)
{
    const char *const parts[] = {stamp->numerics_id, stamp->model_hash, stamp->weights_version,
                                 stamp->cache_format};
    uint64_t root = cache_space;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        root = sl_sum64(prefixes->key, root, parts[i], strlen(parts[i]));
    return root;
}

void rtr_prefixes_note(rtr_prefixes *prefixes, const rtr_prefix *prefix, uint64_t node)
{
    walk w = walk_begin(prefixes, prefix);
    prefixes->turn++;
    while (node && walk_next(&w)) {
        entry *e = entry_find(prefixes, w.name);
        if (!e)
            e = entry_take(prefixes, w.name);
        entry_add(e, node);
        e->seen = prefixes->turn;
    }
}

static void match_add(rtr_prefix_match *matches, uint32_t *count, uint64_t node, uint32_t blocks)
{
    uint32_t least = 0;
    for (uint32_t i = 0; i < *count; i++) {
        if (matches[i].node == node) {
            matches[i].blocks = blocks;
            return;
        }
        if (matches[i].blocks < matches[least].blocks)
            least = i;
    }
    if (*count < RTR_PREFIX_MATCHES_MAX)
        least = (*count)++;
    matches[least] = (rtr_prefix_match){node, blocks};
}

uint32_t rtr_prefixes_find(rtr_prefixes *prefixes, const rtr_prefix *prefix,
                           rtr_prefix_match out_matches[RTR_PREFIX_MATCHES_MAX])
{
    uint32_t count = 0;
    walk w = walk_begin(prefixes, prefix);
    prefixes->turn++;
    while (walk_next(&w)) {
        entry *e = entry_find(prefixes, w.name);
        if (!e)
            break;
        e->seen = prefixes->turn;
        for (uint32_t i = 0; i < RTR_PREFIX_NODES_MAX && e->nodes[i]; i++)
            match_add(out_matches, &count, e->nodes[i], w.block);
    }
    return count;
}

void rtr_prefixes_forget(rtr_prefixes *prefixes, const rtr_prefix *prefix, uint64_t node)
{
    walk w = walk_begin(prefixes, prefix);
    while (node && walk_next(&w)) {
        entry *e = entry_find(prefixes, w.name);
        if (e)
            entry_remove(e, node);
    }
}

void rtr_prefixes_forget_node(rtr_prefixes *prefixes, uint64_t node)
{
    for (uint32_t set = 0; node && set < SETS; set++) {
        for (uint32_t i = 0; i < WAYS; i++)
            entry_remove(&prefixes->entries[set][i], node);
    }
}
