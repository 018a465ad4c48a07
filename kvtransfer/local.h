/* Reads the memory of a process on this machine: one copy, straight into the reader's page, in
 * place of UCX's two through shared memory; and how two processes agree on it.
 *
 * Owns nothing. The peer keeps a word in its memory that holds a challenge of the reader's. Found
 * there in the same call, behind the data, it says that the process is still the peer, that the
 * peer may write in it, and that the peer had not taken back what it offered when the data was
 * read. Thread: any. */
#ifndef KVTRANSFER_LOCAL_H
#define KVTRANSFER_LOCAL_H

#include "kvtransfer/wire.h"

typedef struct kvt_local {
    uint32_t pid;       /* of the peer */
    uint64_t word_at;   /* address there of the word that holds the challenge */
    uint64_t challenge; /* 0: none was sent */
} kvt_local;

/* True: the peer's memory can be read and the word is there. */
bool kvt_local_proven(const kvt_local *local);

typedef struct kvt_local_piece {
    uint64_t address, bytes; /* there */
    void *dest;              /* written whatever the code */
    sl_code code;            /* of kvt_local_read */
} kvt_local_piece;

/* All of them (at most KVT_WIRE_READS_MAX) in one call of the kernel. SL_UNAVAILABLE: the process
 * is gone, is another one, has taken them back, or the kernel refuses; SL_INVALID: not all of this
 * piece is the peer's memory. */
void kvt_local_read(const kvt_local *local, kvt_local_piece *pieces, uint32_t count);

/* What the two ends of a connection have agreed on. P asks, D challenges, P puts the challenge into
 * its word and says so, D looks and says go. Anything in the way (another machine, user or
 * namespace, a kernel that refuses): no go, and pieces take other ways. Zeroed at first; its word
 * stays where it is while the connection lives. */
typedef struct kvt_agreement {
    bool agreed;      /* P: D reads our memory. D: proven, we may read */
    uint64_t word;    /* P: D's challenge, for D to read */
    kvt_local memory; /* D: of P */
} kvt_agreement;

/* A message of the other end; `sends`: we are P. True: *out_say is to be said now. What does not
 * come in turn is not heard. */
bool kvt_local_hear(kvt_agreement *agreement, bool sends, const kvt_local_message *message,
                    kvt_local_step *out_say);
/* P: nothing read from here on counts. Before the owner hears that its memory is its own. */
void kvt_local_withdraw(kvt_agreement *agreement);
/* A message of ours. */
kvt_local_message kvt_local_message_of(const kvt_agreement *agreement, kvt_local_step step);

#endif
