/* A member's metrics by HTTP: fetched whole within a deadline, looked up by name. Thread: any;
 * waits.
 */
#ifndef CLI_SCRAPE_H
#define CLI_SCRAPE_H

#include "base/bytes.h"
#include "base/clock.h"
#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CTL_SCRAPE_BYTES_MAX ((size_t)1 << 20)

/* GET /metrics of "host:port". The text is NUL-terminated, in a buffer of the caller's, ended by
 * sl_buf_fini in any case. */
SL_MUST_USE sl_status ctl_scrape(const char *address, sl_time_ns deadline, sl_buf *out_text,
                                 sl_err *err);
/* Sum of a metric over its labels; 0 if it is absent. */
double ctl_metric_sum(const char *text, const char *name);

#ifdef __cplusplus
}
#endif
#endif
