/* In the place of engine/worker.c: the engine thread as events. A turn runs at once and takes the
 * virtual time that its steps cost: what it emits is seen by the control loop when the step has
 * come that far, what is posted meanwhile waits for the next turn. */
#include "engine/worker.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/ring.h"
#include "tests/sim/engine.h"
#include "tests/sim/world.h"

typedef struct emitted {
    struct emitted *next;
    sl_time_ns at; /* virtual time */
    uint8_t event[];
} emitted;

struct eng_worker_client {
    eng_worker *worker;
    const eng_worker_ops *ops;
    void *context;
    sl_ring *inbox;
    void *command;
    emitted *first, *last;
    size_t count;
    int fd;
    bool busy;
};

struct eng_worker {
    eng_engine *engine;
    sim_process *process;
    uint32_t life;
    eng_cost cost;
    eng_worker_client clients[ENG_WORKER_CLIENTS_MAX];
    int client_count;
    bool running, waking;
    sl_time_ns free_at; /* end of the turn that runs */
    uint64_t serial;
    eng_page_counts counts;
    void (*ask)(void *context); /* NULL: nobody asks */
    void (*ask_done)(void *context);
    void *ask_context;
    bool asked; /* it ran, and is to be told */
    bool rest;
};

static void publish_pages(eng_worker *worker)
{
    eng_engine_count_pages(worker->engine, &worker->counts);
}

sl_status eng_worker_create(eng_engine *engine, eng_worker **out_worker, sl_err *err)
{
    eng_worker *worker = sl_alloc(1, sizeof(*worker), "sim worker");
    worker->engine = engine;
    worker->process = sim.current;
    worker->process->engine_percent = 100;
    publish_pages(worker);
    *out_worker = worker;
    return sl_ok();
}

sl_status eng_worker_attach(eng_worker *worker, const eng_worker_ops *ops, void *context,
                            eng_worker_client **out_client, sl_err *err)
{
    eng_worker_client *client = &worker->clients[worker->client_count++];
    *client = (eng_worker_client){
        .worker = worker,
        .ops = ops,
        .context = context,
        .inbox = sl_ring_create(ops->command_bytes, ops->command_capacity),
        .command = sl_alloc(1, ops->command_bytes, "sim worker command"),
        .fd = sim_fd_open(),
    };
    *out_client = client;
    return sl_ok();
}

/* ---- turns */

static void on_turn(void *context, uint64_t serial);

static void wake_at(eng_worker *worker, sl_time_ns at)
{
    if (worker->waking || !worker->running)
        return;
    worker->waking = true;
    sim_post(at > worker->free_at ? at : worker->free_at, on_turn, worker->process,
             ++worker->serial);
    sim_engine_note_worker(worker->process, worker);
}

static void wake(void *context)
{
    wake_at(context, sim.now + sim_between(sim.wake_min_ns, sim.wake_max_ns));
}

static void run_ask(eng_worker *worker)
{
    if (!worker->ask || worker->asked)
        return;
    worker->ask(worker->ask_context);
    worker->asked = true;
    for (int i = 0; i < worker->client_count; i++)
        sim_fd_set(worker->clients[i].fd, true);
}

static void finish_ask(eng_worker *worker)
{
    if (!worker->asked)
        return;
    worker->ask = NULL;
    worker->asked = false;
    worker->ask_done(worker->ask_context);
}

static bool turn(eng_worker *worker)
{
    bool busy = false;
    run_ask(worker);
    for (int i = 0; i < worker->client_count; i++) {
        eng_worker_client *client = &worker->clients[i];
        while (sl_ring_pop(client->inbox, client->command)) {
            client->ops->command(client->context, client->command);
            busy = true;
        }
    }
    (void)eng_engine_poll(worker->engine, sim_clock(worker->process));
    for (int i = 0; i < worker->client_count; i++) {
        eng_worker_client *client = &worker->clients[i];
        client->busy = !worker->rest && client->ops->run(client->context);
        busy |= client->busy;
    }
    eng_engine_spill(worker->engine);
    publish_pages(worker);
    return busy;
}

/* The process may be another one by now: the worker is asked for, not kept. */
static void on_turn(void *context, uint64_t serial)
{
    sim_process *process = context;
    eng_worker *worker = sim_engine_worker(process);
    if (!worker || worker->serial != serial || !worker->running)
        return;
    worker->waking = false;
    if (process->paused)
        return; /* woken when it goes on */
    for (int i = 0; i < worker->client_count; i++) {
        /* The real one waits inside its turn while the outbox is full. */
        if (worker->clients[i].count > worker->clients[i].ops->event_capacity / 2) {
            wake_at(worker, sim.now + 50000);
            return;
        }
    }
    sim.current = process;
    sim.skew = 0;
    bool busy = turn(worker);
    worker->free_at = sim.now + sim.skew;
    sim.skew = 0;
    uint64_t poll_ns = eng_engine_poll_ns(worker->engine);
    if (busy)
        wake_at(worker, worker->free_at);
    else if (poll_ns > 0)
        wake_at(worker, worker->free_at + poll_ns);
}

sl_time_ns sim_engine_free_at(sim_process *process)
{
    return sim_engine_worker(process)->free_at;
}

void sim_engine_resume(sim_process *process)
{
    eng_worker *worker = sim_engine_worker(process);
    if (worker)
        wake(worker);
}

sl_status eng_worker_start(eng_worker *worker, sl_err *err)
{
    worker->running = true;
    sim_engine_note_worker(worker->process, worker);
    eng_engine_set_wake(worker->engine, wake, worker);
    return sl_ok();
}

void eng_worker_stop(eng_worker *worker)
{
    if (!worker->running)
        return;
    worker->running = false;
    sim_engine_note_worker(worker->process, NULL);
    for (int i = 0; i < worker->client_count; i++)
        worker->clients[i].ops->stop(worker->clients[i].context);
    eng_engine_set_wake(worker->engine, NULL, NULL);
}

void eng_worker_destroy(eng_worker *worker)
{
    if (!worker)
        return;
    eng_worker_stop(worker);
    for (int i = 0; i < worker->client_count; i++) {
        eng_worker_client *client = &worker->clients[i];
        for (emitted *item = client->first, *next; item; item = next) {
            next = item->next;
            sl_free(item);
        }
        sl_ring_destroy(client->inbox);
        sl_free(client->command);
        sim_fd_close(client->fd);
    }
    sl_free(worker);
}

uint32_t eng_worker_pages_free(const eng_worker *worker)
{
    return worker->counts.grantable;
}

void eng_worker_count_pages(const eng_worker *worker, eng_page_counts *out_counts)
{
    *out_counts = worker->counts;
}

const char *eng_worker_broken(const eng_worker *worker)
{
    return eng_engine_broken(worker->engine);
}

void eng_worker_call(eng_worker *worker, void (*fn)(void *context), void *context)
{
    fn(context);
}

bool eng_worker_ask(eng_worker *worker, void (*fn)(void *context), void (*done)(void *context),
                    void *context)
{
    if (!worker->running || worker->ask)
        return false;
    worker->ask = fn;
    worker->ask_done = done;
    worker->ask_context = context;
    wake(worker);
    return true;
}

void eng_worker_set_rest(eng_worker *worker, bool rest)
{
    worker->rest = rest;
    wake(worker);
}

bool eng_worker_rests(const eng_worker *worker)
{
    return worker->rest;
}

/* ---- mailboxes */

bool eng_worker_post(eng_worker_client *client, const void *command)
{
    if (!sl_ring_push(client->inbox, command))
        return false;
    wake(client->worker);
    return true;
}

int eng_worker_fd(const eng_worker_client *client)
{
    return client->fd;
}

static void on_visible(void *context, uint64_t fd)
{
    sim_process *process = context;
    if (sim_engine_worker(process) && sim.fds[fd - 1000].used)
        sim_fd_set((int)fd, true);
}

void eng_worker_emit(eng_worker_client *client, const void *event)
{
    publish_pages(client->worker);
    if (!client->worker->running)
        return;
    if (client->count == client->ops->event_capacity)
        sim_violation("bounded queues", "%s: more than %zu events in the engine's outbox",
                      client->worker->process->name, client->ops->event_capacity);
    emitted *item = sl_alloc(1, sizeof(*item) + client->ops->event_bytes, "sim worker event");
    item->at = sim.now + sim.skew;
    memcpy(item->event, event, client->ops->event_bytes);
    if (client->last)
        client->last->next = item;
    else
        client->first = item;
    client->last = item;
    client->count++;
    if (sim.skew == 0)
        sim_fd_set(client->fd, true);
    else
        sim_post(item->at, on_visible, client->worker->process, (uint64_t)client->fd);
}

void eng_worker_poll(eng_worker_client *client, void (*fn)(void *context, const void *event),
                     void *context)
{
    sim_fd_set(client->fd, false);
    while (client->first && client->first->at <= sim.now) {
        emitted *item = client->first;
        client->first = item->next;
        if (!client->first)
            client->last = NULL;
        client->count--;
        finish_ask(client->worker);
        fn(context, item->event);
        sl_free(item);
    }
    finish_ask(client->worker);
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
