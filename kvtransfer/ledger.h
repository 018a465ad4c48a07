/* States and their one table of legal transitions: of pieces, transfers and peers.
 *
 * Pure: owns nothing, the progress thread's. A transition outside the table is a bug and aborts. */
#ifndef KVTRANSFER_LEDGER_H
#define KVTRANSFER_LEDGER_H

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum kvt_piece_state {
    KVT_PIECE_ABSENT,
    KVT_PIECE_ANNOUNCED, /* P: queued for the window; D: its announcement is being judged */
    KVT_PIECE_FETCHING,  /* payload may be moving */
    KVT_PIECE_RETRY,     /* the sum differed; to be announced once more */
    KVT_PIECE_VERIFIED,
    KVT_PIECE_FAILED,
    KVT_PIECE_STATE_COUNT,
} kvt_piece_state;

typedef enum kvt_transfer_state {
    KVT_TRANSFER_OPENING, /* P: no connection yet; D: nothing named it yet */
    KVT_TRANSFER_ACTIVE,
    KVT_TRANSFER_CLOSING, /* outcome decided; requests that touch its memory are still open */
    KVT_TRANSFER_CLOSED,  /* nothing touches its memory */
    KVT_TRANSFER_STATE_COUNT,
} kvt_transfer_state;

typedef enum kvt_peer_state {
    KVT_PEER_FREE,
    KVT_PEER_CONNECTING, /* we connect; the hello is not answered yet */
    KVT_PEER_ACCEPTED,   /* it connected; its hello has not come yet */
    KVT_PEER_READY,
    KVT_PEER_CLOSING, /* forced close under way */
    KVT_PEER_STATE_COUNT,
} kvt_peer_state;

bool kvt_piece_may(uint8_t from, uint8_t to);
bool kvt_transfer_may(uint8_t from, uint8_t to);
bool kvt_peer_may(uint8_t from, uint8_t to);

void kvt_piece_set(uint8_t *state, kvt_piece_state to);
void kvt_transfer_set(uint8_t *state, kvt_transfer_state to);
void kvt_peer_set(uint8_t *state, kvt_peer_state to);

#ifdef __cplusplus
}
#endif
#endif
