/* The two directions of a tcp connection, without its socket: where the next bytes that come go,
 * and which bytes go out next.
 *
 * Pure logic between the socket's owner (tcp.c) and the core; runs on the progress thread, calls no
 * kernel. Owns nothing: the buffer of `kvt_inflow` is its maker's. Every byte count comes from the
 * caller, so that any way of cutting the stream into calls can be tested. */
#ifndef KVTRANSFER_STREAM_H
#define KVTRANSFER_STREAM_H

#include <sys/uio.h>

#include "kvtransfer/transport.h"
#include "kvtransfer/wire.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- what comes */

typedef struct kvt_inflow {
    kvt_peer *peer;
    uint8_t *ahead;     /* [KVT_TCP_AHEAD_BYTES] frames, and small pieces behind them */
    uint32_t have;      /* bytes in it, not yet understood */
    uint32_t missing;   /* at least so many more before they are */
    uint8_t *page;      /* of the piece under way: place of its next byte */
    uint64_t left;      /* bytes of that piece not here yet */
    kvt_request *taken; /* that piece's; NULL: refused, its bytes are passed over */
    bool large;         /* it: straight into the page; the next is believed to be alike */
    bool failed;        /* not of the protocol, and said so: nothing more is understood */
} kvt_inflow;

void kvt_inflow_init(kvt_inflow *in, kvt_peer *peer, uint8_t *ahead);
/* Bytes to throw away now, wherever; 0: read into the parts. */
uint64_t kvt_inflow_skip(const kvt_inflow *in);
/* Where to read to, in this order; returns how many parts (1 or 2). */
size_t kvt_inflow_parts(kvt_inflow *in, struct iovec out_parts[2]);
/* So many bytes came there (or were thrown away): tells the core what they mean. */
void kvt_inflow_took(kvt_inflow *in, size_t bytes);
/* The connection is over: a piece under way fails. Nothing is written after this. */
void kvt_inflow_end(kvt_inflow *in);

/* ---- what goes */

typedef struct kvt_outgoing { /* a frame to be sent */
    kvt_request *request;
    const uint8_t *data; /* the caller's until the request is finished */
    uint64_t bytes;
    uint32_t head_size;
    uint8_t head[KVT_WIRE_FRAME_SIZE + KVT_WIRE_PIECE_SIZE];
} kvt_outgoing;

/* Messages overtake pieces, never the rest of one that has begun. */
typedef struct kvt_outflow {
    uint32_t message_first, message_count, piece_first, piece_count;
    uint64_t sent;   /* bytes of the frame under way */
    bool sent_piece; /* it is a piece */
    kvt_outgoing messages[KVT_MESSAGES_MAX];
    kvt_outgoing pieces[KVT_WINDOW_READS];
} kvt_outflow;

void kvt_outflow_init(kvt_outflow *out);
static inline bool kvt_outflow_empty(const kvt_outflow *out)
{
    return out->message_count == 0 && out->piece_count == 0;
}
/* The core never has more open than there are places. */
void kvt_outflow_message(kvt_outflow *out, sl_span data, kvt_request *request);
void kvt_outflow_piece(kvt_outflow *out, sl_span head, const void *data, uint64_t bytes,
                       kvt_request *request);
/* What to write next, at most `capacity` parts and KVT_TCP_CALL_BYTES; returns how many parts. */
size_t kvt_outflow_parts(const kvt_outflow *out, struct iovec *out_parts, size_t capacity);
/* So many of those bytes were taken: finishes the requests of whole frames. */
void kvt_outflow_took(kvt_outflow *out, size_t bytes);
/* The connection is over: every request fails. */
void kvt_outflow_end(kvt_outflow *out);

#ifdef __cplusplus
}
#endif
#endif
