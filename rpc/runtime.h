/* gRPC core bound to an sl_loop: one completion queue and one poller thread for each loop.
 *
 * Every callback of rpc runs on the loop's thread, from the loop, never inside the call that caused
 * it. I/O moves on the poller thread; events cross by ring and eventfd. All objects of a runtime
 * belong to its loop's thread. Never fork after the first rpc_runtime_create (start children
 * before, or with posix_spawn / exec right after fork). */
#ifndef RPC_RUNTIME_H
#define RPC_RUNTIME_H

#include "base/loop.h"
#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rpc_runtime rpc_runtime;

/* PEM texts (not file names), borrowed until the call that takes the struct returns. A server needs
 * cert and key; with ca it demands a client certificate of that ca. A client needs cert and key
 * only for such servers. */
typedef struct rpc_tls {
    const char *ca;
    const char *cert;
    const char *key;
    const char *server_name; /* client: the name to verify; NULL = the target's host */
} rpc_tls;

SL_MUST_USE sl_status rpc_runtime_create(sl_loop *loop, rpc_runtime **out_runtime, sl_err *err);
/* Drops every call, channel and server that is left (no callbacks), drains the queue, joins the
 * poller: their handles are invalid afterwards. Blocks for milliseconds. Not from inside an rpc
 * callback. Before sl_loop_destroy. */
void rpc_runtime_destroy(rpc_runtime *runtime);
sl_loop *rpc_runtime_loop(const rpc_runtime *runtime);

/* Client and server calls not yet over. */
size_t rpc_runtime_live_calls(const rpc_runtime *runtime);

#ifdef __cplusplus
}
#endif
#endif
