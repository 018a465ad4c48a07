/* The protocol's objects: core, peers, requests, sends, recvs. Internal to kvtransfer.
 *
 * The core is pure control logic over a transport: (state, event, now) -> (state, operations). It
 * runs on the progress thread (or inside kvt_fake_step). Fields that another thread touches stand
 * in blocks of their own, with the order that makes it safe. */
#ifndef KVTRANSFER_CORE_H
#define KVTRANSFER_CORE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/ring.h"
#include "kvtransfer/ledger.h"
#include "kvtransfer/pool.h"
#include "kvtransfer/transport.h"
#include "kvtransfer/wire.h"

#define KVT_NO_INDEX        UINT32_MAX
#define KVT_PIECES_OPEN_MAX (1u << 20) /* of all transfers of a context together */
#define KVT_REFUSALS_MAX    8u         /* REVOKEs for unknown nonces that wait on one peer */
#define KVT_ACKS_WAITING    (2 * KVT_WINDOW_READS)
#define KVT_MESSAGES_TOTAL  4096u
#define KVT_PIECES_TOTAL    (KVT_PEERS_MAX * KVT_WINDOW_READS)

typedef enum kvt_request_kind {
    KVT_REQUEST_MESSAGE, /* own copy in data[] */
    KVT_REQUEST_COMMIT,  /* the bytes lie in a commit slot of a send */
    KVT_REQUEST_PIECE,   /* P: an offered piece */
    KVT_REQUEST_FETCH,   /* D: a piece being received */
} kvt_request_kind;

struct kvt_request {
    kvt_request *next;                  /* free list, or the core's list of finished ones */
    kvt_request *next_open, *prev_open; /* of the peer */
    kvt_peer *peer;
    struct kvt_send *send; /* PIECE, COMMIT */
    struct kvt_recv *recv; /* FETCH */
    void *dest;            /* FETCH; an abandoned COMMIT: its bytes, to be freed with it */
    uint64_t bytes;        /* PIECE, FETCH */
    uint64_t sum;          /* FETCH: as announced */
    uint32_t index;        /* PIECE: ordinal; FETCH: place in the ledger; COMMIT: sequence */
    uint8_t kind;
    uint8_t attempt;
    bool answered; /* the transport has finished it */
    sl_code code;
    uint8_t data[]; /* MESSAGE: KVT_MESSAGE_MAX; PIECE: the packed head */
};

struct kvt_peer {
    kvt_core *core;
    kvt_link *link;
    uint8_t state; /* kvt_peer_state */
    bool outgoing;
    bool closed; /* the transport is done with it */
    bool broken; /* to be closed with `code` and `text` at the next run */
    bool hello_due;
    bool starved; /* someone wanted to send a message and had no place */
    bool dirty;
    kvt_peer *next_dirty;
    sl_code code;
    char text[KVT_TEXT_MAX];
    char address[KVT_ADDRESS_MAX]; /* outgoing */
    uint64_t incarnation;          /* of the peer's process, from its hello */
    sl_time_ns closed_at;          /* CLOSING and closed */
    sl_time_ns since;              /* created; then last used */
    sl_time_ns progress_at;        /* a piece finished, or the first of a row began */
    uint32_t requests_open, messages_open;
    kvt_request *requests; /* the open ones */
    uint32_t pieces_open;  /* P: in the window */
    uint64_t window_bytes;
    uint32_t fetches_open; /* D */
    struct kvt_send *turn; /* ring of sends with pieces to offer, by turns */
    uint32_t refusals;
    struct {
        kvt_nonce nonce;
        sl_code code;
    } refusal[KVT_REFUSALS_MAX];
    /* any thread reads; `name` under core->peers_lock */
    char name[KVT_NAME_MAX];
    bool listed;
    _Atomic uint32_t transfers;
    _Atomic uint64_t pieces, bytes;
};

typedef struct kvt_send_piece {
    const void *data;
    uint64_t sum;
    uint32_t bytes;
    uint32_t block;
    uint32_t next; /* retry list, then report list */
    uint16_t group;
    uint8_t state; /* kvt_piece_state */
    uint8_t attempt;
    bool finished, acked; /* FETCHING: the transport let go of the data; D answered */
    uint8_t result;       /* kvt_piece_result, when acked */
} kvt_send_piece;

typedef struct kvt_commit_slot { /* P */
    uint8_t *bytes; /* the whole message; sl_alloc by the producer, freed by the progress thread */
    size_t size;
    uint32_t payload_bytes;
    uint64_t tokens;
    bool final, finished;
} kvt_commit_slot;

struct kvt_send {
    kvt_context *context;
    kvt_core *core;
    uint32_t slot;
    kvt_send_options options; /* address: own copy */
    uint32_t piece_count;
    kvt_send_piece *pieces; /* [piece_count], a log: the producer appends, publishes with release */

    /* the producer's */
    uint8_t *announced; /* bit per (block, group) */
    uint32_t announced_count, committed_count;
    uint64_t committed_tokens, payload_committed;
    bool committed_final;

    /* between producer and progress thread */
    _Atomic uint32_t published, commits_published; /* release: the entries before are written */
    _Atomic uint32_t commits_freed; /* release: their slots are the producer's again */
    _Atomic uint64_t payload_freed;
    _Atomic bool kicked, ended;
    kvt_commit_slot commits[KVT_COMMITS_OPEN_MAX];

    /* the progress thread's */
    uint8_t state; /* kvt_transfer_state */
    bool dirty, in_ring, cancel_due, reporting;
    struct kvt_send *next_dirty, *next_turn, *prev_turn, *next_report;
    kvt_peer *peer;
    uint32_t requests_open;
    uint32_t window_pieces; /* of the peer's window, held by this send */
    uint64_t window_bytes;
    uint32_t verified_count;
    uint32_t posted;                 /* pieces below it were offered at least once */
    uint32_t retry_head, retry_tail; /* lists through pieces[].next */
    uint32_t report_head, report_tail;
    uint32_t commits_sent, commits_acked, commits_done,
        commits_reported; /* each <= the one before */
    sl_time_ns close_due;
    bool close_forced; /* the grace is over, the connection was broken for it */
    sl_code code;      /* CLOSING on; the owner reads after the CLOSED event */
    char text[KVT_TEXT_MAX];

    bool closed_delivered, cancel_asked; /* the owner's */
};

typedef struct kvt_recv_piece {
    uint32_t ordinal;
    uint32_t next; /* report list */
    uint8_t state; /* kvt_piece_state */
    uint8_t attempt;
} kvt_recv_piece;

typedef struct kvt_recv_commit { /* D */
    bool present;
    bool final;
    uint32_t sequence, pieces;
    uint64_t tokens;
    uint8_t *payload; /* sl_alloc; handed to the owner with the event */
    uint32_t payload_bytes;
} kvt_recv_commit;

struct kvt_recv {
    kvt_context *context;
    kvt_core *core;
    uint32_t slot;
    kvt_recv_options options; /* pages, slices: own copies */
    uint32_t piece_count;
    kvt_recv_piece *pieces; /* [block - first_block][group] */
    uint64_t *seen;         /* bit per ordinal: announced */
    uint64_t *verified;     /* bit per ordinal */

    /* the progress thread's */
    uint8_t state; /* kvt_transfer_state */
    bool dirty, revoke_due, reporting;
    struct kvt_recv *next_dirty, *next_report;
    kvt_peer *peer;
    uint32_t requests_open;
    uint32_t watermark; /* every ordinal below it is verified */
    uint32_t verified_count;
    uint32_t report_head, report_tail;
    kvt_recv_commit commits[KVT_COMMITS_OPEN_MAX]; /* by sequence modulo */
    uint32_t commits_verified, commits_reported, commits_acked;
    uint32_t payload_open;
    uint64_t tokens; /* of the last verified commit */
    uint32_t ack_count;
    uint64_t ack_bytes; /* of the pieces they answer */
    kvt_piece_ack acks[KVT_ACKS_WAITING];
    sl_time_ns close_due;
    bool close_forced, quarantined;
    sl_code code;
    char text[KVT_TEXT_MAX];

    bool closed_delivered, revoke_asked; /* the owner's */
};

typedef struct kvt_counters { /* relaxed; the progress thread writes, anyone reads */
    _Atomic uint32_t sends_open, recvs_open, peers_open, requests_open, recvs_quarantined;
    _Atomic uint64_t requests_abandoned, restarts, restarts_deaf, probes_heard;
    _Atomic uint64_t pieces_sent, bytes_sent, pieces_received, bytes_received;
    _Atomic uint64_t pieces_refused, sum_mismatches, messages_invalid, closes_forced;
    _Atomic uint64_t window_bytes_peak, events_full, pieces_local;
} kvt_counters;

typedef struct kvt_event_item { /* in the ring to the owner */
    kvt_send *send;
    kvt_recv *recv;
    uint8_t *payload; /* the owner frees it */
    uint64_t tokens;
    uint32_t payload_bytes;
    uint32_t block, sequence;
    uint16_t group;
    uint8_t type; /* kvt_event_type */
    bool final;
} kvt_event_item;

struct kvt_core {
    const kvt_transport_ops *ops;
    kvt_transport *transport;
    char name[KVT_NAME_MAX];
    uint64_t incarnation;
    uint64_t window_bytes, connect_ns, stall_ns, idle_ns, close_grace_ns;

    sl_time_ns now;      /* of the run or progress call under way */
    sl_time_ns next_due; /* no timer is earlier */
    kvt_peer peers[KVT_PEERS_MAX];
    kvt_send *sends[KVT_SENDS_MAX]; /* open ones by slot */
    kvt_recv *recvs[KVT_RECVS_MAX];
    kvt_map sends_by_nonce, recvs_by_nonce;
    kvt_pool messages, pieces, fetches; /* of kvt_request */
    kvt_request *finished_head, *finished_tail;
    kvt_send *dirty_sends, *report_sends;
    kvt_recv *dirty_recvs, *report_recvs;
    kvt_peer *dirty_peers;
    sl_mailbox *events;
    _Atomic bool events_waiting; /* seq_cst: set before the last failed push, read after a drain */
    bool stopping;               /* no connection is accepted or made any more */
    uint32_t restarts;           /* of the transport: its wait_fd is another one */
    struct {
        bool wanted;              /* a connection has ended, or the transport is new */
        bool heard;               /* one was, ever: silence means something */
        bool late;                /* its time is over; what came meanwhile is still looked at */
        sl_time_ns due;           /* SL_NEVER: none under way */
        sl_time_ns after;         /* no probe before that, */
        sl_time_ns restart_after; /* no restart for deafness before that */
    } probe;
    _Atomic uint32_t kicks; /* producers' calls since the last run */
    kvt_context *context;
    kvt_counters counters;
    pthread_mutex_t peers_lock; /* names of peers: set at hello and close, read for metrics */
};

/* ---- core.c */
void kvt_core_init(kvt_core *core, const kvt_options *options, sl_mailbox *events);
void kvt_core_fini(kvt_core *core);
/* Acts on all that was collected. True: it did something (progress again before waiting). */
bool kvt_core_run(kvt_core *core, sl_time_ns now);
/* Force-closes every peer; progress and run until kvt_core_idle. */
void kvt_core_stop(kvt_core *core);
bool kvt_core_idle(const kvt_core *core);
/* By nonce; NULL only if the owner has not opened it. */
kvt_recv *kvt_core_recv(kvt_core *core, kvt_nonce nonce);
/* context.c: registers what the owner opened since; touches no transport, so callbacks may call it.
 */
void kvt_context_open_recvs(kvt_context *context);
void kvt_core_due(kvt_core *core, sl_time_ns at); /* a timer may now be as early as this */
void kvt_core_doubt(kvt_core *core);              /* is the transport still heard? */
/* Into the ring to the owner; false: full, report again later. */
bool kvt_core_emit(kvt_core *core, const kvt_event_item *item);
static inline void kvt_count(_Atomic uint64_t *counter, uint64_t amount)
{
    atomic_fetch_add_explicit(counter, amount, memory_order_relaxed);
}

/* ---- peer.c */
/* Finds or connects; counts one transfer. */
SL_MUST_USE sl_status kvt_peer_get(kvt_core *core, const char *address, kvt_peer **out_peer,
                                   sl_err *err);
void kvt_peer_ref(kvt_peer *peer);
void kvt_peer_unref(kvt_peer *peer);
void kvt_peer_break(kvt_peer *peer, sl_code code, const char *text);
void kvt_peer_dirty(kvt_peer *peer);
/* Pieces that may be in flight, when `open` are. */
uint32_t kvt_peer_window(const kvt_peer *peer, uint32_t open);
void kvt_peer_service(kvt_peer *peer); /* closes broken ones, sends hellos, offers pieces */
void kvt_peer_timers(kvt_peer *peer, sl_time_ns now);
void kvt_peer_release(kvt_peer *peer); /* CLOSING with nothing open any more */
/* Packs and sends; false: no place now, `starved` brings the sender back. */
bool kvt_peer_send(kvt_peer *peer, const kvt_message *message);
/* A request for a message, NULL if there is no place now. */
kvt_request *kvt_peer_message_request(kvt_peer *peer);
void kvt_peer_turn_add(kvt_send *send);
void kvt_peer_turn_remove(kvt_send *send);
void kvt_peer_request_open(kvt_peer *peer, kvt_request *request, kvt_request_kind kind);
void kvt_peer_request_close(kvt_request *request); /* gives it back to its pool */
void kvt_peer_message_finished(kvt_request *request);
/* The open requests of a send are no longer its own: the transport does not give them back. */
void kvt_peer_abandon(kvt_peer *peer, kvt_send *send);
void kvt_peer_hello(kvt_peer *peer, const kvt_message *message);
void kvt_peer_refuse(kvt_peer *peer, kvt_nonce nonce, sl_code code);

/* ---- send.c */
void kvt_send_start(kvt_core *core, kvt_send *send);
void kvt_send_dirty(kvt_send *send);
void kvt_send_service(kvt_send *send);
void kvt_send_end(kvt_send *send, sl_code code, const char *text); /* begins CLOSING */
void kvt_send_timers(kvt_send *send, sl_time_ns now);
/* Size of the piece to offer next; 0: none. */
uint64_t kvt_send_next_bytes(const kvt_send *send);
void kvt_send_offer(kvt_send *send);
void kvt_send_piece_finished(kvt_request *request);
void kvt_send_commit_finished(kvt_request *request);
void kvt_send_acks(kvt_send *send, const kvt_ack_list *list);
void kvt_send_commit_acked(kvt_send *send, uint32_t sequence);
bool kvt_send_report(kvt_send *send); /* false: the ring is full */

/* ---- recv.c */
void kvt_recv_start(kvt_core *core, kvt_recv *recv);
void kvt_recv_dirty(kvt_recv *recv);
void kvt_recv_service(kvt_recv *recv);
void kvt_recv_end(kvt_recv *recv, sl_code code, const char *text);
void kvt_recv_timers(kvt_recv *recv, sl_time_ns now);
void kvt_recv_fetched(kvt_request *request);
/* Looks up by nonce, refuses what it does not know. */
void kvt_recv_commit_arrived(kvt_recv *recv, kvt_peer *peer, const kvt_commit_head *commit);
bool kvt_recv_report(kvt_recv *recv);
kvt_request *kvt_recv_judge(kvt_peer *peer, const kvt_message *message, uint64_t bytes,
                            void **out_data);

#endif
