/* See world.h. Owns the clock, the queue and the randomness; knows processes only by their loops.
 */
#include "tests/sim/world.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"

#define EVENTS_MAX   (1u << 20)
#define FD_FIRST     1000 /* of no real descriptor */
#define WAKE_MIN_NS  1000u
#define WAKE_MAX_NS  30000u
#define KVT_DELAY_NS 20000u

struct sim_event {
    sl_time_ns at;
    uint64_t order;
    sim_fn fn;
    void *context;
    uint64_t tag;
};

sim_world sim;

/* ---- randomness */

static uint64_t next_random(void)
{
    sim.random += 0x9e3779b97f4a7c15ull;
    return sim_mix(sim.random, 0);
}

uint64_t sim_draw(uint64_t bound)
{
    sl_assert(bound > 0);
    return next_random() % bound;
}

uint64_t sim_between(uint64_t low, uint64_t high)
{
    return high > low ? low + sim_draw(high - low + 1) : low;
}

bool sim_chance(uint32_t ppm)
{
    return ppm > 0 && sim_draw(1000000) < ppm;
}

/* In the place of base/rng.c's, by --wrap. */
void __wrap_sl_random_bytes(void *out_bytes, size_t size);
uint64_t __wrap_sl_random_u64(void);

void __wrap_sl_random_bytes(void *out_bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        ((uint8_t *)out_bytes)[i] = (uint8_t)next_random();
}

uint64_t __wrap_sl_random_u64(void)
{
    return next_random();
}

/* ---- clocks: in the place of base/clock.c */

sl_time_ns sim_clock(const sim_process *process)
{
    return sim.now + sim.skew + process->clock_offset_ns;
}

sl_time_ns sim_world_time(const sim_process *process, sl_time_ns clock)
{
    if (clock == SL_NEVER)
        return SL_NEVER;
    return clock > process->clock_offset_ns ? clock - process->clock_offset_ns : 0;
}

sl_time_ns sl_now_ns(void)
{
    return sim.current ? sim_clock(sim.current) : sim.now;
}

uint64_t sl_wall_ns(void)
{
    return 1800000000 * SL_S_NS + sim.now;
}

/* ---- the queue */

static bool earlier(const sim_event *a, const sim_event *b)
{
    return a->at != b->at ? a->at < b->at : a->order < b->order;
}

void sim_post(sl_time_ns at, sim_fn fn, void *context, uint64_t tag)
{
    if (sim.count == sim.capacity) {
        sl_assert(sim.capacity < EVENTS_MAX); /* somebody posts without end */
        sim.capacity = sim.capacity ? 2 * sim.capacity : 1024;
        sim.heap = sl_realloc(sim.heap, sim.capacity, sizeof(*sim.heap), "sim events");
    }
    sim_event event = {at > sim.now ? at : sim.now, ++sim.order, fn, context, tag};
    uint32_t slot = sim.count++;
    for (; slot > 0 && earlier(&event, &sim.heap[(slot - 1) / 2]); slot = (slot - 1) / 2)
        sim.heap[slot] = sim.heap[(slot - 1) / 2];
    sim.heap[slot] = event;
}

static sim_event pop(void)
{
    sim_event top = sim.heap[0], last = sim.heap[--sim.count];
    uint32_t slot = 0;
    for (uint32_t down = 1; down < sim.count; down = 2 * slot + 1) {
        if (down + 1 < sim.count && earlier(&sim.heap[down + 1], &sim.heap[down]))
            down++;
        if (!earlier(&sim.heap[down], &last))
            break;
        sim.heap[slot] = sim.heap[down];
        slot = down;
    }
    sim.heap[slot] = last;
    return top;
}

static void step_kvt(void)
{
    uint64_t before = kvt_fake_messages(sim.kvt);
    sim.kvt_dirty = false;
    sim.kvt_due = kvt_fake_step(sim.kvt, sim.now);
    uint64_t moved = kvt_fake_messages(sim.kvt) - before;
    sim.steps += moved;
    sim_note(moved);
}

bool sim_step(sl_time_ns end)
{
    if (sim.kvt_dirty) {
        step_kvt();
        return true;
    }
    sl_time_ns next = sim.count > 0 ? sim.heap[0].at : SL_NEVER;
    if (sim.kvt_due <= next && sim.kvt_due <= end) {
        sim.now = sim.kvt_due > sim.now ? sim.kvt_due : sim.now;
        step_kvt();
        return true;
    }
    if (next > end || next == SL_NEVER) {
        sim.now = end > sim.now ? end : sim.now;
        return false;
    }
    sim_event event = pop();
    sim.now = event.at;
    sim.steps++;
    sim_note(event.at);
    event.fn(event.context, event.tag);
    sim.current = NULL;
    return true;
}

bool sim_step_drop(void)
{
    if (sim.count == 0 || sim.ended++ > EVENTS_MAX)
        return false;
    sim_event event = pop();
    sim.now = event.at;
    event.fn(event.context, event.tag);
    return true;
}

void sim_note(uint64_t value)
{
    sim.digest = sim_mix(sim.digest, value);
}

void sim_world_init(uint64_t seed)
{
    bool traced = sim.traced;
    memset(&sim, 0, sizeof(sim));
    sim.traced = traced;
    sim.seed = seed;
    sim.random = sim_mix(seed, 0x736c75696365ull);
    sim.now = SL_S_NS;
    sim.kvt_due = SL_NEVER;
    sim.kvt = kvt_fake_create(next_random());
    const kvt_fake_faults calm = {.delay_min_ns = KVT_DELAY_NS, .delay_max_ns = KVT_DELAY_NS};
    kvt_fake_faults_set(sim.kvt, &calm);
    sim.delay_min_ns = sim.delay_max_ns = 50000;
    sim.wake_min_ns = WAKE_MIN_NS;
    sim.wake_max_ns = WAKE_MAX_NS;
}

void sim_world_fini(void)
{
    kvt_fake_destroy(sim.kvt);
    sl_free(sim.heap);
    sim.kvt = NULL;
    sim.heap = NULL;
    sim.count = sim.capacity = 0;
}

/* ---- processes */

static void on_wake(void *context, uint64_t tag)
{
    sim_process *process = context;
    if (tag != process->wake_serial)
        return;
    process->wake_at = SL_NEVER;
    if (process->loop && process->alive && !process->paused)
        sim_loop_pass(process);
}

void sim_wake(sim_process *process, sl_time_ns at)
{
    if (at == SL_NEVER || process->paused || !process->loop || process->wake_at <= at)
        return;
    process->wake_at = at;
    sim_post(at, on_wake, process, ++process->wake_serial);
}

void sim_wake_soon(sim_process *process)
{
    sim_wake(process,
             sim.now + sim.skew + sim_between(sim.wake_min_ns, sim.wake_max_ns) + process->lag_ns);
}

sim_process *sim_process_at(const char *address)
{
    for (uint32_t i = 0; i < sim.process_count; i++)
        if (strcmp(sim.processes[i].address, address) == 0)
            return &sim.processes[i];
    return NULL;
}

sim_process *sim_process_named(const char *name)
{
    for (uint32_t i = 0; i < sim.process_count; i++)
        if (strcmp(sim.processes[i].name, name) == 0)
            return &sim.processes[i];
    return NULL;
}

/* ---- descriptors */

int sim_fd_open(void)
{
    for (uint32_t i = 0; i < SIM_FDS_MAX; i++) {
        if (sim.fds[i].used)
            continue;
        sim.fds[i] = (sim_fd){.used = true};
        return FD_FIRST + (int)i;
    }
    sl_assert(!"a simulated descriptor is left");
    return -1;
}

static sim_fd *fd_at(int fd)
{
    sl_assert(fd >= FD_FIRST && fd < FD_FIRST + (int)SIM_FDS_MAX && sim.fds[fd - FD_FIRST].used);
    return &sim.fds[fd - FD_FIRST];
}

void sim_fd_close(int fd)
{
    *fd_at(fd) = (sim_fd){0};
}

/* ---- telling */

/* At once: what comes after a broken rule means nothing. The seed brings it back. */
void sim_violation(const char *rule, const char *format, ...)
{
    va_list list;
    printf("violation: %s: ", rule);
    va_start(list, format);
    vprintf(format, list);
    va_end(list);
    printf(" (seed %llu, step %llu, %.6f s)\n", (unsigned long long)sim.seed,
           (unsigned long long)sim.steps, (double)sim.now / 1e9);
    fflush(stdout);
    _exit(1);
}

/* In the place of base/assert.c's. */
void __wrap_sl_assert_failed(const char *expression, const char *file, int line);

void __wrap_sl_assert_failed(const char *expression, const char *file, int line)
{
    sim_violation("assertions hold", "%s:%d: %s", file, line, expression);
}

void sim_trace(const char *format, ...)
{
    va_list list;
    if (!sim.traced)
        return;
    fprintf(stderr, "%12.6f %-8s ", (double)(sim.now + sim.skew) / 1e9,
            sim.current ? sim.current->name : "world");
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
}
