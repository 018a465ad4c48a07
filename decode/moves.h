/* Requests that moved away from a decode rank that drains, whose pages nobody has asked for yet:
 * the rank does not leave before that, or before their time is up. Pure; at most DEC_SEQUENCES_MAX.
 */
#ifndef DECODE_MOVES_H
#define DECODE_MOVES_H

#include "base/clock.h"
#include "decode/batch.h"

#ifdef __cplusplus
extern "C" {
#endif

#define DEC_REQUEST_ID_MAX 128u
/* Another rank grants a ticket meanwhile. Too short costs computing again, no more. */
#define DEC_MOVE_NS (5 * SL_S_NS)

typedef struct dec_move {
    char request_id[DEC_REQUEST_ID_MAX];
    sl_time_ns until;
} dec_move;

typedef struct dec_moves {
    dec_move at[DEC_SEQUENCES_MAX];
    uint32_t count;
} dec_moves;

/* Full: nobody waits for it. */
void dec_moves_add(dec_moves *moves, const char *request_id, sl_time_ns until);
/* It was asked for. */
void dec_moves_remove(dec_moves *moves, const char *request_id);
/* Forgets those whose time is up. */
void dec_moves_expire(dec_moves *moves, sl_time_ns now);
/* When the first one's time is up; SL_NEVER = there is none. */
sl_time_ns dec_moves_due(const dec_moves *moves);

#ifdef __cplusplus
}
#endif
#endif
