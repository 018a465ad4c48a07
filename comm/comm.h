/* The ranks of one instance: they step together, and rows of tokens go to the ranks that hold their
 * experts and come back.
 *
 * Knows bytes, ranks and experts' numbers, no models. All ranks go through the same *phases* in the
 * same order: a header exchange opens a run; a run is any number of layers; a layer is one dispatch
 * and one combine. Every rank sends every other one message a phase, which may be empty, so a phase
 * is also a barrier: nobody is more than one phase ahead, and fixed windows for the largest message
 * suffice. Nothing is dropped, nothing allocated after connect.
 *
 * Nobody writes into another process's memory: a receiver takes each message into its own window.
 *
 * Failure: every wait has a deadline and looks at the abort word. A rank that is gone, late, or
 * says what cannot be, fails the group for good on all ranks: SL_UNAVAILABLE, SL_DEADLINE or
 * SL_CORRUPT, and com_group_failed has the words. Thread: one at a time, but where said. */
#ifndef COMM_COMM_H
#define COMM_COMM_H

#include "base/clock.h"
#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define COM_RANKS_MAX   64u
#define COM_EXPERTS_MAX 512u
#define COM_CHOSEN_MAX  32u
#define COM_ROWS_MAX    4096u
#define COM_CONTACT_MAX 304u /* text with its NUL */
#define COM_NAME_MAX    64u
#define COM_WAIT_MS     30000u
#define COM_LOCAL       UINT32_MAX
#define COM_LAYERS_MAX  128u
#define COM_SLOTS_MAX   512u /* of a rank in a layer */
#define COM_NO_EXPERT   UINT16_MAX

typedef struct com_group com_group;
typedef struct com_backend com_backend; /* com_backend_ucx (comm/ucx.h), or comm/fake.h */

typedef struct com_options {
    const char *instance; /* ranks of another one are refused; copied */
    uint32_t rank, rank_count;
    const char *listen; /* "127.0.0.1:0"; the network is trusted, as kvtransfer's */
    bool allow_wildcard;
    uint64_t wait_ns; /* longest wait for the others in one phase; 0 = COM_WAIT_MS */
    bool carries;     /* com_group_carry does something: a thread of its own */
    const com_backend *backend;
    void *backend_context;
} com_options;

/* What a row is and where its experts are; equal on all ranks. An expert may be in several slots:
 * its rows take them in turn, so that each slot gets an even share. */
typedef struct com_layout {
    uint32_t rows_max; /* of one rank in one layer */
    uint32_t chosen;   /* experts of a row */
    uint32_t expert_count;
    uint32_t row_bytes;               /* of a row on its way to experts: FP8 codes */
    uint32_t scale_bytes;             /* and what travels with it; may be 0 */
    uint32_t output_bytes;            /* of one expert's output for one row */
    uint32_t layer_count, slot_count; /* slots of a rank in a layer */
    uint64_t formation;    /* number of this coming together; ranks of another one do not meet */
    uint64_t rank_mask;    /* the ranks that come together; 0: all */
    const uint16_t *slots; /* [layer_count][rank_count][slot_count]: the expert in each, copied;
                              COM_NO_EXPERT: empty. Each expert is on a rank of the mask */
} com_layout;

/* Starts to listen. */
SL_MUST_USE sl_status com_group_open(const com_options *options, com_group **out_group,
                                     sl_err *err);
void com_group_close(com_group *group); /* NULL is fine; the other ranks' groups fail */
/* What the other ranks need to find this one: address and incarnation, for etcd. */
const char *com_group_contact(const com_group *group);
uint32_t com_group_rank(const com_group *group);
uint32_t com_group_size(const com_group *group);
/* Connects to all others of the mask: contacts[rank], this rank's own among them; those outside the
 * mask are not looked at. They must have been given the same ones: a mixed set (somebody was
 * started again) ends in SL_CONFLICT, SL_UNAVAILABLE or SL_DEADLINE, and connect may be tried again
 * with a newer one. SL_INCOMPATIBLE: another layout. `now or never` at `deadline`; *stop (may be
 * NULL) ends it early, SL_CANCELLED. */
SL_MUST_USE sl_status com_group_connect(com_group *group, const char *const *contacts,
                                        const com_layout *layout, sl_time_ns deadline,
                                        const volatile bool *stop, sl_err *err);
/* Bytes of the outputs that may come back from one rank: memory of com_group_set_returns is
 * rank_count times that. */
uint64_t com_group_return_bytes(const com_group *group);
/* Where they come back to: rank r's at memory + r * com_group_return_bytes. Before the first run;
 * borrowed until close. */
void com_group_set_returns(com_group *group, void *memory);

/* Everybody's `bytes` of data to everybody: out_all [rank_count][bytes], by rank. Between connect
 * and the first run, or between two runs once headers have agreed on it. */
SL_MUST_USE sl_status com_gather(com_group *group, const void *data, uint64_t bytes, void *out_all,
                                 sl_err *err);

/* ---- runs */

typedef struct com_header {
    uint32_t wish;      /* what this rank would run next; 0: nothing, it takes part */
    uint32_t rows;      /* how many rows it brings */
    uint64_t rank_mask; /* the ranks it steps with */
    uint64_t ready;     /* newest formation that it could switch to */
    uint64_t reload;    /* what it says of a reload of weights; not looked at here */
} com_header;

/* Tells the others; what they tell is awaited by com_header_wait, later, when this rank's own work
 * needs theirs: the exchange hides behind the layers before the first dispatch. */
SL_MUST_USE sl_status com_header_post(com_group *group, const com_header *header, sl_err *err);
/* out_headers [rank_count], own included; zeros where no rank is. */
SL_MUST_USE sl_status com_header_wait(com_group *group, com_header *out_headers, sl_err *err);
/* Another rank has posted a header that this one has not answered. Never blocks. True as well once
 * the group has failed: whoever posts then hears why. */
bool com_header_pending(com_group *group);
/* To sleep until com_header_pending may have changed: readable descriptor, after com_arm returned
 * true. Another thread may poll it. */
int com_fd(const com_group *group);
bool com_arm(com_group *group);

/* ---- a layer */

typedef struct com_rows {
    uint32_t layer; /* of layer_count */
    uint32_t row_count;
    const void *rows;        /* [row_count][row_bytes] */
    const void *scales;      /* [row_count][scale_bytes] */
    const uint32_t *experts; /* [row_count][chosen], ascending in a row */
} com_rows;

/* Sends each row once to every other rank that it takes experts of, with their list. out_places
 * [row_count][chosen]: COM_LOCAL for those that this rank computes itself, else the row of the
 * returns memory where that output will be. */
SL_MUST_USE sl_status com_dispatch_post(com_group *group, const com_rows *rows,
                                        uint32_t *out_places, sl_err *err);

/* Rows of one rank; borrowed until com_combine_post. */
typedef struct com_part {
    uint32_t row_count, entry_count;
    const void *rows;        /* [row_count][row_bytes] */
    const void *scales;      /* [row_count][scale_bytes] */
    const uint16_t *counts;  /* [row_count] experts of each row */
    const uint16_t *experts; /* [entry_count], row after row, ascending: this rank's */
} com_part;

/* out_parts [rank_count]; own one empty. */
SL_MUST_USE sl_status com_dispatch_wait(com_group *group, com_part *out_parts, sl_err *err);
/* Sends the outputs back: places[i] is the row of `outputs` with the output of received entry i,
 * counted over all parts. faulty: this rank could not compute (NaN): nothing is sent but that. */
SL_MUST_USE sl_status com_combine_post(com_group *group, const void *outputs,
                                       const uint32_t *places, bool faulty, sl_err *err);
/* The outputs of com_dispatch_post are in the returns memory. out_faulty: rank_count if all could
 * compute, else the lowest rank that could not; its outputs are then unspecified. */
SL_MUST_USE sl_status com_combine_wait(com_group *group, uint32_t *out_faulty, sl_err *err);

/* After a post: a thread of the group moves what is on its way until the wait, in which the caller
 * takes the group back; between the two it calls nothing but what any thread may. Worth it where
 * the caller computes for longer than a thread takes to wake. Nothing without com_options.carries.
 */
void com_group_carry(com_group *group);

/* ---- the end */

/* Fails the group on all ranks. Any thread. text: a literal. */
void com_abort(com_group *group, const char *text);
/* Why it failed, until close; NULL: it has not. */
const char *com_group_failed(const com_group *group);
/* Once it has failed, or connect has: the ranks that this one found gone or silent, as bits. Others
 * may know better. */
uint64_t com_group_lost(const com_group *group);
/* The ranks that it connects, as bits. */
uint64_t com_group_mask(const com_group *group);

typedef struct com_stats {
    uint64_t runs, layers;
    uint64_t rows_sent, rows_received;      /* a row counts once a destination */
    uint64_t dispatch_bytes, combine_bytes; /* sent to other ranks, headers not counted */
    uint64_t wait_ns;                       /* spent in waits */
} com_stats;
void com_stats_get(const com_group *group, com_stats *out_stats); /* Any thread; each is right */

#ifdef __cplusplus
}
#endif
#endif
