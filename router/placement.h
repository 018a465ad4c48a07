/* Choosing a decode rank and a prefill rank for a request. Pure: a table of candidates in, two
 * numbers out; ties are broken by name, so the same table gives the same answer.
 *
 * A prefill rank is usable for a decode rank only if their stamps are equal (numerics id, model
 * hash, weights version, cache format), because only then do their pages mean the same. */
#ifndef ROUTER_PLACEMENT_H
#define ROUTER_PLACEMENT_H

#include "cluster/member.h"
#include "router/request.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_candidate {
    uint64_t id; /* as in rtr_event */
    const char *name;
    const clu_stamp *stamp;
    bool usable; /* connected, not draining, suspect or broken */
    bool paused; /* takes nothing new, but will again */
    uint32_t slots_free;
    uint32_t pages; /* all of them: only told */
    uint32_t pages_free;
    uint32_t running; /* sequences, waiting ones included */
    uint32_t pending; /* asked by us since its last load report, and the pages and tokens of it */
    uint32_t pages_pending;
    uint64_t tokens_pending;
    uint64_t queued_tokens; /* prefill work */
} rtr_candidate;

typedef struct rtr_place_query {
    const rtr_candidate *decodes;
    size_t decode_count;
    const rtr_candidate *prefills;
    size_t prefill_count;
    const char *model_identity;  /* of the router's own model; NULL: not checked */
    uint64_t keep_decode;        /* not 0: this one, whatever its load */
    const rtr_candidate *source; /* has the pages of a request that moves; NULL = none */
    uint32_t pages;              /* that the request will need */
    uint32_t tokens;             /* of its prompt, to be computed */
    bool self_prefill;           /* without a prefill rank the decode rank may compute the prompt */
    const rtr_request *request;  /* whom it has refused; may be NULL */
} rtr_place_query;

typedef struct rtr_place_result {
    rtr_lack lack; /* RTR_LACK_NONE: found */
    uint64_t decode;
    uint64_t prefill; /* 0 = by the decode rank itself */
    sl_time_ns until; /* PAUSED: when pauses end at the latest; the caller fills it in */
} rtr_place_result;

void rtr_place(const rtr_place_query *query, rtr_place_result *out_result);
/* What a choice says of one candidate: a literal. decode: the one that the result names, or NULL.
 */
const char *rtr_place_verdict(const rtr_place_query *query, const rtr_place_result *result,
                              const rtr_candidate *candidate, bool is_decode,
                              const rtr_candidate *decode);
bool rtr_stamp_equal(const clu_stamp *a, const clu_stamp *b);
/* Whether a node serves the model with this identity (model/hash.h): its hash begins with it. NULL:
 * any. */
bool rtr_stamp_is_model(const clu_stamp *stamp, const char *identity);

#ifdef __cplusplus
}
#endif
#endif
