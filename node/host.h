/* The host program of a node: loads the model, owns the threads, serves gRPC, registers in etcd,
 * drains on SIGTERM.
 *
 * Both node programs are this with different default roles. Threads: the control loop (the
 * caller's), the engine thread, kvtransfer's, gRPC's poller. */
#ifndef NODE_HOST_H
#define NODE_HOST_H

#include "node/options.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Runs until SIGTERM; returns the process's exit code (0 after a clean drain, 1 after an error told
 * on stderr). */
int nod_host_run(const nod_options *options);
/* What a main() does: parse, run, clean up. */
int nod_main(nod_role role, int argc, char **argv);

#ifdef __cplusplus
}
#endif
#endif
