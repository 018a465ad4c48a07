/* What a drafted row costs, learnt from the steps of late.
 *
 * The time of a step by its number of rows (steps that compute no prompts), and of drafting a row.
 * A row more is nearly free where a step waits for the weights, and costs its share where it waits
 * for arithmetic: with few sequences drafts are cheap, with many they are not. Pure; a wrong price
 * costs time, never a token. */
#ifndef DECODE_DRAFT_COST_H
#define DECODE_DRAFT_COST_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DEC_COST_BUCKETS 48u  /* of rows: each up to 15, then four to a doubling */
#define DEC_COST_LOOK    64u  /* steps between two looks at what no drafts would cost */
#define DEC_COST_OLD     512u /* steps after which a time is no longer believed */

typedef struct dec_draft_cost {
    double rows[DEC_COST_BUCKETS], ns[DEC_COST_BUCKETS]; /* running means */
    uint64_t seen[DEC_COST_BUCKETS];                     /* step of the last; 0 = never */
    uint64_t steps;
    double draft_ns; /* of drafting one row */
} dec_draft_cost;

void dec_draft_cost_note(dec_draft_cost *cost, uint32_t rows, uint64_t ns);
void dec_draft_cost_note_drafts(dec_draft_cost *cost, uint32_t drafts, uint64_t ns);
/* Time of one drafted row, in times of a token of a step of `sequences` rows; 0 = not known. */
double dec_draft_price(const dec_draft_cost *cost, uint32_t sequences);
/* Should the next step do without drafts, because nobody knows what that costs? */
bool dec_draft_cost_looks(const dec_draft_cost *cost, uint32_t sequences);

#ifdef __cplusplus
}
#endif
#endif
