/* Prometheus metrics: counters, gauges, histograms with bounded labels.
 *
 * A metric is created once at start and lives until sl_metrics_destroy. Updates are relaxed
 * atomics: any thread, no lock. */
#ifndef BASE_METRICS_H
#define BASE_METRICS_H

#include "base/bytes.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sl_metrics sl_metrics; /* registry */
typedef struct sl_metric sl_metric;

#define SL_METRIC_SERIES_MAX 256 /* series of one metric; more go to the series "other" */

sl_metrics *sl_metrics_create(void);
void sl_metrics_destroy(sl_metrics *metrics);

/* name: "sluice_requests_total"; label: NULL or one label's name ("code"). Names are borrowed
 * literals. */
sl_metric *sl_counter(sl_metrics *metrics, const char *name, const char *help, const char *label);
sl_metric *sl_gauge(sl_metrics *metrics, const char *name, const char *help, const char *label);
/* bounds: ascending upper bounds in base units, copied. */
sl_metric *sl_histogram(sl_metrics *metrics, const char *name, const char *help,
                        const double *bounds, size_t bound_count);

/* label_value: NULL for a metric without label; copied when first seen. */
void sl_metric_add(sl_metric *metric, const char *label_value, double amount);
void sl_metric_set(sl_metric *metric, const char *label_value, double value);
void sl_metric_observe(sl_metric *metric, double value);
double sl_metric_get(const sl_metric *metric, const char *label_value);

/* fn brings up to date what is read off something rather than counted: called before the metrics
 * are written, in the writer's thread. NULL: none. Thread: the writer's. */
void sl_metrics_set_refresh(sl_metrics *metrics, void (*fn)(void *context), void *context);
/* Text exposition format 0.0.4. */
void sl_metrics_write(const sl_metrics *metrics, sl_buf *buf);

extern const double SL_SECONDS_BOUNDS[]; /* 1 ms .. 120 s */
extern const size_t SL_SECONDS_BOUND_COUNT;

#ifdef __cplusplus
}
#endif
#endif
