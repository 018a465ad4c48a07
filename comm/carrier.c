/* See carrier.h. Owns its thread and an eventfd that ends the thread's sleep. */
#include "comm/carrier.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"

#define SPINS_MAX    64 /* fruitless looks before it sleeps */
#define SLEEP_MAX_MS 50 /* how late it may see what rings no bell */

struct com_carrier {
    com_carrier_ops ops;
    void *context;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool given, ended; /* under the lock */
    _Atomic bool wanted_back;
    int bell;
};

static void sleep_armed(const com_carrier *carrier)
{
    struct pollfd at[] = {{.fd = carrier->ops.fd(carrier->context), .events = POLLIN},
                          {.fd = carrier->bell, .events = POLLIN}};
    (void)poll(at, 2, SLEEP_MAX_MS);
}

static void carry(const com_carrier *carrier)
{
    int spins = 0;
    while (!atomic_load_explicit(&carrier->wanted_back, memory_order_relaxed) &&
           !carrier->ops.done(carrier->context)) {
        if (carrier->ops.progress(carrier->context))
            spins = 0;
        else if (++spins >= SPINS_MAX && carrier->ops.arm(carrier->context))
            sleep_armed(carrier);
    }
}

static void *carrier_main(void *argument)
{
    com_carrier *carrier = argument;
    pthread_mutex_lock(&carrier->lock);
    for (;;) {
        while (!carrier->given && !carrier->ended)
            pthread_cond_wait(&carrier->changed, &carrier->lock);
        if (carrier->ended)
            break;
        pthread_mutex_unlock(&carrier->lock);
        carry(carrier);
        pthread_mutex_lock(&carrier->lock);
        carrier->given = false;
        pthread_cond_signal(&carrier->changed);
    }
    pthread_mutex_unlock(&carrier->lock);
    return NULL;
}

sl_status com_carrier_create(const com_carrier_ops *ops, void *context, com_carrier **out_carrier,
                             sl_err *err)
{
    int bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (bell < 0)
        return sl_fail(err, SL_IO, "eventfd: %s", strerror(errno));
    com_carrier *carrier = sl_alloc(1, sizeof(*carrier), "comm carrier");
    carrier->ops = *ops;
    carrier->context = context;
    carrier->bell = bell;
    pthread_mutex_init(&carrier->lock, NULL);
    pthread_cond_init(&carrier->changed, NULL);
    int failed = pthread_create(&carrier->thread, NULL, carrier_main, carrier);
    if (failed != 0) {
        close(bell);
        sl_free(carrier);
        return sl_fail(err, SL_IO, "a thread for a group of ranks: %s", strerror(failed));
    }
    *out_carrier = carrier;
    return sl_ok();
}

void com_carrier_give(com_carrier *carrier)
{
    if (!carrier)
        return;
    pthread_mutex_lock(&carrier->lock);
    sl_assert(!carrier->given);
    carrier->given = true;
    pthread_cond_signal(&carrier->changed);
    pthread_mutex_unlock(&carrier->lock);
}

void com_carrier_take_back(com_carrier *carrier)
{
    if (!carrier)
        return;
    pthread_mutex_lock(&carrier->lock);
    if (carrier->given) {
        atomic_store_explicit(&carrier->wanted_back, true, memory_order_relaxed);
        (void)eventfd_write(carrier->bell, 1);
        while (carrier->given)
            pthread_cond_wait(&carrier->changed, &carrier->lock);
        atomic_store_explicit(&carrier->wanted_back, false, memory_order_relaxed);
        eventfd_t rings;
        (void)eventfd_read(carrier->bell, &rings);
    }
    pthread_mutex_unlock(&carrier->lock);
}

void com_carrier_destroy(com_carrier *carrier)
{
    if (!carrier)
        return;
    com_carrier_take_back(carrier);
    pthread_mutex_lock(&carrier->lock);
    carrier->ended = true;
    pthread_cond_signal(&carrier->changed);
    pthread_mutex_unlock(&carrier->lock);
    pthread_join(carrier->thread, NULL);
    pthread_cond_destroy(&carrier->changed);
    pthread_mutex_destroy(&carrier->lock);
    close(carrier->bell);
    sl_free(carrier);
}
