/* See moves.h. */
#include "decode/moves.h"

#include <stdio.h>
#include <string.h>

static void remove_at(dec_moves *moves, uint32_t index)
{
    moves->at[index] = moves->at[--moves->count];
}

void dec_moves_add(dec_moves *moves, const char *request_id, sl_time_ns until)
{
    if (moves->count == DEC_SEQUENCES_MAX)
        return;
    dec_move *move = &moves->at[moves->count++];
    snprintf(move->request_id, sizeof(move->request_id), "%s", request_id);
    move->until = until;
}

void dec_moves_remove(dec_moves *moves, const char *request_id)
{
    for (uint32_t i = moves->count; i-- > 0;)
        if (strcmp(moves->at[i].request_id, request_id) == 0)
            remove_at(moves, i);
}

void dec_moves_expire(dec_moves *moves, sl_time_ns now)
{
    for (uint32_t i = moves->count; i-- > 0;)
        if (moves->at[i].until <= now)
            remove_at(moves, i);
}

sl_time_ns dec_moves_due(const dec_moves *moves)
{
    sl_time_ns due = SL_NEVER;
    for (uint32_t i = 0; i < moves->count; i++)
        due = moves->at[i].until < due ? moves->at[i].until : due;
    return due;
}
