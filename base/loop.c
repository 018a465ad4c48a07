/* Event loop over epoll: timers in a binary heap, posted calls in a bounded array behind a mutex.
 *
 * Owns its epoll and event descriptors, watches and timers that were not destroyed. One thread runs
 * it; only sl_loop_post and sl_loop_stop may come from elsewhere. The mutex is held for a few
 * instructions, never across a callback.
 *
 * A destroyed watch stays as a corpse until the end of the pass, because the events that epoll
 * already returned may still name it. Callbacks run with nothing of the loop half-changed, so they
 * may create and destroy anything but the loop itself. */
#include "base/loop.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"

#define EVENTS_PER_PASS 256
#define TIMERS_MAX      ((size_t)1 << 20)

struct sl_watch {
    sl_loop *loop;
    int fd;
    bool dead;
    sl_watch_fn fn;
    void *context;
    sl_watch *prev, *next; /* live list; `next` also links corpses */
};

struct sl_timer {
    sl_loop *loop;
    sl_time_ns at;
    uint64_t order;  /* equal times run in the order they were set */
    size_t position; /* in the heap, from 1; 0 = not armed */
    sl_timer_fn fn;
    void *context;
    sl_timer *prev, *next;
};

typedef struct posted_call {
    sl_post_fn fn;
    void *context;
} posted_call;

struct sl_loop {
    int epoll_fd;
    int event_fd;
    _Atomic uintptr_t owner; /* address of the running thread's own_mark; 0 = not running */
    _Atomic bool stopping;
    bool in_pass, in_timers;
    sl_time_ns now, pass_start;
    sl_watch *watches, *corpses;
    sl_timer *timers;
    sl_timer **heap; /* from index 1 */
    size_t heap_count, heap_capacity;
    uint64_t timer_order;
    sl_post_fn after;
    void *after_context;
    pthread_mutex_t post_lock;
    posted_call *posts; /* ring of SL_LOOP_POSTS_MAX, guarded by post_lock */
    size_t post_first, post_count;
};

static _Thread_local char own_mark;

static uintptr_t self_id(void)
{
    return (uintptr_t)&own_mark;
}

void sl_loop_assert_owner(const sl_loop *loop)
{
    uintptr_t owner = atomic_load_explicit(&loop->owner, memory_order_relaxed);
    sl_assert(owner == 0 || owner == self_id());
}

sl_status sl_loop_create(sl_loop **out_loop, sl_err *err)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    sl_loop *loop = sl_alloc(1, sizeof(*loop), "loop");
    loop->event_fd = -1;
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (loop->epoll_fd >= 0)
        loop->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (loop->event_fd < 0 ||
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->event_fd, &event) != 0) {
        sl_status status = sl_fail_errno(err, SL_IO, "create an event loop");
        if (loop->event_fd >= 0)
            close(loop->event_fd);
        if (loop->epoll_fd >= 0)
            close(loop->epoll_fd);
        sl_free(loop);
        return status;
    }
    sl_assert(pthread_mutex_init(&loop->post_lock, NULL) == 0);
    loop->posts = sl_alloc(SL_LOOP_POSTS_MAX, sizeof(*loop->posts), "loop posts");
    *out_loop = loop;
    return sl_ok();
}

static void bury_corpses(sl_loop *loop)
{
    while (loop->corpses) {
        sl_watch *next = loop->corpses->next;
        sl_free(loop->corpses);
        loop->corpses = next;
    }
}

void sl_loop_destroy(sl_loop *loop)
{
    if (!loop)
        return;
    sl_loop_assert_owner(loop);
    sl_assert(!loop->in_pass);
    while (loop->watches)
        sl_watch_destroy(loop->watches);
    bury_corpses(loop);
    while (loop->timers)
        sl_timer_destroy(loop->timers);
    close(loop->event_fd);
    close(loop->epoll_fd);
    pthread_mutex_destroy(&loop->post_lock);
    sl_free(loop->posts);
    sl_free(loop->heap);
    sl_free(loop);
}

static void loop_wake(sl_loop *loop)
{
    uint64_t one = 1;
    ssize_t ignored = write(loop->event_fd, &one, sizeof(one));
    (void)ignored; /* EAGAIN: already readable */
}

void sl_loop_stop(sl_loop *loop)
{
    int saved = errno; /* may run in a signal handler */
    atomic_store_explicit(&loop->stopping, true, memory_order_release);
    loop_wake(loop);
    errno = saved;
}

bool sl_loop_post(sl_loop *loop, sl_post_fn fn, void *context)
{
    posted_call call = {fn, context};
    pthread_mutex_lock(&loop->post_lock);
    size_t count = loop->post_count;
    if (count < SL_LOOP_POSTS_MAX) {
        loop->posts[(loop->post_first + count) % SL_LOOP_POSTS_MAX] = call;
        loop->post_count++;
    }
    pthread_mutex_unlock(&loop->post_lock);
    if (count == 0)
        loop_wake(loop);
    return count < SL_LOOP_POSTS_MAX;
}

static bool take_post(sl_loop *loop, posted_call *out_call)
{
    pthread_mutex_lock(&loop->post_lock);
    bool any = loop->post_count > 0;
    if (any) {
        *out_call = loop->posts[loop->post_first];
        loop->post_first = (loop->post_first + 1) % SL_LOOP_POSTS_MAX;
        loop->post_count--;
    }
    pthread_mutex_unlock(&loop->post_lock);
    return any;
}

static size_t posts_waiting(sl_loop *loop)
{
    pthread_mutex_lock(&loop->post_lock);
    size_t count = loop->post_count;
    pthread_mutex_unlock(&loop->post_lock);
    return count;
}

sl_time_ns sl_loop_now(const sl_loop *loop)
{
    return loop->in_pass ? loop->now : sl_now_ns();
}

void sl_loop_set_after(sl_loop *loop, sl_post_fn after, void *context)
{
    sl_loop_assert_owner(loop);
    loop->after = after;
    loop->after_context = context;
}

/* --- watches --- */

sl_status sl_watch_create(sl_loop *loop, int fd, uint32_t events, sl_watch_fn fn, void *context,
                          sl_watch **out_watch, sl_err *err)
{
    sl_loop_assert_owner(loop);
    sl_watch *watch = sl_alloc(1, sizeof(*watch), "watch");
    struct epoll_event event = {.events = events, .data.ptr = watch};
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        sl_free(watch);
        return sl_fail_errno(err, SL_IO, "watch descriptor %d", fd);
    }
    watch->loop = loop;
    watch->fd = fd;
    watch->fn = fn;
    watch->context = context;
    watch->next = loop->watches;
    if (loop->watches)
        loop->watches->prev = watch;
    loop->watches = watch;
    *out_watch = watch;
    return sl_ok();
}

sl_status sl_watch_modify(sl_watch *watch, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = watch};
    sl_loop_assert_owner(watch->loop);
    sl_assert(!watch->dead);
    if (epoll_ctl(watch->loop->epoll_fd, EPOLL_CTL_MOD, watch->fd, &event) != 0)
        return sl_fail_errno(NULL, SL_IO, "modify the watch of descriptor %d", watch->fd);
    return sl_ok();
}

void sl_watch_destroy(sl_watch *watch)
{
    if (!watch)
        return;
    sl_loop *loop = watch->loop;
    sl_loop_assert_owner(loop);
    sl_assert(!watch->dead);
    /* Fails if the owner closed the descriptor already: then the kernel removed it. */
    (void)epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
    if (watch->prev)
        watch->prev->next = watch->next;
    else
        loop->watches = watch->next;
    if (watch->next)
        watch->next->prev = watch->prev;
    if (!loop->in_pass) {
        sl_free(watch);
        return;
    }
    watch->dead = true;
    watch->next = loop->corpses;
    loop->corpses = watch;
}

/* --- timers --- */

static bool timer_before(const sl_timer *a, const sl_timer *b)
{
    return a->at != b->at ? a->at < b->at : a->order < b->order;
}

static void heap_place(sl_loop *loop, size_t position, sl_timer *timer)
{
    loop->heap[position] = timer;
    timer->position = position;
}

static void heap_up(sl_loop *loop, size_t position)
{
    sl_timer *timer = loop->heap[position];
    while (position > 1 && timer_before(timer, loop->heap[position / 2])) {
        heap_place(loop, position, loop->heap[position / 2]);
        position /= 2;
    }
    heap_place(loop, position, timer);
}

static void heap_down(sl_loop *loop, size_t position)
{
    sl_timer *timer = loop->heap[position];
    for (;;) {
        size_t child = position * 2;
        if (child > loop->heap_count)
            break;
        if (child < loop->heap_count && timer_before(loop->heap[child + 1], loop->heap[child]))
            child++;
        if (!timer_before(loop->heap[child], timer))
            break;
        heap_place(loop, position, loop->heap[child]);
        position = child;
    }
    heap_place(loop, position, timer);
}

static void timer_disarm(sl_timer *timer)
{
    sl_loop *loop = timer->loop;
    size_t position = timer->position;
    if (position == 0)
        return;
    timer->position = 0;
    sl_timer *last = loop->heap[loop->heap_count--];
    if (last == timer)
        return;
    heap_place(loop, position, last);
    heap_up(loop, position);
    heap_down(loop, last->position);
}

sl_timer *sl_timer_create(sl_loop *loop, sl_timer_fn fn, void *context)
{
    sl_loop_assert_owner(loop);
    sl_timer *timer = sl_alloc(1, sizeof(*timer), "timer");
    timer->loop = loop;
    timer->fn = fn;
    timer->context = context;
    timer->next = loop->timers;
    if (loop->timers)
        loop->timers->prev = timer;
    loop->timers = timer;
    return timer;
}

void sl_timer_set(sl_timer *timer, sl_time_ns at)
{
    sl_loop *loop = timer->loop;
    sl_loop_assert_owner(loop);
    timer_disarm(timer);
    if (at == SL_NEVER)
        return;
    /* A timer set to "now" by a timer runs in the next pass: descriptors get their turn. */
    if (loop->in_timers && at <= loop->pass_start)
        at = loop->pass_start + 1;
    if (loop->heap_count + 2 > loop->heap_capacity) {
        sl_assert(loop->heap_count < TIMERS_MAX);
        loop->heap_capacity = loop->heap_capacity ? loop->heap_capacity * 2 : 64;
        loop->heap =
            sl_realloc(loop->heap, loop->heap_capacity, sizeof(*loop->heap), "loop timer heap");
    }
    timer->at = at;
    timer->order = loop->timer_order++;
    heap_place(loop, ++loop->heap_count, timer);
    heap_up(loop, loop->heap_count);
}

void sl_timer_destroy(sl_timer *timer)
{
    if (!timer)
        return;
    sl_loop *loop = timer->loop;
    sl_loop_assert_owner(loop);
    timer_disarm(timer);
    if (timer->prev)
        timer->prev->next = timer->next;
    else
        loop->timers = timer->next;
    if (timer->next)
        timer->next->prev = timer->prev;
    sl_free(timer);
}

/* --- the pass --- */

static int wait_ms(sl_loop *loop, int timeout_ms)
{
    if (timeout_ms == 0 || posts_waiting(loop) > 0 ||
        atomic_load_explicit(&loop->stopping, memory_order_acquire))
        return 0;
    if (loop->heap_count == 0)
        return timeout_ms;
    sl_time_ns now = sl_now_ns(), at = loop->heap[1]->at;
    uint64_t left_ms = at > now ? (at - now + SL_MS_NS - 1) / SL_MS_NS : 0;
    if (left_ms > 60000)
        left_ms = 60000; /* a pass without work does no harm */
    return timeout_ms >= 0 && (uint64_t)timeout_ms < left_ms ? timeout_ms : (int)left_ms;
}

static void run_timers(sl_loop *loop)
{
    loop->in_timers = true;
    while (loop->heap_count > 0 && loop->heap[1]->at <= loop->pass_start) {
        sl_timer *timer = loop->heap[1];
        timer_disarm(timer);
        loop->now = sl_now_ns();
        timer->fn(timer->context, loop->now); /* may destroy the timer */
    }
    loop->in_timers = false;
}

static void run_watches(sl_loop *loop, const struct epoll_event *events, int count)
{
    for (int i = 0; i < count; i++) {
        sl_watch *watch = events[i].data.ptr;
        if (!watch) {
            uint64_t drained;
            ssize_t ignored = read(loop->event_fd, &drained, sizeof(drained));
            (void)ignored;
        } else if (!watch->dead) {
            loop->now = sl_now_ns();
            watch->fn(watch->context, events[i].events);
        }
    }
}

/* Only what waited at the start of this phase: calls that post again cannot starve descriptors. */
static void run_posts(sl_loop *loop)
{
    posted_call call;
    for (size_t left = posts_waiting(loop); left > 0 && take_post(loop, &call); left--) {
        loop->now = sl_now_ns();
        call.fn(call.context);
    }
}

static void run_pass(sl_loop *loop, int timeout_ms)
{
    struct epoll_event events[EVENTS_PER_PASS];
    int count = epoll_wait(loop->epoll_fd, events, EVENTS_PER_PASS, wait_ms(loop, timeout_ms));
    if (count < 0) {
        sl_assert(errno == EINTR);
        count = 0;
    }
    loop->in_pass = true;
    loop->pass_start = sl_now_ns();
    run_timers(loop);
    run_watches(loop, events, count);
    run_posts(loop);
    if (loop->after) {
        loop->now = sl_now_ns();
        loop->after(loop->after_context);
    }
    loop->in_pass = false;
    bury_corpses(loop);
}

static void loop_enter(sl_loop *loop)
{
    sl_assert(!loop->in_pass);
    uintptr_t nobody = 0;
    sl_assert(atomic_compare_exchange_strong(&loop->owner, &nobody, self_id()));
}

static void loop_leave(sl_loop *loop)
{
    atomic_store_explicit(&loop->owner, 0, memory_order_release);
}

void sl_loop_run_once(sl_loop *loop, int timeout_ms)
{
    loop_enter(loop);
    run_pass(loop, timeout_ms);
    loop_leave(loop);
}

void sl_loop_run(sl_loop *loop)
{
    loop_enter(loop);
    while (!atomic_load_explicit(&loop->stopping, memory_order_acquire))
        run_pass(loop, -1);
    atomic_store_explicit(&loop->stopping, false, memory_order_relaxed);
    loop_leave(loop);
}
