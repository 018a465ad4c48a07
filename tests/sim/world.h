/* The simulated world: one virtual clock, one queue of events, one source of randomness.
 *
 * Everything that happens is an event at a virtual time; equal times run in the order they were
 * posted. Nothing reads a real clock, a descriptor or the kernel's randomness, so one seed gives
 * one history. One world at a time, on one thread: the functions that stand in for sl_now_ns and
 * the like have no argument that could say which. */
#ifndef TESTS_SIM_WORLD_H
#define TESTS_SIM_WORLD_H

#include "base/clock.h"
#include "base/status.h"
#include "kvtransfer/fake.h"

#define SIM_PROCESSES_MAX 16u
#define SIM_NAME_MAX      32u
#define SIM_FDS_MAX       256u

typedef void (*sim_fn)(void *context, uint64_t tag);

typedef enum sim_role { SIM_ETCD, SIM_ROUTER, SIM_PREFILL, SIM_DECODE, SIM_HYBRID } sim_role;

/* One process of the cluster, on a machine of its own. It stays when it dies, to be started again;
 * `life` counts the starts, so that what belongs to an earlier one is told apart. */
typedef struct sim_process {
    char name[SIM_NAME_MAX];
    char address[SIM_NAME_MAX]; /* of its gRPC port */
    uint32_t index;
    sim_role role;
    bool alive;
    bool dying;      /* is being taken down as by kill -9: nothing leaves it any more */
    bool paused;     /* as by SIGSTOP */
    bool silent;     /* died with its machine: nobody is told */
    bool stop_asked; /* its loop was asked to end */
    uint32_t life;
    uint64_t clock_offset_ns; /* its monotonic clock = virtual time + this */
    uint64_t lag_ns;          /* between two passes of its loop */
    uint64_t engine_percent;  /* cost of its engine's steps */
    sl_time_ns held_until;    /* end of the last pause or lag: deadlines may be missed before */
    struct sl_loop *loop;
    sl_time_ns wake_at;
    uint64_t wake_serial;
    struct nod_host *node;
    struct rtr_router *router;
    struct sim_etcd *etcd;
    struct sim_http *http;
    void *options;
    struct sl_config *config;
} sim_process;

/* A descriptor of the simulated kernel: readable or not. */
typedef struct sim_fd {
    bool used, readable;
    struct sl_watch *watch; /* NULL: nobody's; then it is kvtransfer's own doorbell */
} sim_fd;

typedef struct sim_event sim_event;

typedef struct sim_world {
    uint64_t seed, random;
    sl_time_ns now;
    sl_time_ns skew; /* of the engine thread that runs: how far its step has come */
    uint64_t steps;
    sim_event *heap;
    uint32_t count, capacity;
    uint64_t order;
    sim_process *current;
    sim_process processes[SIM_PROCESSES_MAX];
    uint32_t process_count;
    bool cut[SIM_PROCESSES_MAX][SIM_PROCESSES_MAX]; /* from, to: nothing arrives */
    uint64_t delay_min_ns, delay_max_ns;
    uint64_t wake_min_ns, wake_max_ns; /* until a thread looks at what became ready */
    uint32_t loss_ppm;                 /* of frames: each costs a retransmission's time */
    kvt_fake *kvt;
    bool kvt_dirty;
    sl_time_ns kvt_due;
    sim_fd fds[SIM_FDS_MAX];
    bool traced;
    uint32_t ended;  /* events run after the end */
    uint64_t digest; /* of the history: equal seeds must give equal ones */
} sim_world;

extern sim_world sim;

void sim_world_init(uint64_t seed);
void sim_world_fini(void);
/* Runs fn(context, tag) at `at`, or now if that has passed. */
void sim_post(sl_time_ns at, sim_fn fn, void *context, uint64_t tag);
/* One event; false: nothing is left before `end`. */
bool sim_step(sl_time_ns end);
/* At the end of the world: runs what is left whatever its time, so that it gives back what it
 * holds; false: nothing is. */
bool sim_step_drop(void);

/* 0 .. bound - 1. */
uint64_t sim_draw(uint64_t bound);
uint64_t sim_between(uint64_t low, uint64_t high);
bool sim_chance(uint32_t ppm);
static inline uint64_t sim_mix(uint64_t a, uint64_t b)
{
    uint64_t z = (a ^ (b * 0x9e3779b97f4a7c15ull)) + 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* Time as the process's own clock shows it. */
sl_time_ns sim_clock(const sim_process *process);
sl_time_ns sim_world_time(const sim_process *process, sl_time_ns clock);
/* Has the process look at its loop at `at` (virtual time). */
void sim_wake(sim_process *process, sl_time_ns at);
/* Something became ready now: it wakes a little later. */
void sim_wake_soon(sim_process *process);
sim_process *sim_process_of_loop(const struct sl_loop *loop);
sim_process *sim_process_at(const char *address);
sim_process *sim_process_named(const char *name);

/* Runs fn(context) in a pass of the process's loop, in order of arrival; dropped (drop(context))
 * when the process ends before. */
void sim_deliver(sim_process *process, void (*fn)(void *context), void (*drop)(void *context),
                 void *context);
void sim_loop_pass(sim_process *process);
/* Takes over what a dying loop leaves. */
void sim_loop_drop_inbox(sim_process *process);

int sim_fd_open(void);
void sim_fd_close(int fd);
void sim_fd_set(int fd, bool readable);

/* A broken rule: told with the seed and the step; ends the program with exit code 1. */
void sim_violation(const char *rule, const char *format, ...)
    __attribute__((format(printf, 2, 3), noreturn));
/* A line of the trace (--trace), with the time. */
void sim_trace(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* What this history is distinguished by. */
void sim_note(uint64_t value);

#endif
