/* How many drafts the next step of a sequence tries.
 *
 * Pure and deterministic: a function of what was drafted and accepted before, and of what rows cost
 * (decode/draft_cost.h). Drafts never change a result, so neither does this state; it may be lost
 * or start anew at any time. */
#ifndef DECODE_DRAFT_H
#define DECODE_DRAFT_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DEC_DRAFT_WINDOW   8u   /* steps with drafts between two decisions */
#define DEC_DRAFT_REST_MIN 16u  /* steps without drafts before they are tried again */
#define DEC_DRAFT_REST_MAX 512u /* each try in vain doubles the rest up to this */

typedef struct dec_draft {
    uint32_t depth_max;
    uint32_t depth; /* 0: resting */
    uint32_t steps; /* of this window, or of this rest */
    uint32_t drafted;
    uint32_t accepted;
    uint32_t missed; /* steps whose drafts were not all right */
    uint32_t rest;   /* length of the current or next rest */
    double chance;   /* of a draft to be right if those before it were, in the last window */
} dec_draft;

void dec_draft_init(dec_draft *draft, uint32_t depth_max);
/* What to try in the next step. price: time of a drafted row, in times of a token without drafts; 0
 * = not known. A draft pays when its chance of being right is above that. */
uint32_t dec_draft_depth(const dec_draft *draft, double price);
/* A step was made with `drafted` drafts (maybe fewer than asked for), of which `accepted` were
 * right. */
void dec_draft_note(dec_draft *draft, uint32_t drafted, uint32_t accepted, double price);

#ifdef __cplusplus
}
#endif
#endif
