/* The router process: model files, loops, membership, control port, start and stop. */
#ifndef ROUTER_ROUTER_H
#define ROUTER_ROUTER_H

#include "router/options.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Runs until SIGTERM; returns the process's exit code (0 after a clean stop, 1 after an error that
 * was logged). */
int rtr_run(const rtr_options *options);
/* What main() does: parse, run, clean up. */
int rtr_main(int argc, char **argv);

#ifdef __cplusplus
}
#endif
#endif
