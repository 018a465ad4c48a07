/* In the place of base/loop.c and the mailbox of base/ring.c: the event loop in virtual time.
 *
 * A pass runs what the real one runs, in its order: timers that are due, ready descriptors (here
 * with what the network delivered, in a drawn order, as epoll promises none), posted calls, the
 * after-hook. It takes no time; the process looks again when something is ready. */
#include "base/loop.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/ring.h"
#include "tests/sim/world.h"

#define PASS_DELIVERIES 32u /* of the inbox in one pass */

struct sl_watch {
    sl_loop *loop;
    int fd;
    bool dead;
    sl_watch_fn fn;
    void *context;
    sl_watch *next;
};

struct sl_timer {
    sl_loop *loop;
    sl_time_ns at;
    uint64_t order;
    sl_timer_fn fn;
    void *context;
    sl_timer *prev, *next;
};

typedef struct call {
    void (*fn)(void *context);
    void (*drop)(void *context);
    void *context;
    struct call *next;
} call;

typedef struct calls {
    call *first, *last;
    uint32_t count;
} calls;

struct sl_loop {
    sim_process *process;
    sl_watch *watches;
    sl_timer *timers;
    calls inbox, posts;
    uint64_t order;
    sl_post_fn after;
    void *after_context;
    bool in_pass;
};

static void calls_push(calls *list, const call *item)
{
    call *copy = sl_alloc(1, sizeof(*copy), "sim call");
    *copy = *item;
    if (list->last)
        list->last->next = copy;
    else
        list->first = copy;
    list->last = copy;
    list->count++;
}

static bool calls_pop(calls *list, call *out_item)
{
    call *first = list->first;
    if (!first)
        return false;
    *out_item = *first;
    list->first = first->next;
    if (!list->first)
        list->last = NULL;
    list->count--;
    sl_free(first);
    return true;
}

sl_status sl_loop_create(sl_loop **out_loop, sl_err *err)
{
    sl_assert(sim.current && !sim.current->loop);
    sl_loop *loop = sl_alloc(1, sizeof(*loop), "sim loop");
    loop->process = sim.current;
    loop->process->loop = loop;
    loop->process->wake_at = SL_NEVER;
    *out_loop = loop;
    return sl_ok();
}

static void calls_drop(calls *list)
{
    call item;
    while (calls_pop(list, &item))
        if (item.drop)
            item.drop(item.context);
}

void sim_loop_drop_inbox(sim_process *process)
{
    if (process->loop)
        calls_drop(&process->loop->inbox);
}

void sl_loop_destroy(sl_loop *loop)
{
    if (!loop)
        return;
    calls_drop(&loop->inbox);
    calls_drop(&loop->posts);
    while (loop->watches)
        sl_watch_destroy(loop->watches);
    while (loop->timers)
        sl_timer_destroy(loop->timers);
    loop->process->loop = NULL;
    loop->process->wake_serial++;
    sl_free(loop);
}

void sl_loop_run(sl_loop *loop)
{
    sl_assert(!"the world runs the loops");
}

void sl_loop_run_once(sl_loop *loop, int timeout_ms)
{
    sl_assert(!"the world runs the loops");
}

void sl_loop_stop(sl_loop *loop)
{
    loop->process->stop_asked = true;
}

sl_time_ns sl_loop_now(const sl_loop *loop)
{
    return sim_clock(loop->process);
}

void sl_loop_assert_owner(const sl_loop *loop)
{
}

void sl_loop_set_after(sl_loop *loop, sl_post_fn after, void *context)
{
    loop->after = after;
    loop->after_context = context;
}

sim_process *sim_process_of_loop(const sl_loop *loop)
{
    return loop->process;
}

/* ---- watches */

static sim_fd *fd_of(int fd)
{
    return &sim.fds[fd - 1000];
}

sl_status sl_watch_create(sl_loop *loop, int fd, uint32_t events, sl_watch_fn fn, void *context,
                          sl_watch **out_watch, sl_err *err)
{
    sl_watch *watch = sl_alloc(1, sizeof(*watch), "sim watch");
    *watch = (sl_watch){.loop = loop, .fd = fd, .fn = fn, .context = context};
    watch->next = loop->watches;
    loop->watches = watch;
    fd_of(fd)->watch = watch;
    *out_watch = watch;
    return sl_ok();
}

sl_status sl_watch_modify(sl_watch *watch, uint32_t events)
{
    return sl_ok();
}

static void watch_unlink(sl_watch *watch)
{
    for (sl_watch **at = &watch->loop->watches; *at; at = &(*at)->next) {
        if (*at == watch) {
            *at = watch->next;
            break;
        }
    }
    sl_free(watch);
}

void sl_watch_destroy(sl_watch *watch)
{
    if (!watch)
        return;
    fd_of(watch->fd)->watch = NULL;
    watch->dead = true;
    if (!watch->loop->in_pass)
        watch_unlink(watch);
}

void sim_fd_set(int fd, bool readable)
{
    sim_fd *entry = fd_of(fd);
    sl_assert(entry->used);
    entry->readable = readable;
    if (!readable)
        return;
    if (entry->watch)
        sim_wake_soon(entry->watch->loop->process);
    else
        sim.kvt_dirty = true;
}

/* ---- timers */

sl_timer *sl_timer_create(sl_loop *loop, sl_timer_fn fn, void *context)
{
    sl_timer *timer = sl_alloc(1, sizeof(*timer), "sim timer");
    *timer = (sl_timer){.loop = loop, .at = SL_NEVER, .fn = fn, .context = context};
    timer->next = loop->timers;
    if (timer->next)
        timer->next->prev = timer;
    loop->timers = timer;
    return timer;
}

void sl_timer_set(sl_timer *timer, sl_time_ns at)
{
    timer->at = at;
    timer->order = ++timer->loop->order;
    if (at != SL_NEVER && !timer->loop->in_pass)
        sim_wake(timer->loop->process, sim_world_time(timer->loop->process, at));
}

void sl_timer_destroy(sl_timer *timer)
{
    if (!timer)
        return;
    if (timer->prev)
        timer->prev->next = timer->next;
    else
        timer->loop->timers = timer->next;
    if (timer->next)
        timer->next->prev = timer->prev;
    sl_free(timer);
}

static sl_timer *next_timer(const sl_loop *loop)
{
    sl_timer *best = NULL;
    for (sl_timer *timer = loop->timers; timer; timer = timer->next)
        if (timer->at != SL_NEVER && (!best || timer->at < best->at ||
                                      (timer->at == best->at && timer->order < best->order)))
            best = timer;
    return best;
}

/* ---- calls */

bool sl_loop_post(sl_loop *loop, sl_post_fn fn, void *context)
{
    if (loop->posts.count == SL_LOOP_POSTS_MAX)
        return false;
    const call item = {.fn = fn, .context = context};
    calls_push(&loop->posts, &item);
    if (!loop->in_pass)
        sim_wake_soon(loop->process);
    return true;
}

void sim_deliver(sim_process *process, void (*fn)(void *context), void (*drop)(void *context),
                 void *context)
{
    if (!process->loop || process->dying) {
        drop(context);
        return;
    }
    const call item = {.fn = fn, .drop = drop, .context = context};
    calls_push(&process->loop->inbox, &item);
    if (!process->loop->in_pass)
        sim_wake_soon(process);
}

/* ---- a pass */

static void run_timers(sl_loop *loop)
{
    uint64_t set_before = loop->order; /* those set meanwhile wait for the next pass */
    sl_time_ns now = sim_clock(loop->process);
    for (;;) {
        sl_timer *timer = next_timer(loop);
        if (!timer || timer->at > now || timer->order > set_before)
            return;
        timer->at = SL_NEVER;
        timer->fn(timer->context, now);
    }
}

static void run_inbox(sl_loop *loop)
{
    call item;
    for (uint32_t i = 0; i < PASS_DELIVERIES && calls_pop(&loop->inbox, &item); i++)
        item.fn(item.context);
}

static void run_watches(sl_loop *loop)
{
    for (sl_watch *watch = loop->watches; watch; watch = watch->next)
        if (!watch->dead && fd_of(watch->fd)->readable)
            watch->fn(watch->context, 1);
    for (sl_watch *watch = loop->watches, *next; watch; watch = next) {
        next = watch->next;
        if (watch->dead)
            watch_unlink(watch);
    }
}

static void run_posts(sl_loop *loop)
{
    call item;
    for (uint32_t left = loop->posts.count; left > 0 && calls_pop(&loop->posts, &item); left--)
        item.fn(item.context);
}

static bool is_ready(const sl_loop *loop)
{
    if (loop->inbox.first || loop->posts.first)
        return true;
    for (const sl_watch *watch = loop->watches; watch; watch = watch->next)
        if (fd_of(watch->fd)->readable)
            return true;
    return false;
}

void sim_loop_pass(sim_process *process)
{
    sl_loop *loop = process->loop;
    sim.current = process;
    loop->in_pass = true;
    run_timers(loop);
    bool inbox_first = sim_draw(2);
    if (inbox_first)
        run_inbox(loop);
    run_watches(loop);
    if (!inbox_first)
        run_inbox(loop);
    run_posts(loop);
    if (loop->after)
        loop->after(loop->after_context);
    loop->in_pass = false;
    if (is_ready(loop))
        sim_wake_soon(process);
    const sl_timer *timer = next_timer(loop);
    if (timer)
        sim_wake(process, sim_world_time(process, timer->at));
}

/* ---- mailboxes */

struct sl_ring {
    size_t item_bytes, capacity, first, count;
    uint8_t *slots;
};

struct sl_mailbox {
    sl_ring *ring;
    int fd;
};

sl_ring *sl_ring_create(size_t item_bytes, size_t capacity)
{
    sl_ring *ring = sl_alloc(1, sizeof(*ring), "sim ring");
    ring->item_bytes = item_bytes;
    ring->capacity = capacity;
    ring->slots = sl_alloc(capacity, item_bytes, "sim ring");
    return ring;
}

void sl_ring_destroy(sl_ring *ring)
{
    if (!ring)
        return;
    sl_free(ring->slots);
    sl_free(ring);
}

bool sl_ring_push(sl_ring *ring, const void *item)
{
    if (ring->count == ring->capacity)
        return false;
    size_t at = (ring->first + ring->count++) % ring->capacity;
    memcpy(ring->slots + at * ring->item_bytes, item, ring->item_bytes);
    return true;
}

bool sl_ring_pop(sl_ring *ring, void *out_item)
{
    if (ring->count == 0)
        return false;
    memcpy(out_item, ring->slots + ring->first * ring->item_bytes, ring->item_bytes);
    ring->first = (ring->first + 1) % ring->capacity;
    ring->count--;
    return true;
}

size_t sl_ring_count(const sl_ring *ring)
{
    return ring->count;
}

sl_status sl_mailbox_create(size_t item_bytes, size_t capacity, sl_mailbox **out_mailbox,
                            sl_err *err)
{
    sl_mailbox *mailbox = sl_alloc(1, sizeof(*mailbox), "sim mailbox");
    mailbox->ring = sl_ring_create(item_bytes, capacity);
    mailbox->fd = sim_fd_open();
    *out_mailbox = mailbox;
    return sl_ok();
}

void sl_mailbox_destroy(sl_mailbox *mailbox)
{
    if (!mailbox)
        return;
    sim_fd_close(mailbox->fd);
    sl_ring_destroy(mailbox->ring);
    sl_free(mailbox);
}

int sl_mailbox_fd(const sl_mailbox *mailbox)
{
    return mailbox->fd;
}

void sl_mailbox_wake(sl_mailbox *mailbox)
{
    sim_fd_set(mailbox->fd, true);
}

bool sl_mailbox_push(sl_mailbox *mailbox, const void *item)
{
    if (!sl_ring_push(mailbox->ring, item))
        return false;
    sl_mailbox_wake(mailbox);
    return true;
}

void sl_mailbox_clear(sl_mailbox *mailbox)
{
    sim_fd_set(mailbox->fd, false);
}

bool sl_mailbox_pop(sl_mailbox *mailbox, void *out_item)
{
    return sl_ring_pop(mailbox->ring, out_item);
}

void sl_mailbox_wait(sl_mailbox *mailbox, uint64_t deadline_ns)
{
    sl_assert(!"nobody waits in the simulated world");
}
