/* Event loop: order within a pass, destroying inside callbacks, timers, posts, stopping. */
#include "tests/unit/test.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/loop.h"

static sl_loop *loop;
static char trace[256]; /* what ran, one letter each */

static void note(char c)
{
    size_t size = strlen(trace);
    assert_true(size + 1 < sizeof(trace));
    trace[size] = c;
    trace[size + 1] = '\0';
}

static int setup(void **state)
{
    sl_err err;
    trace[0] = '\0';
    return sl_is_ok(sl_loop_create(&loop, &err)) ? 0 : -1;
}

static int teardown(void **state)
{
    sl_loop_destroy(loop);
    return 0;
}

static void on_note_timer(void *context, sl_time_ns now)
{
    note(*(const char *)context);
}

static void on_note_watch(void *context, uint32_t events)
{
    note(*(const char *)context);
}

static void on_note_post(void *context)
{
    note(*(const char *)context);
}

static sl_watch *watch_of(int fd, uint32_t events, sl_watch_fn fn, void *context)
{
    sl_err err;
    sl_watch *watch = NULL;
    assert_ok(sl_watch_create(loop, fd, events, fn, context, &watch, &err), &err);
    return watch;
}

TEST(order_within_a_pass)
{
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(write(fds[1], "x", 1), 1);
    sl_watch *watch = watch_of(fds[0], EPOLLIN, on_note_watch, "w");
    sl_timer *timer = sl_timer_create(loop, on_note_timer, "t");
    sl_timer_set(timer, sl_now_ns());
    assert_true(sl_loop_post(loop, on_note_post, "p"));
    assert_true(sl_loop_post(loop, on_note_post, "q"));
    sl_loop_set_after(loop, on_note_post, "a");
    sl_loop_run_once(loop, -1);
    assert_string_equal(trace, "twpqa");
    sl_watch_destroy(watch);
    sl_timer_destroy(timer);
    close(fds[0]);
    close(fds[1]);
}

TEST(timers_run_by_time_then_by_setting)
{
    sl_timer *timers[5];
    static const char *const names[] = {"c", "a", "d", "b", "x"};
    sl_time_ns now = sl_now_ns();
    const sl_time_ns at[] = {now - 10, now - 30, now - 10, now - 20, SL_NEVER};
    for (int i = 0; i < 5; i++) {
        timers[i] = sl_timer_create(loop, on_note_timer, (void *)names[i]);
        sl_timer_set(timers[i], at[i]);
    }
    sl_loop_run_once(loop, 0);
    sl_loop_run_once(loop, 0);
    assert_string_equal(trace, "abcd");
    for (int i = 0; i < 5; i++)
        sl_timer_destroy(timers[i]);
    sl_timer_destroy(NULL);
}

TEST(many_timers_keep_the_heap_in_order)
{
    static sl_timer *timers[1000];
    sl_time_ns now = sl_now_ns();
    uint64_t random = 1;
    for (int i = 0; i < 1000; i++) {
        timers[i] = sl_timer_create(loop, on_note_timer, "x");
        sl_timer_set(timers[i],
                     now + SL_S_NS * 1000 + (random = random * 6364136223846793005ull + 1) % 1000);
    }
    for (int i = 0; i < 1000; i += 2) /* re-arm and disarm at random places */
        sl_timer_set(timers[i], i % 4 ? SL_NEVER : now - (sl_time_ns)(i % 100));
    for (int i = 1; i < 1000; i += 2)
        sl_timer_destroy(timers[i]);
    trace[0] = '\0';
    for (int i = 0; i < 1000; i += 4)
        sl_timer_set(timers[i], i < 40 ? now - 1 : SL_NEVER);
    sl_loop_run_once(loop, 0);
    assert_string_equal(trace, "xxxxxxxxxx");
    /* The rest is the loop's to free. */
}

static sl_timer *again;
static void on_again(void *context, sl_time_ns now)
{
    note('t');
    sl_timer_set(again, now); /* due at once: but in the next pass */
}

TEST(timer_set_to_now_by_itself_waits_a_pass)
{
    again = sl_timer_create(loop, on_again, NULL);
    sl_timer_set(again, 0);
    sl_loop_run_once(loop, 0);
    assert_string_equal(trace, "t");
    sl_loop_run_once(loop, -1);
    assert_string_equal(trace, "tt");
}

static void on_destroy_timer(void *context, sl_time_ns now)
{
    note('d');
    sl_timer_destroy(*(sl_timer **)context);
}

TEST(timer_destroyed_in_callbacks)
{
    sl_timer *self = NULL, *other = NULL;
    sl_time_ns now = sl_now_ns();
    self = sl_timer_create(loop, on_destroy_timer, &self);
    sl_timer *killer = sl_timer_create(loop, on_destroy_timer, &other);
    other = sl_timer_create(loop, on_note_timer, "x");
    sl_timer_set(self, now - 3);
    sl_timer_set(killer, now - 2);
    sl_timer_set(other, now - 1);
    sl_loop_run_once(loop, 0);
    assert_string_equal(trace, "dd");
}

typedef struct pair {
    sl_watch *watches[2];
} pair;

/* Both descriptors are ready in one pass; whichever comes first destroys both. */
static void on_destroy_both(void *context, uint32_t events)
{
    pair *p = context;
    note('d');
    sl_watch_destroy(p->watches[0]);
    sl_watch_destroy(p->watches[1]);
}

TEST(watches_destroyed_in_the_same_pass_stay_silent)
{
    int fds[2][2];
    pair p;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pipe(fds[i]), 0);
        assert_int_equal(write(fds[i][1], "x", 1), 1);
        p.watches[i] = watch_of(fds[i][0], EPOLLIN, on_destroy_both, &p);
    }
    sl_loop_run_once(loop, 0);
    sl_loop_run_once(loop, 0);
    assert_string_equal(trace, "d");
    for (int i = 0; i < 2; i++) {
        close(fds[i][0]);
        close(fds[i][1]);
    }
}

typedef struct replace {
    sl_watch *watch;
    int old_fd, new_fd;
} replace;

/* Destroys its watch, closes, and gets the same number for another descriptor. */
static void on_replace(void *context, uint32_t events)
{
    replace *r = context;
    sl_watch_destroy(r->watch);
    close(r->old_fd);
    assert_int_equal(dup2(r->new_fd, r->old_fd), r->old_fd);
    r->watch = watch_of(r->old_fd, EPOLLIN, on_note_watch, "n");
    note('r');
}

TEST(descriptor_number_reused_in_a_callback)
{
    int fds[2], silent[2];
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(pipe(silent), 0);
    assert_int_equal(write(fds[1], "x", 1), 1);
    replace r = {NULL, fds[0], silent[0]};
    r.watch = watch_of(fds[0], EPOLLIN, on_replace, &r);
    sl_loop_run_once(loop, 0);
    sl_loop_run_once(loop, 0);
    assert_string_equal(trace, "r");
    assert_int_equal(write(silent[1], "x", 1), 1);
    sl_loop_run_once(loop, 0);
    assert_string_equal(trace, "rn");
    sl_watch_destroy(r.watch);
    close(fds[0]);
    close(fds[1]);
    close(silent[0]);
    close(silent[1]);
}

TEST(watch_events_can_change)
{
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(write(fds[1], "x", 1), 1);
    sl_watch *watch = watch_of(fds[0], 0, on_note_watch, "w");
    sl_loop_run_once(loop, 0);
    assert_string_equal(trace, "");
    assert_true(sl_is_ok(sl_watch_modify(watch, EPOLLIN)));
    sl_loop_run_once(loop, 0);
    assert_string_equal(trace, "w");
    sl_watch_destroy(watch);
    sl_watch_destroy(NULL);
    sl_err err;
    assert_code(sl_watch_create(loop, 9999, EPOLLIN, on_note_watch, NULL, &watch, &err), SL_IO);
    close(fds[0]);
    close(fds[1]);
}

static void on_post_again(void *context)
{
    note('p');
    assert_true(sl_loop_post(loop, on_post_again, NULL));
}

TEST(posts_by_posts_wait_a_pass)
{
    assert_true(sl_loop_post(loop, on_post_again, NULL));
    sl_loop_run_once(loop, -1);
    assert_string_equal(trace, "p");
    sl_loop_run_once(loop, -1); /* must not sleep */
    assert_string_equal(trace, "pp");
}

static void on_count(void *context)
{
    (*(size_t *)context)++;
}

TEST(posts_are_bounded)
{
    size_t count = 0;
    for (size_t i = 0; i < SL_LOOP_POSTS_MAX; i++)
        assert_true(sl_loop_post(loop, on_count, &count));
    assert_false(sl_loop_post(loop, on_count, &count));
    sl_loop_run_once(loop, 0);
    assert_int_equal(count, SL_LOOP_POSTS_MAX);
    assert_true(sl_loop_post(loop, on_count, &count));
}

#define POSTS_PER_THREAD 20000

typedef struct poster {
    pthread_t thread;
    size_t *count;
    _Atomic int *left;
} poster;

static void *post_many(void *context)
{
    poster *p = context;
    for (int i = 0; i < POSTS_PER_THREAD; i++)
        while (!sl_loop_post(loop, on_count, p->count))
            continue;
    if (atomic_fetch_sub(p->left, 1) == 1)
        sl_loop_stop(loop);
    return NULL;
}

TEST(posts_from_threads_all_run)
{
    size_t count = 0; /* touched by the loop's thread alone */
    _Atomic int left = 2;
    poster posters[2];
    for (int i = 0; i < 2; i++) {
        posters[i] = (poster){.count = &count, .left = &left};
        assert_int_equal(pthread_create(&posters[i].thread, NULL, post_many, &posters[i]), 0);
    }
    sl_loop_run(loop);
    for (int i = 0; i < 2; i++)
        pthread_join(posters[i].thread, NULL);
    while (count < 2 * POSTS_PER_THREAD)
        sl_loop_run_once(loop, 0);
    assert_int_equal(count, 2 * POSTS_PER_THREAD);
}

TEST(stop_before_run_is_kept)
{
    sl_loop_stop(loop);
    sl_loop_run(loop); /* returns at once */
    sl_loop_run_once(loop, 0);
}

static void on_alarm(int number)
{
    sl_loop_stop(loop);
}

TEST(stop_from_a_signal_handler)
{
    struct sigaction action = {.sa_handler = on_alarm}, old;
    sigaction(SIGALRM, &action, &old);
    struct itimerval soon = {{0, 0}, {0, 1000}};
    assert_int_equal(setitimer(ITIMER_REAL, &soon, NULL), 0);
    sl_loop_run(loop);
    sigaction(SIGALRM, &old, NULL);
}

static void on_foreign_thread_use(void *context)
{
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, (void *(*)(void *))(uintptr_t)context, NULL), 0);
    pthread_join(thread, NULL);
}

static void *create_timer_elsewhere(void *context)
{
    sl_timer_create(loop, on_note_timer, "x");
    return NULL;
}

TEST(use_by_another_thread_aborts)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGABRT, SIG_DFL);
        close(STDERR_FILENO);
        if (!sl_loop_post(loop, on_foreign_thread_use, (void *)(uintptr_t)create_timer_elsewhere))
            _exit(1);
        sl_loop_run_once(loop, 0);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static sl_time_ns seen_now;
static void on_see_now(void *context)
{
    seen_now = sl_loop_now(loop);
}

TEST(now_is_set_in_callbacks_and_fresh_outside)
{
    sl_time_ns before = sl_now_ns();
    assert_true(sl_loop_now(loop) >= before);
    assert_true(sl_loop_post(loop, on_see_now, NULL));
    sl_loop_run_once(loop, 0);
    assert_true(seen_now >= before && seen_now <= sl_now_ns());
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
static const struct CMUnitTest tests[] = {
    T(order_within_a_pass),
    T(timers_run_by_time_then_by_setting),
    T(many_timers_keep_the_heap_in_order),
    T(timer_set_to_now_by_itself_waits_a_pass),
    T(timer_destroyed_in_callbacks),
    T(watches_destroyed_in_the_same_pass_stay_silent),
    T(descriptor_number_reused_in_a_callback),
    T(watch_events_can_change),
    T(posts_by_posts_wait_a_pass),
    T(posts_are_bounded),
    T(posts_from_threads_all_run),
    T(stop_before_run_is_kept),
    T(stop_from_a_signal_handler),
    T(use_by_another_thread_aborts),
    T(now_is_set_in_callbacks_and_fresh_outside),
};
TEST_MAIN(tests)
