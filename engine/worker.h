/* The engine thread: owns the eng_engine, runs the clients attached to it (prefill, decode, or both
 * in a hybrid node).
 *
 * Each client has an inbox (control thread -> engine thread) and an outbox (back), both bounded.
 * The thread takes all commands, then gives each client one unit of work in turn, and sleeps when
 * nobody has any. Pages and slots are published after each turn for load reports. Thread: create,
 * attach, start, post, poll, stop, destroy on the control thread; the client's callbacks and
 * eng_worker_emit on the engine thread. */
#ifndef ENGINE_WORKER_H
#define ENGINE_WORKER_H

#include "engine/cache.h"
#include "engine/schedule.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ENG_WORKER_CLIENTS_MAX 2

typedef struct eng_worker eng_worker;
typedef struct eng_worker_client eng_worker_client;

typedef struct eng_worker_ops {
    size_t command_bytes, command_capacity; /* capacities are powers of two */
    size_t event_bytes, event_capacity;
    /* One command from the inbox. */
    void (*command)(void *context, const void *command);
    /* One unit of work (one step); false = nothing to do until the next command. */
    bool (*run)(void *context);
    /* The thread is about to end: release what the client holds of the engine. */
    void (*stop)(void *context);
} eng_worker_ops;

/* Borrows the engine until destroy. */
SL_MUST_USE sl_status eng_worker_create(eng_engine *engine, eng_worker **out_worker, sl_err *err);
/* Before start. ops and context are borrowed until destroy. */
SL_MUST_USE sl_status eng_worker_attach(eng_worker *worker, const eng_worker_ops *ops,
                                        void *context, eng_worker_client **out_client, sl_err *err);
SL_MUST_USE sl_status eng_worker_start(eng_worker *worker, sl_err *err);
/* Ends the thread after its current unit of work, joins it. Events may still be polled afterwards.
 */
void eng_worker_stop(eng_worker *worker);
void eng_worker_destroy(eng_worker *worker);
/* Published by the engine thread after each turn. Any thread. Each number is right, but they may be
 * of two turns. */
uint32_t eng_worker_pages_free(const eng_worker *worker);
void eng_worker_count_pages(const eng_worker *worker, eng_page_counts *out_counts);
/* Any thread: eng_engine_broken. */
const char *eng_worker_broken(const eng_worker *worker);

/* Control thread: has fn(context) run on the engine thread between two turns, and waits for its
 * end. While nothing runs there, or for something short. */
void eng_worker_call(eng_worker *worker, void (*fn)(void *context), void *context);

/* Control thread: has fn(context) run on the engine thread between two turns, then done(context) on
 * the control thread, from eng_worker_poll, before any event that was emitted after fn: what the
 * control thread takes back only on an event of the engine's is still there, if fn saw it. false:
 * one is under way. No done comes once the worker is stopped. */
SL_MUST_USE bool eng_worker_ask(eng_worker *worker, void (*fn)(void *context),
                                void (*done)(void *context), void *context);

/* Control thread: no client is given work from the end of the turn under way on (true), until it is
 * told to go on. Commands are taken all the while, and other ranks' runs taken part in. */
void eng_worker_set_rest(eng_worker *worker, bool rest);
/* Control thread: since it was told to rest, no client has work under way. Descriptors of clients
 * become readable when this comes to be so. */
bool eng_worker_rests(const eng_worker *worker);

/* Control thread. false = the inbox is full (capacity is sized so that this is a bug or an
 * overload: refuse the request). */
SL_MUST_USE bool eng_worker_post(eng_worker_client *client, const void *command);
/* Readable while events may wait. */
int eng_worker_fd(const eng_worker_client *client);
/* Clears the descriptor and hands out every waiting event. */
void eng_worker_poll(eng_worker_client *client, void (*fn)(void *context, const void *event),
                     void *context);

/* Engine thread: what the engine's steps cost, those of all clients. */
eng_cost *eng_worker_cost(eng_worker_client *client);
/* Engine thread: whether another client had work in its last turn, which waits for this one's. */
bool eng_worker_is_shared(const eng_worker_client *client);
/* Engine thread. Waits while the outbox is full (the control thread always drains it) unless the
 * worker is stopping. */
void eng_worker_emit(eng_worker_client *client, const void *event);

#ifdef __cplusplus
}
#endif
#endif
