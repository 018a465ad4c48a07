/* Reads the memory of a process on this machine: one copy, straight into the reader's page.
 *
 * Owns nothing. The peer keeps a word in its memory that holds a challenge of the reader's: found
 * there in the same call that reads the data, it says that the process is still the peer and that
 * the peer may write in it. Thread: any. */
#ifndef KVTRANSFER_LOCAL_H
#define KVTRANSFER_LOCAL_H

#include "base/status.h"

typedef struct kvt_local {
    uint32_t pid;       /* of the peer */
    uint64_t word_at;   /* address there of the word that holds the challenge */
    uint64_t challenge; /* 0: none was sent */
} kvt_local;

/* True: the peer's memory can be read and the word is there. */
bool kvt_local_proven(const kvt_local *local);
/* `bytes` from `address` there into `dest`. SL_UNAVAILABLE: the process is gone, is another one, or
 * the kernel refuses; SL_INVALID: not all of it is the peer's memory. `dest` may be written even
 * then. */
sl_code kvt_local_read(const kvt_local *local, uint64_t address, void *dest, uint64_t bytes);

#endif
