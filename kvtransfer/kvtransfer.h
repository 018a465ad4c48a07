/* Moves pieces of pages between processes: P announces, D fetches into its own memory, D verifies.
 *
 * Knows bytes, not models. A transfer is named by a 128-bit nonce (the ticket); a piece by (nonce,
 * block, group). Nobody writes into another process's memory: D receives each piece straight into
 * the page it named itself, and refuses without payload what it does not expect.
 *
 * A context has ONE progress thread of its own; the owner (one thread, usually a loop) calls the
 * functions below and gets events from kvt_poll, woken through kvt_fd. Functions are for the
 * owner's thread except where said. No function blocks, but create and destroy. Every opened
 * transfer ends with exactly one CLOSED event, at its deadline plus the close grace at the latest
 * (README.md says what may take longer); only then is its memory the owner's again. Release the
 * handle afterwards. */
#ifndef KVTRANSFER_KVTRANSFER_H
#define KVTRANSFER_KVTRANSFER_H

#include "base/clock.h"
#include "base/status.h"
#include "kvtransfer/limits.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvt_context kvt_context;
typedef struct kvt_send kvt_send; /* P's end of a transfer */
typedef struct kvt_recv kvt_recv; /* D's end */
typedef struct kvt_fake kvt_fake; /* kvtransfer/fake.h: in-process network for tests */

typedef struct kvt_nonce {
    uint64_t high, low;
} kvt_nonce;

/* The tweak of a piece's sum: sl_sum64(key, kvt_sum_tweak(block, group), data, bytes). */
static inline uint64_t kvt_sum_tweak(uint32_t block, uint32_t group)
{
    return (uint64_t)block << 16 | group;
}

/* ---- context */

/* Memory that pieces are sent from or received into (an engine's cache). Borrowed until
 * kvt_context_destroy; everything named later must lie inside one of them. */
typedef struct kvt_region {
    void *base;
    uint64_t bytes;
} kvt_region;

/* What moves the bytes; README.md says when to choose which. Both ends must have the same: an
 * address says which one it is of, and the other refuses it. */
typedef enum kvt_transport_kind {
    KVT_TRANSPORT_UCX, /* shared memory, RDMA, tcp */
    KVT_TRANSPORT_TCP, /* plain sockets */
    KVT_TRANSPORT_COUNT,
} kvt_transport_kind;

typedef struct kvt_options {
    const char *name;   /* of this node, told to peers and shown in their metrics; copied */
    const char *listen; /* "127.0.0.1:0"; NULL: this context never receives */
    kvt_transport_kind transport;
    bool allow_wildcard; /* the kv network authenticates nobody: ":9000" needs this said */
    const kvt_region *regions;
    size_t region_count;
    /* 0 = the default of limits.h */
    uint64_t window_bytes;
    uint64_t connect_ns, stall_ns, idle_ns, close_grace_ns;
    /* Peers on this machine: take pieces through UCX too, never by reading the sender's memory.
     * Without shared memory in UCX_TLS it is so anyhow, and by KVT_TRANSPORT_TCP. */
    bool no_local_reads;
    kvt_fake *fake; /* NULL: `transport` and a thread. Else no thread: kvt_fake_step runs all */
} kvt_options;

SL_MUST_USE sl_status kvt_context_create(const kvt_options *options, kvt_context **out_context,
                                         sl_err *err);
/* Force-closes what is open, without events; afterwards no memory of the owner is touched. Open
 * handles die with it. NULL is fine. */
void kvt_context_destroy(kvt_context *context);
/* The address really bound, for tickets: "host:port", of the tcp transport "tcp:host:port"; ""
 * without listener. */
const char *kvt_context_address(const kvt_context *context);
/* Readable while events may wait (level-triggered epoll). */
int kvt_fd(const kvt_context *context);
/* Connects ahead of need (4-18 ms that a request then does not pay). A hint: failures are silent.
 */
void kvt_warm(kvt_context *context, const char *address);

/* ---- events */

typedef enum kvt_event_type {
    KVT_EVENT_SEND_PIECE,  /* only with piece_events: D verified it, its data is not needed more */
    KVT_EVENT_SEND_COMMIT, /* D verified the commit `sequence` (the final one: CLOSED follows) */
    KVT_EVENT_SEND_CLOSED,
    KVT_EVENT_RECV_PIECE,  /* only with piece_events: in its page and verified */
    KVT_EVENT_RECV_COMMIT, /* every piece announced before it is verified */
    KVT_EVENT_RECV_CLOSED, /* from now on no byte is written into the pages */
    KVT_EVENT_COUNT,
} kvt_event_type;

typedef struct kvt_event {
    kvt_event_type type;
    kvt_send *send; /* SEND_*, else NULL */
    kvt_recv *recv; /* RECV_*, else NULL */
    void *cookie;
    uint32_t block; /* *_PIECE */
    uint32_t group;
    uint32_t sequence; /* *_COMMIT: 0, 1, .. */
    uint64_t tokens;   /* *_COMMIT: tokens complete */
    bool final;
    const void *payload; /* RECV_COMMIT: borrowed for the callback */
    size_t payload_bytes;
    /* *_CLOSED: SL_OK after a verified final commit; SL_DEADLINE; SL_UNAVAILABLE: the peer cannot
     * be reached, died or stalled; SL_CORRUPT: a sum differed twice; SL_CANCELLED: either side's
     * own cancel or revoke; SL_CONFLICT: D does not know the nonce (old ticket); SL_INVALID: the
     * peer broke the protocol; SL_FULL: too many peers; SL_INCOMPATIBLE: other protocol version or
     * transport. */
    sl_code code;
    const char *text; /* why, lower case; valid until release. "" for SL_OK */
} kvt_event;

typedef void (*kvt_event_fn)(void *context, const kvt_event *event);
/* Delivers what waits, at most one ring of it; the callback may call any function but create and
 * destroy. Returns the number delivered. */
size_t kvt_poll(kvt_context *context, kvt_event_fn fn, void *fn_context);

/* ---- sending (P) */

typedef struct kvt_send_options {
    const char *address; /* D's, from the ticket */
    kvt_nonce nonce;
    sl_time_ns deadline;               /* of the whole transfer */
    uint32_t first_block, block_count; /* pieces are (block, group) inside this; count may be 0 */
    uint32_t group_count;
    bool piece_events;
    void *cookie;
} kvt_send_options;

/* SL_FULL: too many open; SL_INVALID, SL_TOO_LARGE: options. Connects when needed. */
SL_MUST_USE sl_status kvt_send_open(kvt_context *context, const kvt_send_options *options,
                                    kvt_send **out_send, sl_err *err);
/* Thread of announce and commit: any ONE at a time per send (the engine's, from its group
 * callback), not only the owner's; the owner orders it against open and release.
 *
 * Offers a piece. `data` stays valid and immutable until its SEND_PIECE or the CLOSED event. Never
 * refused for fullness: a send has place for all its pieces. SL_EXISTS: announced before;
 * SL_CONFLICT: closed or finally committed. */
SL_MUST_USE sl_status kvt_send_announce(kvt_send *send, uint32_t block, uint32_t group,
                                        const void *data, uint64_t bytes, uint64_t sum,
                                        sl_err *err);
typedef struct kvt_commit {
    uint64_t tokens;     /* complete so far; never falls */
    bool final;          /* last one: every piece must have been announced */
    const void *payload; /* h_final, totals; copied */
    size_t payload_bytes;
} kvt_commit;

/* Cumulative: names all pieces announced so far. SL_FULL: KVT_COMMITS_OPEN_MAX or KVT_PAYLOAD_MAX
 * not yet acknowledged (skip it, the next one says more; a final one always has its place, but not
 * its payload's if others hold it). */
SL_MUST_USE sl_status kvt_send_commit(kvt_send *send, const kvt_commit *commit, sl_err *err);
/* Asks for the end; CLOSED(SL_CANCELLED) follows unless it ended otherwise meanwhile. */
void kvt_send_cancel(kvt_send *send);
/* After CLOSED only. NULL is fine. */
void kvt_send_release(kvt_send *send);

/* ---- receiving (D) */

typedef struct kvt_piece_slice { /* of every page */
    uint64_t offset, bytes;
} kvt_piece_slice;

typedef enum kvt_sums {
    KVT_SUMS_ALL,
    KVT_SUMS_SAMPLE, /* one piece in 16, chosen by its place */
    KVT_SUMS_OFF,
} kvt_sums;

typedef struct kvt_recv_options {
    kvt_nonce nonce; /* fresh random, in the ticket */
    sl_time_ns deadline;
    uint32_t first_block, block_count;
    uint32_t group_count;
    void *const *pages;            /* [block_count] base of each block's page; copied */
    const kvt_piece_slice *slices; /* [group_count]; copied. A piece has exactly these bytes */
    kvt_sums sums;
    uint64_t sum_key; /* with kvt_sum_tweak(block, group) */
    bool piece_events;
    void *cookie;
} kvt_recv_options;

/* From here on D's pages may be written. SL_EXISTS: the nonce is open. */
SL_MUST_USE sl_status kvt_recv_open(kvt_context *context, const kvt_recv_options *options,
                                    kvt_recv **out_recv, sl_err *err);
/* New pieces are refused at once; RECV_CLOSED(SL_CANCELLED) comes when the open fetches have ended
 * (else their connection is closed by force after the grace): then, and only then, the pages may be
 * used for something else. Should the transport keep a fetch even then, CLOSED waits for it: the
 * transfer is quarantined and counted, its pages stay out of use. */
void kvt_recv_revoke(kvt_recv *recv);
/* After CLOSED only. NULL is fine. */
void kvt_recv_release(kvt_recv *recv);

/* ---- numbers */

typedef struct kvt_stats {
    uint32_t sends_open, recvs_open;          /* not yet CLOSED */
    uint32_t peers_open;                      /* connections, both directions */
    uint32_t requests_open;                   /* handed to the transport and not finished */
    uint32_t recvs_quarantined;               /* see kvt_recv_revoke */
    uint64_t requests_abandoned;              /* of sends, never given back by the transport */
    uint64_t restarts;                        /* of the transport, to get such requests back, */
    uint64_t restarts_deaf;                   /* or of these: it heard nobody any more */
    uint64_t probes_heard;                    /* by which it looks: a message to itself */
    uint64_t pieces_sent, bytes_sent;         /* verified by the peer */
    uint64_t pieces_received, bytes_received; /* verified here */
    uint64_t pieces_refused;                  /* announcements answered without taking payload */
    uint64_t sum_mismatches;                  /* each may be fetched again once */
    uint64_t messages_invalid;  /* off the wire, not understood: the connection was closed */
    uint64_t closes_forced;     /* connections closed by force for a deadline or a stall */
    uint64_t window_bytes_peak; /* most bytes in flight on one connection */
    uint64_t events_full;       /* times the ring to the owner was full */
    uint64_t pieces_local;      /* read by us out of the memory of a peer on this machine */
} kvt_stats;

/* Any thread. */
void kvt_stats_get(const kvt_context *context, kvt_stats *out_stats);

typedef struct kvt_peer_stats {
    char name[KVT_NAME_MAX]; /* the peer's own; "" before its hello */
    bool outgoing;           /* we connected: it is D */
    uint32_t transfers_open;
    uint64_t pieces, bytes; /* verified over this connection */
} kvt_peer_stats;

/* Copies at most `capacity`; returns how many. Any thread. */
size_t kvt_peers_get(const kvt_context *context, kvt_peer_stats *out_peers, size_t capacity);

#ifdef __cplusplus
}
#endif
#endif
