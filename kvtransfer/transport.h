/* The operations table between the protocol (core.c, peer.c, send.c, recv.c) and what moves bytes
 * (ucx.c, tcp.c, fake.c).
 *
 * All on the progress thread. A transport calls the core only from within `progress` (the fake:
 * from kvt_fake_step), and the core's answers never call back into the transport: completions are
 * collected, then acted on by kvt_core_run in our own order. */
#ifndef KVTRANSFER_TRANSPORT_H
#define KVTRANSFER_TRANSPORT_H

#include "kvtransfer/kvtransfer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvt_core kvt_core;
typedef struct kvt_peer kvt_peer;
typedef struct kvt_request kvt_request; /* one operation handed to the transport */

typedef struct kvt_transport kvt_transport; /* the implementation's */
typedef struct kvt_link kvt_link;           /* one connection of it */

typedef struct kvt_transport_ops {
    /* The link works at once for sending (the transport queues); a failure comes as
     * kvt_core_broken. */
    sl_status (*connect)(kvt_transport *transport, const char *address, kvt_peer *peer,
                         kvt_link **out_link, sl_err *err);
    /* By force. Every open request of the link is answered, then kvt_core_closed, then nothing
     * more; from that moment on no payload lands through it. */
    void (*close)(kvt_link *link);
    /* `data` stays valid until kvt_core_finished(request), which may come before the call returns.
     */
    void (*send_message)(kvt_link *link, const void *data, size_t size, kvt_request *request);
    /* Offers a piece: the peer's kvt_core_offer decides. Finished when the peer took or refused it.
     */
    void (*send_piece)(kvt_link *link, const void *head, size_t head_size, const void *data,
                       uint64_t bytes, kvt_request *request);
    /* How many pieces may be in flight on the link, when `open` are: KVT_WINDOW_READS at most.
     * NULL: KVT_WINDOW_PIECES. */
    uint32_t (*window)(const kvt_link *link, uint32_t open);
    /* Pieces of the link are about to be received: answers to others may wait for theirs, until
     * kvt_core_drained. NULL: not known. */
    bool (*more)(const kvt_link *link);
    /* Nothing can come that is worth looking for before sleep. NULL: never so. */
    bool (*patient)(const kvt_transport *transport);
    bool (*progress)(kvt_transport *transport); /* false: nothing moved */
    /* Gives up whatever it still holds of closed links, at the price of all others: afterwards
     * nothing of before is touched. Answers what it can, closes every link; wait_fd is another one.
     * NULL: never needed. Not from within a callback. */
    void (*restart)(kvt_transport *transport);
    /* Says something to itself in the way in which one peer can deafen it to all others; heard, it
     * calls kvt_core_probed, from within this call at the earliest. False: there is no such way
     * now. `on` false: gives up the one under way. NULL: there never is such a way. */
    bool (*probe)(kvt_transport *transport, bool on);
    /* Makes wait_fd readable on the next event; false: something came meanwhile, progress again. */
    bool (*arm)(kvt_transport *transport);
    int (*wait_fd)(const kvt_transport *transport);
    void (*address)(const kvt_transport *transport, char out_text[KVT_ADDRESS_MAX]);
    void (*destroy)(kvt_transport *transport); /* NULL is fine */
} kvt_transport_ops;

/* What a transport tells the core (core.c). */

/* An incoming connection. NULL: reject it, the table is full. */
kvt_peer *kvt_core_accepted(kvt_core *core, kvt_link *link);
/* The link failed; the core will close it. */
void kvt_core_broken(kvt_peer *peer, sl_code code, const char *text);
/* The same for bytes that are not of the protocol; counted. */
void kvt_core_invalid(kvt_peer *peer, const char *text);
void kvt_core_closed(kvt_peer *peer);
void kvt_core_message(kvt_peer *peer, const void *data, size_t size);
/* A piece is offered. NULL: refused, take no payload. Else receive exactly `bytes` to *out_data,
 * then kvt_core_finished(request). */
kvt_request *kvt_core_offer(kvt_peer *peer, const void *head, size_t head_size, uint64_t bytes,
                            void **out_data);
void kvt_core_finished(kvt_request *request, sl_code code);
void kvt_core_drained(kvt_peer *peer); /* ops->more has become false */
void kvt_core_probed(kvt_core *core);
/* A piece was read out of the memory of a peer on this machine (counted). */
void kvt_core_read_locally(kvt_core *core);
/* Something was said since the last kvt_core_run. */
bool kvt_core_collected(const kvt_core *core);

/* context.c, for transports without a thread: commands, then kvt_core_run. False: nothing to do. */
bool kvt_context_step(kvt_context *context, sl_time_ns now);
sl_time_ns kvt_context_due(const kvt_context *context);
kvt_context *kvt_core_context(kvt_core *core);

/* context.c: options->listen looked up; refused if it is all interfaces and that was not said. */
struct sockaddr_storage;
SL_MUST_USE sl_status kvt_listen_resolve(const kvt_options *options,
                                         struct sockaddr_storage *out_address, uint32_t *out_size,
                                         sl_err *err);
/* The part of an address behind "tcp:"; NULL: it is one of the other transport. */
const char *kvt_tcp_part(const char *address);

/* ucx.c */
SL_MUST_USE sl_status kvt_ucx_create(const kvt_options *options, kvt_core *core,
                                     const kvt_transport_ops **out_ops,
                                     kvt_transport **out_transport, sl_err *err);
/* Undoes what loading the UCX library does to the process's signals. */
void kvt_ucx_signals(void);
/* tcp.c */
SL_MUST_USE sl_status kvt_tcp_create(const kvt_options *options, kvt_core *core,
                                     const kvt_transport_ops **out_ops,
                                     kvt_transport **out_transport, sl_err *err);
/* fake.c */
SL_MUST_USE sl_status kvt_fake_transport_create(const kvt_options *options, kvt_core *core,
                                                const kvt_transport_ops **out_ops,
                                                kvt_transport **out_transport, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
