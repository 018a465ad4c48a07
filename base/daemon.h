/* Daemon skeleton: signals into the loop, metrics/health HTTP port, descriptor limits.
 *
 * SIGTERM and SIGINT call `stop` on the loop (a second one exits at once, code 130), SIGPIPE is
 * ignored. Thread: the loop's. */
#ifndef BASE_DAEMON_H
#define BASE_DAEMON_H

#include "base/loop.h"
#include "base/metrics.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sl_daemon sl_daemon;

typedef struct sl_daemon_options {
    const char *metrics_listen;  /* "127.0.0.1:9100", port 0 = any; NULL = no port */
    sl_metrics *metrics;         /* served at /metrics; also /health ("ok") */
    void (*stop)(void *context); /* first SIGTERM or SIGINT */
    void *context;
} sl_daemon_options;

SL_MUST_USE sl_status sl_daemon_start(sl_loop *loop, const sl_daemon_options *options,
                                      sl_daemon **out_daemon, sl_err *err);
/* The metrics port really bound ("127.0.0.1:41231"); "" if none. */
const char *sl_daemon_metrics_address(const sl_daemon *daemon);
void sl_daemon_destroy(sl_daemon *daemon);

#ifdef __cplusplus
}
#endif
#endif
