/* The host program of a node: loads the model, owns the threads, serves gRPC, registers in etcd,
 * drains on SIGTERM.
 *
 * Both node programs are this with different default roles. Threads: the control loop (the
 * caller's), the engine thread, kvtransfer's, gRPC's poller. */
#ifndef NODE_HOST_H
#define NODE_HOST_H

#include "base/loop.h"
#include "node/options.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct nod_host nod_host;

/* Starts a node whose loop the caller runs until it stops. options: borrowed until destroy. Thread:
 * the loop's. */
SL_MUST_USE sl_status nod_host_create(const nod_options *options, nod_host **out_host, sl_err *err);
sl_loop *nod_host_loop(const nod_host *host);
/* At any time outside the loop's callbacks: what runs is dropped. NULL is fine. */
void nod_host_destroy(nod_host *host);
/* Runs until SIGTERM; returns the process's exit code (0 after a clean drain, 1 after an error told
 * on stderr). */
int nod_host_run(const nod_options *options);
/* What a main() does: parse, run, clean up. */
int nod_main(nod_role role, int argc, char **argv);

#ifdef __cplusplus
}
#endif
#endif
