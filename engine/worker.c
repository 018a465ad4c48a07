/* The engine thread's frame: see worker.h.
 *
 * Owns the thread and the mailboxes; knows nothing of what the clients do. Runs on: control thread
 * (create, post, poll), engine thread (main). */
#include "engine/worker.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/ring.h"
#include "engine/parallel.h"

enum { ASK_NONE, ASK_DUE, ASK_RAN };

struct eng_worker_client {
    eng_worker *worker;
    const eng_worker_ops *ops;
    void *context;
    sl_ring *
        inbox; /* the worker's one doorbell wakes the thread, so that it can sleep on all clients */
    sl_mailbox *outbox;
    void *command; /* scratch of the engine thread */
    void *event;   /* scratch of the control thread */
    bool busy;     /* it had work in its last turn */
};

struct eng_worker {
    eng_engine *engine;
    eng_cost cost;
    eng_worker_client clients[ENG_WORKER_CLIENTS_MAX];
    int client_count;
    sl_mailbox *doorbell; /* carries no items: only its wake-up is used */
    pthread_t thread;
    bool running;
    _Atomic bool stopping;
    _Atomic bool errand_due; /* hands the two below over, and back */
    void (*errand)(void *context);
    void *errand_context;
    sl_mailbox *errand_done; /* carries no items either */
    _Atomic int ask_state;   /* ASK_*: hands the three below over, and back */
    void (*ask)(void *context);
    void (*ask_done)(void *context);
    void *ask_context;
    _Atomic uint32_t pages_free, pages_kept, pages_bound, pages_promised, pages_grantable,
        pages_transit;
    _Atomic(const char *) broken;
    /* Counts what the control thread wanted: odd, that clients rest. The engine thread says which
     * wish it follows, so that an old answer is not taken for a new one. */
    _Atomic uint32_t rest_wish, rest_done;
};

static void publish_pages(eng_worker *worker)
{
    eng_page_counts counts;
    eng_engine_count_pages(worker->engine, &counts);
    atomic_store_explicit(&worker->pages_free, counts.free, memory_order_relaxed);
    atomic_store_explicit(&worker->pages_kept, counts.kept, memory_order_relaxed);
    atomic_store_explicit(&worker->pages_bound, counts.bound, memory_order_relaxed);
    atomic_store_explicit(&worker->pages_promised, counts.promised, memory_order_relaxed);
    atomic_store_explicit(&worker->pages_grantable, counts.grantable, memory_order_relaxed);
    atomic_store_explicit(&worker->pages_transit, counts.transit, memory_order_relaxed);
    /* Release: the words were written before. */
    atomic_store_explicit(&worker->broken, eng_engine_broken(worker->engine), memory_order_release);
}

sl_status eng_worker_create(eng_engine *engine, eng_worker **out_worker, sl_err *err)
{
    eng_worker *worker = sl_alloc(1, sizeof(*worker), "engine worker");
    worker->engine = engine;
    sl_status status = sl_mailbox_create(1, 2, &worker->doorbell, err);
    if (sl_is_ok(status))
        status = sl_mailbox_create(1, 2, &worker->errand_done, err);
    if (!sl_is_ok(status)) {
        sl_mailbox_destroy(worker->doorbell);
        sl_free(worker);
        return status;
    }
    publish_pages(worker);
    *out_worker = worker;
    return sl_ok();
}

sl_status eng_worker_attach(eng_worker *worker, const eng_worker_ops *ops, void *context,
                            eng_worker_client **out_client, sl_err *err)
{
    sl_assert(!worker->running);
    sl_assert(worker->client_count < ENG_WORKER_CLIENTS_MAX);
    eng_worker_client *client = &worker->clients[worker->client_count];
    SL_TRY(sl_mailbox_create(ops->event_bytes, ops->event_capacity, &client->outbox, err));
    client->worker = worker;
    client->ops = ops;
    client->context = context;
    client->inbox = sl_ring_create(ops->command_bytes, ops->command_capacity);
    client->command = sl_alloc(1, ops->command_bytes, "engine worker scratch");
    client->event = sl_alloc(1, ops->event_bytes, "engine worker scratch");
    worker->client_count++;
    *out_client = client;
    return sl_ok();
}

static bool worker_take_commands(eng_worker *worker)
{
    bool took = false;
    for (int i = 0; i < worker->client_count; i++) {
        eng_worker_client *client = &worker->clients[i];
        while (sl_ring_pop(client->inbox, client->command)) {
            client->ops->command(client->context, client->command);
            took = true;
        }
    }
    return took;
}

static void worker_run_errand(eng_worker *worker)
{
    if (!atomic_load_explicit(&worker->errand_due, memory_order_acquire))
        return;
    worker->errand(worker->errand_context);
    atomic_store_explicit(&worker->errand_due, false, memory_order_release);
    sl_mailbox_wake(worker->errand_done);
}

void eng_worker_call(eng_worker *worker, void (*fn)(void *context), void *context)
{
    sl_assert(worker->running && !worker->errand_due);
    worker->errand = fn;
    worker->errand_context = context;
    atomic_store_explicit(&worker->errand_due, true, memory_order_release);
    sl_mailbox_wake(worker->doorbell);
    while (atomic_load_explicit(&worker->errand_due, memory_order_acquire)) {
        sl_mailbox_wait(worker->errand_done, SL_NEVER);
        sl_mailbox_clear(worker->errand_done);
    }
}

static void worker_run_ask(eng_worker *worker)
{
    if (atomic_load_explicit(&worker->ask_state, memory_order_acquire) != ASK_DUE)
        return;
    worker->ask(worker->ask_context);
    /* Release: pairs with ask_finish. Events emitted from here on are popped after it is seen. */
    atomic_store_explicit(&worker->ask_state, ASK_RAN, memory_order_release);
    for (int i = 0; i < worker->client_count; i++)
        sl_mailbox_wake(worker->clients[i].outbox);
}

bool eng_worker_ask(eng_worker *worker, void (*fn)(void *context), void (*done)(void *context),
                    void *context)
{
    if (!worker->running || worker->ask_state != ASK_NONE)
        return false;
    worker->ask = fn;
    worker->ask_done = done;
    worker->ask_context = context;
    atomic_store_explicit(&worker->ask_state, ASK_DUE, memory_order_release);
    sl_mailbox_wake(worker->doorbell);
    return true;
}

/* Control thread. */
static void ask_finish(eng_worker *worker)
{
    if (atomic_load_explicit(&worker->ask_state, memory_order_acquire) != ASK_RAN)
        return;
    worker->ask_state = ASK_NONE;
    worker->ask_done(worker->ask_context);
}

void eng_worker_set_rest(eng_worker *worker, bool rest)
{
    uint32_t wish = atomic_load_explicit(&worker->rest_wish, memory_order_relaxed);
    if (rest == (wish % 2 == 1))
        return;
    atomic_store_explicit(&worker->rest_wish, wish + 1, memory_order_release);
    sl_mailbox_wake(worker->doorbell);
}

bool eng_worker_rests(const eng_worker *worker)
{
    uint32_t wish = atomic_load_explicit(&worker->rest_wish, memory_order_relaxed);
    return wish % 2 == 1 && atomic_load_explicit(&worker->rest_done, memory_order_acquire) == wish;
}

/* A turn of the clients, or none while they rest. */
static bool worker_run_clients(eng_worker *worker)
{
    uint32_t wish = atomic_load_explicit(&worker->rest_wish, memory_order_acquire);
    bool rest = wish % 2 == 1, busy = false;
    for (int i = 0; i < worker->client_count; i++) {
        eng_worker_client *client = &worker->clients[i];
        client->busy = !rest && client->ops->run(client->context);
        busy |= client->busy;
    }
    if (atomic_load_explicit(&worker->rest_done, memory_order_relaxed) == wish)
        return busy;
    /* Release: what the last turn did is seen by whoever sees this. */
    atomic_store_explicit(&worker->rest_done, wish, memory_order_release);
    for (int i = 0; i < worker->client_count; i++)
        sl_mailbox_wake(worker->clients[i].outbox);
    return busy;
}

static void wake(void *context)
{
    eng_worker *worker = context;
    sl_mailbox_wake(worker->doorbell);
}

static void worker_sleep(eng_worker *worker, sl_time_ns deadline)
{
    int fd = eng_engine_ranks_fd(worker->engine);
    if (fd < 0) {
        sl_mailbox_wait(worker->doorbell, deadline);
        return;
    }
    if (!eng_engine_ranks_arm(worker->engine))
        return;
    struct pollfd either[] = {
        {.fd = sl_mailbox_fd(worker->doorbell), .events = POLLIN},
        {.fd = fd, .events = POLLIN},
    };
    sl_time_ns now = sl_now_ns();
    int wait_ms = deadline == SL_NEVER ? -1
                  : deadline > now     ? (int)((deadline - now) / SL_MS_NS) + 1
                                       : 0;
    (void)poll(either, 2, wait_ms);
}

static void *worker_main(void *argument)
{
    eng_worker *worker = argument;
    while (!atomic_load_explicit(&worker->stopping, memory_order_acquire)) {
        sl_mailbox_clear(worker->doorbell);
        worker_run_errand(worker);
        worker_run_ask(worker);
        bool busy = worker_take_commands(worker);
        sl_time_ns now = sl_now_ns();
        (void)eng_engine_poll(worker->engine, now);
        uint64_t runs = eng_engine_runs(worker->engine);
        busy |= worker_run_clients(worker);
        if (eng_engine_runs(worker->engine) == runs)
            busy |= eng_engine_take_part(worker->engine); /* another rank may wait for this one */
        eng_engine_spill(worker->engine); /* its end wakes the thread, and so on until all is out */
        publish_pages(worker);
        uint64_t poll_ns = eng_engine_poll_ns(worker->engine); /* a run may have opened one */
        if (!busy)
            worker_sleep(worker, poll_ns > 0 ? sl_now_ns() + poll_ns : SL_NEVER);
    }
    for (int i = 0; i < worker->client_count; i++)
        worker->clients[i].ops->stop(worker->clients[i].context);
    return NULL;
}

sl_status eng_worker_start(eng_worker *worker, sl_err *err)
{
    sl_assert(!worker->running);
    eng_engine_set_wake(worker->engine, wake, worker);
    int error = pthread_create(&worker->thread, NULL, worker_main, worker);
    if (error != 0)
        return sl_fail(err, SL_INTERNAL, "cannot start the engine thread (error %d)", error);
    worker->running = true;
    return sl_ok();
}

void eng_worker_stop(eng_worker *worker)
{
    if (!worker->running)
        return;
    atomic_store_explicit(&worker->stopping, true, memory_order_release);
    sl_mailbox_wake(worker->doorbell);
    pthread_join(worker->thread, NULL);
    eng_engine_set_wake(worker->engine, NULL, NULL);
    worker->running = false;
}

void eng_worker_destroy(eng_worker *worker)
{
    if (!worker)
        return;
    eng_worker_stop(worker);
    for (int i = 0; i < worker->client_count; i++) {
        sl_ring_destroy(worker->clients[i].inbox);
        sl_mailbox_destroy(worker->clients[i].outbox);
        sl_free(worker->clients[i].command);
        sl_free(worker->clients[i].event);
    }
    sl_mailbox_destroy(worker->doorbell);
    sl_mailbox_destroy(worker->errand_done);
    sl_free(worker);
}

static uint32_t load(const _Atomic uint32_t *count)
{
    return atomic_load_explicit(count, memory_order_relaxed);
}

uint32_t eng_worker_pages_free(const eng_worker *worker)
{
    return load(&worker->pages_grantable);
}

void eng_worker_count_pages(const eng_worker *worker, eng_page_counts *out_counts)
{
    *out_counts = (eng_page_counts){
        .free = load(&worker->pages_free),
        .kept = load(&worker->pages_kept),
        .bound = load(&worker->pages_bound),
        .promised = load(&worker->pages_promised),
        .grantable = load(&worker->pages_grantable),
        .transit = load(&worker->pages_transit),
    };
}

const char *eng_worker_broken(const eng_worker *worker)
{
    return atomic_load_explicit(&worker->broken, memory_order_acquire);
}

bool eng_worker_post(eng_worker_client *client, const void *command)
{
    if (!sl_ring_push(client->inbox, command))
        return false;
    sl_mailbox_wake(client->worker->doorbell);
    return true;
}

int eng_worker_fd(const eng_worker_client *client)
{
    return sl_mailbox_fd(client->outbox);
}

void eng_worker_poll(eng_worker_client *client, void (*fn)(void *context, const void *event),
                     void *context)
{
    sl_mailbox_clear(client->outbox);
    while (sl_mailbox_pop(client->outbox, client->event)) {
        ask_finish(client->worker);
        fn(context, client->event);
    }
    ask_finish(client->worker);
}

eng_cost *eng_worker_cost(eng_worker_client *client)
{
    return &client->worker->cost;
}

bool eng_worker_is_shared(const eng_worker_client *client)
{
    const eng_worker *worker = client->worker;
    for (int i = 0; i < worker->client_count; i++)
        if (&worker->clients[i] != client && worker->clients[i].busy)
            return true;
    return false;
}

void eng_worker_emit(eng_worker_client *client, const void *event)
{
    /* Who hears that a sequence is closed must see its pages free. */
    publish_pages(client->worker);
    /* Back-pressure, not a race: the ring is full for as long as the control thread needs to take
     * what it holds. */
    const struct timespec pause = {0, 50 * 1000};
    while (!sl_mailbox_push(client->outbox, event)) {
        if (atomic_load_explicit(&client->worker->stopping, memory_order_acquire))
            return;
        nanosleep(&pause, NULL);
    }
}
