/* A backend of comm that sends over UCX as if the wire were slower: each message leaves when its
 * bytes, after those before it, would have passed. It can also take down what is computed between
 * the messages. For two ranks. Thread: as com_backend. */
#ifndef TESTS_BENCH_MICRO_BATCH_WIRE_H
#define TESTS_BENCH_MICRO_BATCH_WIRE_H

#include "comm/comm.h"

extern const com_backend wire_backend;

/* Bytes a second that leave this process from now on; 0: no limit. Between runs. */
void wire_set_limit(double bytes_per_second);

/* One exchange of a message, seconds of the calling thread's CPU. */
typedef struct wire_phase {
    double before;  /* since the last one's wait ended */
    double between; /* from sending it to waiting for the other's */
    double bytes;
} wire_phase;

#define WIRE_PHASES_MAX 1024u

/* Takes down the phases from now on, into out_phases [WIRE_PHASES_MAX], of one group whose messages
 * no other thread carries. wire_record_end: how many there were, and the CPU time after the last.
 */
void wire_record(wire_phase *out_phases);
uint32_t wire_record_end(double *out_after);

#endif
