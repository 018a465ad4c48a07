/* An in-process network behind the same operations as UCX: deterministic, for tests and simulators.
 *
 * Contexts created with kvt_options.fake join it under their listen address ("d0:1", any text with
 * a port). They have no thread: kvt_fake_step runs their progress code and moves messages, all on
 * the caller's thread, in virtual time. Same seed, same calls: same events in the same order. */
#ifndef KVTRANSFER_FAKE_H
#define KVTRANSFER_FAKE_H

#include "kvtransfer/kvtransfer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvt_fake_faults {
    uint64_t delay_min_ns, delay_max_ns;           /* of each message, drawn evenly */
    uint32_t drop_ppm, duplicate_ppm, reorder_ppm; /* of a million; reorder: a drawn extra delay */
    uint32_t corrupt_ppm;                          /* one byte of a piece's payload flipped */
} kvt_fake_faults;

kvt_fake *kvt_fake_create(uint64_t seed);
/* After its contexts. NULL is fine. */
void kvt_fake_destroy(kvt_fake *fake);
/* From the next message on. Starts with a delay of 1 us and nothing else. */
void kvt_fake_faults_set(kvt_fake *fake, const kvt_fake_faults *faults);
/* The link between two names (kvt_options.name), both ways: messages sent while it is cut are
 * lost, and connections stay up (a partition). */
void kvt_fake_cut(kvt_fake *fake, const char *name_a, const char *name_b, bool cut);
/* As SIGSTOP and SIGCONT: the context's progress code does not run; messages to it wait. */
void kvt_fake_pause(kvt_fake *fake, const char *name, bool paused);
/* As kill -9: its connections break at once, it never runs again (destroy it when convenient). */
void kvt_fake_kill(kvt_fake *fake, const char *name);
/* Nothing that is sent to it is heard until it starts its transport anew, as when a process died
 * amid a message by shared memory. Connections come and end as ever. */
void kvt_fake_deafen(kvt_fake *fake, const char *name);
/* Runs all that is due at `now`, until nothing more is. Returns when next something is (SL_NEVER:
 * nothing without a call from outside). */
sl_time_ns kvt_fake_step(kvt_fake *fake, sl_time_ns now);
uint64_t kvt_fake_messages(const kvt_fake *fake); /* delivered so far */

#ifdef __cplusplus
}
#endif
#endif
