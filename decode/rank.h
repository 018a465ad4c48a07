/* Who gives way when the cache has no page left, and who is served first. Pure.
 *
 * Lower priority numbers are served first; among equals, who was admitted first. The order is
 * total, so the first one always gets what there is, and at least one sequence goes on. */
#ifndef DECODE_RANK_H
#define DECODE_RANK_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dec_rank {
    int32_t priority;
    uint64_t seniority; /* counts admissions: no two are equal */
} dec_rank;

typedef struct dec_claim {
    dec_rank rank;
    bool lacks; /* a page for its next token */
} dec_claim;

#define DEC_NOBODY UINT32_MAX

bool dec_rank_before(dec_rank a, dec_rank b);
/* Index of the first one that lacks a page; DEC_NOBODY. */
uint32_t dec_claim_first_lacking(const dec_claim *claims, uint32_t count);
/* Index of the one that gives way: the last of all, lacking or not. DEC_NOBODY: there is only one,
 * which keeps what it has. */
uint32_t dec_claim_victim(const dec_claim *claims, uint32_t count);

#ifdef __cplusplus
}
#endif
#endif
