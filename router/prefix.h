/* Which node was seen to have which first blocks of prompts: what one loop's own requests told.
 * Pure.
 *
 * A block is named by a keyed 64-bit hash over its tokens and the name of the block before; the
 * first one stands on the root, which is of a stamp and a cache space, so that pages which mean
 * something else have other names. It is a record of what was, not of what is: nodes forget pages
 * and names may collide, so whoever is asked by it must look for himself. A node is named by its
 * incarnation. Bounded: RTR_PREFIX_BLOCKS_MAX blocks, RTR_PREFIX_NODES_MAX nodes of each; what was
 * not seen for longest goes. Thread: owner. */
#ifndef ROUTER_PREFIX_H
#define ROUTER_PREFIX_H

#include "cluster/member.h"
#include "router/limits.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_prefixes rtr_prefixes;

typedef struct rtr_prefix {
    uint64_t root;          /* rtr_prefixes_root */
    const uint32_t *tokens; /* borrowed */
    size_t token_count;     /* what is behind the last whole block does not count */
} rtr_prefix;

typedef struct rtr_prefix_match {
    uint64_t node;
    uint32_t blocks; /* it had so many of the first ones */
} rtr_prefix_match;

rtr_prefixes *rtr_prefixes_create(uint64_t key);
void rtr_prefixes_destroy(rtr_prefixes *prefixes); /* NULL is fine */
uint64_t rtr_prefixes_root(const rtr_prefixes *prefixes, const clu_stamp *stamp,
                           uint64_t cache_space);
/* The node has all whole blocks. */
void rtr_prefixes_note(rtr_prefixes *prefixes, const rtr_prefix *prefix, uint64_t node);
/* Those that had the most, in no order; returns how many there are. */
uint32_t rtr_prefixes_find(rtr_prefixes *prefixes, const rtr_prefix *prefix,
                           rtr_prefix_match out_matches[RTR_PREFIX_MATCHES_MAX]);
/* It does not have them: what it may have of them counts no more. */
void rtr_prefixes_forget(rtr_prefixes *prefixes, const rtr_prefix *prefix, uint64_t node);
/* Nothing is to be asked of it. */
void rtr_prefixes_forget_node(rtr_prefixes *prefixes, uint64_t node);

#ifdef __cplusplus
}
#endif
#endif
