/* Ranks in one process: messages through memory, faults on demand. For unit tests and the
 * simulator.
 *
 * One com_fake is the network of all ranks that are opened with it; a rank may be a thread of its
 * own. Thread: any; it outlives its groups. */
#ifndef COMM_FAKE_H
#define COMM_FAKE_H

#include "comm/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct com_fake com_fake;

extern const com_backend com_backend_fake; /* com_options.backend_context: the com_fake */

com_fake *com_fake_create(void);
void com_fake_destroy(com_fake *fake);
/* What a rank sends from now on stays in the network until it is let go. */
void com_fake_hold(com_fake *fake, uint32_t rank, bool hold);
/* The rank's links break, as when its process dies. */
void com_fake_kill(com_fake *fake, uint32_t rank);
/* Messages of a kind (comm/wire.h) from the rank to those of `to` (bits) vanish from now on. */
void com_fake_lose(com_fake *fake, uint32_t rank, uint64_t to, uint32_t kind);
/* Messages of a kind that the rank has sent so far, lost ones included. */
uint32_t com_fake_sent(com_fake *fake, uint32_t rank, uint32_t kind);
/* Flips the byte `at` (from the end, 1 = last) of the next message with data that the rank sends;
 * in_head: of its head. */
void com_fake_corrupt(com_fake *fake, uint32_t rank, uint32_t at, bool in_head);

#ifdef __cplusplus
}
#endif
#endif
