/* The metrics and health port: a tiny HTTP/1.1 responder on the daemon's loop, for daemon.c only.
 *
 * Bounded: SL_HTTP_CONNECTIONS_MAX connections, SL_HTTP_HEAD_MAX bytes of request, one request a
 * connection, SL_HTTP_TIMEOUT_NS each. Not the serving front (that is the router's). */
#ifndef BASE_DAEMON_HTTP_H
#define BASE_DAEMON_HTTP_H

#include "base/loop.h"
#include "base/metrics.h"
#include "base/net.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SL_HTTP_CONNECTIONS_MAX 32
#define SL_HTTP_HEAD_MAX        8192
#define SL_HTTP_TIMEOUT_NS      (5 * SL_S_NS)

typedef struct sl_http sl_http;

SL_MUST_USE sl_status sl_http_start(sl_loop *loop, const char *listen, sl_metrics *metrics,
                                    sl_http **out_http, sl_err *err);
const char *sl_http_address(const sl_http *http);
void sl_http_destroy(sl_http *http);

#ifdef __cplusplus
}
#endif
#endif
