/* A wall clock that is wrong, preloaded into one process of a cluster test: SLUICE_SKEW_S seconds
 * are added to the time of day that it reads. Monotonic time is the machine's. Waits until a time
 * of day are given to the kernel in its own time, as its clock is not moved. Thread: any. */
#include <dlfcn.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define WALL_MIN_S 1000000000 /* what is less is no time of day of ours: monotonic */

static time_t skew_s;
static int (*clock_real)(clockid_t, struct timespec *);
static long (*syscall_real)(long, ...);
static int (*cond_real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);

__attribute__((constructor)) static void find(void)
{
    const char *text = getenv("SLUICE_SKEW_S");
    clock_real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    syscall_real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    /* The oldest one, that a plain search may find, is another function. */
    void *cond = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!cond)
        cond = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    cond_real = (int (*)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *))cond;
    skew_s = text ? atol(text) : 0;
}

static const struct timespec *to_kernel(const struct timespec *at, struct timespec *room)
{
    if (!at || at->tv_sec < WALL_MIN_S)
        return at;
    *room = *at;
    room->tv_sec -= skew_s;
    return room;
}

int clock_gettime(clockid_t clock, struct timespec *out)
{
    if (!clock_real)
        find();
    int failed = clock_real(clock, out);
    if (failed == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        out->tv_sec += skew_s;
    return failed;
}

int gettimeofday(struct timeval *out, void *zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    *out = (struct timeval){.tv_sec = now.tv_sec, .tv_usec = now.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *out)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}

int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *at)
{
    struct timespec room;
    return cond_real(cond, mutex, to_kernel(at, &room));
}

/* What gRPC's library waits by. */
long syscall(long number, ...)
{
    long words[6];
    struct timespec room;
    va_list arguments;
    va_start(arguments, number);
    for (int i = 0; i < 6; i++)
        words[i] = va_arg(arguments, long);
    va_end(arguments);
    if (number == SYS_futex && (words[1] & FUTEX_CLOCK_REALTIME))
        words[3] = (long)to_kernel((const struct timespec *)words[3], &room);
    if (!syscall_real)
        find();
    return syscall_real(number, words[0], words[1], words[2], words[3], words[4], words[5]);
}
