/* What the files of rpc/ share. Not for other folders.
 *
 * rpc_op is the tag of everything that gRPC is asked to do: the poller thread only carries its
 * address, the loop's thread calls `done`. */
#ifndef RPC_INTERNAL_H
#define RPC_INTERNAL_H

#include <pthread.h>
#include <stdio.h>

#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>

#include "base/assert.h"
#include "rpc/client.h"
#include "rpc/message.h"
#include "rpc/runtime.h"
#include "rpc/server.h"
#include "rpc/tls.h"

/* ---- lists: circular, the head is a link of its own ---- */

typedef struct rpc_link {
    struct rpc_link *next, *prev;
} rpc_link;

static inline void rpc_list_init(rpc_link *head)
{
    head->next = head->prev = head;
}
static inline void rpc_list_add(rpc_link *head, rpc_link *link)
{
    link->prev = head->prev;
    link->next = head;
    head->prev->next = link;
    head->prev = link;
}
static inline void rpc_list_remove(rpc_link *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
    link->next = link->prev = link;
}
#define rpc_list_entry(pointer, type, member) \
    ((type *)(void *)((char *)(pointer)-offsetof(type, member)))

/* ---- operations ---- */

typedef struct rpc_op {
    void (*done)(void *owner, bool ok);
    void *owner;
    struct rpc_op *next; /* in the deferred list only */
} rpc_op;

/* Our memory (messages, buffers) crosses to gRPC's threads and back. gRPC synchronises it, but TSan
 * does not see inside the library: show it the edge. Costs nothing otherwise. */
#ifdef __SANITIZE_THREAD__
extern int rpc_fence_word;
#define rpc_fence_release() __atomic_add_fetch(&rpc_fence_word, 1, __ATOMIC_RELEASE)
#define rpc_fence_acquire() __atomic_load_n(&rpc_fence_word, __ATOMIC_ACQUIRE)
#else
#define rpc_fence_release() ((void)0)
#define rpc_fence_acquire() ((void)0)
#endif

struct rpc_runtime {
    sl_loop *loop;
    grpc_completion_queue *queue;
    struct sl_mailbox *mailbox;
    sl_watch *watch;
    pthread_t poller;
    size_t outstanding; /* tags that gRPC holds */
    size_t live_calls;
    size_t client_calls;
    rpc_op *deferred, **deferred_tail; /* run with the next events */
    rpc_link channels, servers;
    bool dispatching;
    bool closing; /* no callbacks any more */
};

void rpc_batch(rpc_runtime *runtime, grpc_call *call, const grpc_op *ops, size_t op_count,
               rpc_op *op);
/* Counts a tag that is handed to gRPC in another way. */
void rpc_op_begin(rpc_runtime *runtime);
/* Runs op->done(owner, true) with the next events; op must not be deferred already. */
void rpc_defer(rpc_runtime *runtime, rpc_op *op);

gpr_timespec rpc_deadline(sl_time_ns deadline);

/* ---- byte buffers ---- */

/* SL_TOO_LARGE over bytes_max. */
SL_MUST_USE sl_status rpc_pack(const ProtobufCMessage *message, size_t bytes_max,
                               grpc_byte_buffer **out_buffer);
/* Destroys buffer in any case. */
SL_MUST_USE sl_status rpc_unpack(const ProtobufCMessageDescriptor *descriptor,
                                 grpc_byte_buffer *buffer, ProtobufCMessage **out_message,
                                 sl_err *err);
/* Frees a borrowed message unless it was taken. */
void rpc_message_release(ProtobufCMessage *message);

/* ---- bounded queue of packed messages ---- */

typedef struct rpc_queue {
    grpc_byte_buffer **items; /* ring of messages_max, made at the first push */
    uint32_t messages_max, head, count;
    size_t bytes_max, bytes;
    bool refused; /* since the last rpc_queue_relieved */
} rpc_queue;

void rpc_queue_init(rpc_queue *queue, size_t messages_max, size_t bytes_max);
void rpc_queue_fini(rpc_queue *queue);
void rpc_queue_flush(rpc_queue *queue);
/* SL_FULL or SL_TOO_LARGE leave it unchanged. */
SL_MUST_USE sl_status rpc_queue_push(rpc_queue *queue, const ProtobufCMessage *message,
                                     size_t message_bytes_max);
grpc_byte_buffer *rpc_queue_pop(rpc_queue *queue); /* NULL = empty */
/* True once after a refusal, when at most half is used. */
bool rpc_queue_relieved(rpc_queue *queue);

/* ---- channel arguments ---- */

#define RPC_ARGS_MAX 24
typedef struct rpc_args {
    grpc_arg args[RPC_ARGS_MAX];
    size_t count;
} rpc_args;

void rpc_args_int(rpc_args *args, const char *key, int value);
/* What clients and servers set alike: flow control, message size, keepalive. */
void rpc_args_common(rpc_args *args, size_t message_bytes_max, uint32_t keepalive_ms,
                     uint32_t keepalive_timeout_ms);

/* ---- client ---- */

struct rpc_channel {
    rpc_link link; /* runtime->channels */
    rpc_runtime *runtime;
    grpc_channel *channel;
    char *target;
    size_t message_bytes_max;
    rpc_link calls;
};

/* Drops the call whose link this is, which takes it off the list. */
void rpc_client_call_drop(rpc_link *link);

/* ---- server ---- */

typedef struct rpc_health rpc_health;

struct rpc_server {
    rpc_link link; /* runtime->servers */
    rpc_runtime *runtime;
    grpc_server *server;
    char address[SL_ADDRESS_TEXT_MAX];
    rpc_handler *handlers;
    size_t handler_count;
    size_t calls_max, message_bytes_max, write_messages_max, write_bytes_max;
    rpc_link calls; /* live ones */
    size_t live_calls;
    size_t armed;
    rpc_health *health;
    rpc_op op_shutdown;
    sl_timer *drain_timer;
    bool checks_roles;                      /* callers show certificates */
    bool stopping, shut, stopped, orphaned; /* orphaned: destroyed by its owner */
    void (*on_stopped)(void *context);
    void *stopped_context;
};

/* Who the peer's certificate says it is; nobody without one. */
void rpc_peer_identity(grpc_call *call, rpc_identity *out_identity);
/* Starts to wait for one new call. */
void rpc_server_call_accept(rpc_server *server);
/* Ends it without on_closed (its owner destroyed the server). */
void rpc_server_call_orphan(rpc_link *link);
void rpc_server_maybe_stopped(rpc_server *server);
/* NULL: no such method. */
const rpc_handler *rpc_server_find(const rpc_server *server, grpc_slice path);

rpc_health *rpc_health_create(rpc_server *server);
void rpc_health_destroy(rpc_health *health);
void rpc_health_set(rpc_health *health, const char *service, bool serving);
/* Everything not serving, watchers end. */
void rpc_health_stop(rpc_health *health);
/* Two handlers. */
void rpc_health_handlers(rpc_health *health, rpc_handler out_handlers[2]);
rpc_handler rpc_reflection_handler(rpc_server *server);

#endif
