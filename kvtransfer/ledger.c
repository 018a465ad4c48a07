/* The transition tables. Owns nothing; never acts, only says what is legal. */
#include "kvtransfer/ledger.h"

#include "base/assert.h"

#define TO(state) (1u << (state))

static const uint8_t piece_table[KVT_PIECE_STATE_COUNT] = {
    [KVT_PIECE_ABSENT] = TO(KVT_PIECE_ANNOUNCED),
    [KVT_PIECE_ANNOUNCED] = TO(KVT_PIECE_FETCHING),
    [KVT_PIECE_FETCHING] = TO(KVT_PIECE_VERIFIED) | TO(KVT_PIECE_RETRY) | TO(KVT_PIECE_FAILED),
    [KVT_PIECE_RETRY] = TO(KVT_PIECE_ANNOUNCED),
    [KVT_PIECE_VERIFIED] = 0,
    [KVT_PIECE_FAILED] = 0,
};

static const uint8_t transfer_table[KVT_TRANSFER_STATE_COUNT] = {
    [KVT_TRANSFER_OPENING] = TO(KVT_TRANSFER_ACTIVE) | TO(KVT_TRANSFER_CLOSING),
    [KVT_TRANSFER_ACTIVE] = TO(KVT_TRANSFER_CLOSING),
    [KVT_TRANSFER_CLOSING] = TO(KVT_TRANSFER_CLOSED),
    [KVT_TRANSFER_CLOSED] = 0,
};

static const uint8_t peer_table[KVT_PEER_STATE_COUNT] = {
    [KVT_PEER_FREE] = TO(KVT_PEER_CONNECTING) | TO(KVT_PEER_ACCEPTED),
    [KVT_PEER_CONNECTING] = TO(KVT_PEER_READY) | TO(KVT_PEER_CLOSING) | TO(KVT_PEER_FREE),
    [KVT_PEER_ACCEPTED] = TO(KVT_PEER_READY) | TO(KVT_PEER_CLOSING),
    [KVT_PEER_READY] = TO(KVT_PEER_CLOSING),
    [KVT_PEER_CLOSING] = TO(KVT_PEER_FREE),
};

bool kvt_piece_may(uint8_t from, uint8_t to)
{
    return from < KVT_PIECE_STATE_COUNT && to < KVT_PIECE_STATE_COUNT &&
           (piece_table[from] & TO(to)) != 0;
}

bool kvt_transfer_may(uint8_t from, uint8_t to)
{
    return from < KVT_TRANSFER_STATE_COUNT && to < KVT_TRANSFER_STATE_COUNT &&
           (transfer_table[from] & TO(to)) != 0;
}

bool kvt_peer_may(uint8_t from, uint8_t to)
{
    return from < KVT_PEER_STATE_COUNT && to < KVT_PEER_STATE_COUNT &&
           (peer_table[from] & TO(to)) != 0;
}

void kvt_piece_set(uint8_t *state, kvt_piece_state to)
{
    sl_assert(kvt_piece_may(*state, (uint8_t)to));
    *state = (uint8_t)to;
}

void kvt_transfer_set(uint8_t *state, kvt_transfer_state to)
{
    sl_assert(kvt_transfer_may(*state, (uint8_t)to));
    *state = (uint8_t)to;
}

void kvt_peer_set(uint8_t *state, kvt_peer_state to)
{
    sl_assert(kvt_peer_may(*state, (uint8_t)to));
    *state = (uint8_t)to;
}
