/* The rules, looked at while the world runs.
 *
 *   a page has one owner           nobody takes a page that is bound, held or named by a transfer
 *   no reuse before release        no page is given back while a transfer of it is open
 *   every request ends once        and, when all is well, with its whole answer
 *   tokens are right               each, when it comes
 *   bounded queues                 none above what it may hold
 *   deadlines are kept             what is due was done when it was due, to the nanosecond
 *   fencing                        what an older epoch, stream or transfer says changes nothing
 *   no storms                      no request asks a node again before its pause
 *   nothing is left                at rest no page is bound, no slot taken, no transfer open
 *
 * Most look on through --wrap: the functions that they stand before are the shipped ones. */
#ifndef TESTS_SIM_CHECKER_H
#define TESTS_SIM_CHECKER_H

#include "tests/sim/client.h"
#include "tests/sim/world.h"

void sim_checker_init(void);
void sim_checker_process_started(sim_process *process);
void sim_checker_process_ends(sim_process *process);
void sim_checker_request_ended(const sim_request *request);
/* After each event. */
void sim_checker_step(void);
/* Everything is healed and answered: what is still held? */
void sim_checker_rest(void);
/* A fault was made: what is asked before or now may fail. */
void sim_checker_note_fault(void);
/* Connections broke between two that live. */
void sim_checker_note_reset(void);
uint32_t sim_checker_faults(void);

typedef struct sim_counts {
    uint64_t transfers, transfers_failed, retries, migrations, moves, pulls, parked, attached;
} sim_counts;
extern sim_counts sim_seen;

/* When something happened last, virtual time; for the scenarios. */
typedef struct sim_times {
    sl_time_ns prefill_heard;    /* the router: a sign of life of a prefill */
    sl_time_ns prefill_given_up; /* the router: its deadline passed */
    sl_time_ns fetch_opened, fetch_given_up, fetch_closed; /* D */
    sl_time_ns parked, park_given_up;                      /* D */
    sl_time_ns pages_given[SIM_PROCESSES_MAX];             /* the engine let go of one */
} sim_times;
extern sim_times sim_last;

#endif
