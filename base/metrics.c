/* Metrics registry and its text form.
 *
 * The registry owns metrics and their series. Registration takes a mutex (start-up); a series is
 * created by compare-and-swap when its label is first seen, and never removed before the registry
 * is. Updates are relaxed atomics: a scrape may see a sum a moment older than its count. */
#include "base/metrics.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"

#define TABLE_SLOTS (2 * SL_METRIC_SERIES_MAX) /* power of two */
#define METRICS_MAX 1024
#define BOUNDS_MAX  64
#define LABEL_MAX   128

typedef enum metric_kind { KIND_COUNTER, KIND_GAUGE, KIND_HISTOGRAM } metric_kind;

typedef struct metric_series {
    char *label;                 /* NULL: the metric has no label */
    _Atomic uint64_t value_bits; /* a double */
} metric_series;

struct sl_metric {
    sl_metric *next;
    metric_kind kind;
    const char *name, *help, *label_name;
    metric_series plain; /* without a label; for histograms the sum */
    metric_series other; /* labels beyond the maximum */
    _Atomic size_t series_count;
    _Atomic(metric_series *) *table; /* open addressing; NULL without a label */
    size_t bound_count;
    double *bounds;
    _Atomic uint64_t *buckets; /* bound_count + 1, not cumulated */
};

struct sl_metrics {
    pthread_mutex_t lock;
    sl_metric *first, *last;
    size_t count;
    void (*refresh)(void *context);
    void *refresh_context;
};

const double SL_SECONDS_BOUNDS[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                    0.5,   1,      2.5,   5,    10,    30,   60,  120};
const size_t SL_SECONDS_BOUND_COUNT = sizeof(SL_SECONDS_BOUNDS) / sizeof(SL_SECONDS_BOUNDS[0]);

sl_metrics *sl_metrics_create(void)
{
    sl_metrics *metrics = sl_alloc(1, sizeof(*metrics), "metrics");
    sl_assert(pthread_mutex_init(&metrics->lock, NULL) == 0);
    return metrics;
}

void sl_metrics_destroy(sl_metrics *metrics)
{
    if (!metrics)
        return;
    while (metrics->first) {
        sl_metric *metric = metrics->first;
        metrics->first = metric->next;
        for (size_t i = 0; metric->table && i < TABLE_SLOTS; i++) {
            metric_series *series = atomic_load(&metric->table[i]);
            if (series)
                sl_free(series->label);
            sl_free(series);
        }
        sl_free(metric->table);
        sl_free(metric->bounds);
        sl_free(metric->buckets);
        sl_free(metric);
    }
    pthread_mutex_destroy(&metrics->lock);
    sl_free(metrics);
}

/* A name that exists already gives the same metric: two users of one registry may share it. */
static sl_metric *metric_register(sl_metrics *metrics, metric_kind kind, const char *name,
                                  const char *help, const char *label)
{
    pthread_mutex_lock(&metrics->lock);
    sl_metric *metric = metrics->first;
    while (metric && strcmp(metric->name, name) != 0)
        metric = metric->next;
    if (metric) {
        sl_assert(metric->kind == kind && !metric->label_name == !label);
    } else {
        sl_assert(metrics->count < METRICS_MAX);
        metric = sl_alloc(1, sizeof(*metric), "metric");
        metric->kind = kind;
        metric->name = name;
        metric->help = help;
        metric->label_name = label;
        if (label)
            metric->table = sl_alloc(TABLE_SLOTS, sizeof(*metric->table), "metric series table");
        if (metrics->last)
            metrics->last->next = metric;
        else
            metrics->first = metric;
        metrics->last = metric;
        metrics->count++;
    }
    pthread_mutex_unlock(&metrics->lock);
    return metric;
}

sl_metric *sl_counter(sl_metrics *metrics, const char *name, const char *help, const char *label)
{
    return metric_register(metrics, KIND_COUNTER, name, help, label);
}

sl_metric *sl_gauge(sl_metrics *metrics, const char *name, const char *help, const char *label)
{
    return metric_register(metrics, KIND_GAUGE, name, help, label);
}

sl_metric *sl_histogram(sl_metrics *metrics, const char *name, const char *help,
                        const double *bounds, size_t bound_count)
{
    sl_assert(bound_count > 0 && bound_count <= BOUNDS_MAX);
    for (size_t i = 1; i < bound_count; i++)
        sl_assert(bounds[i - 1] < bounds[i]);
    sl_metric *metric = metric_register(metrics, KIND_HISTOGRAM, name, help, NULL);
    pthread_mutex_lock(&metrics->lock);
    if (!metric->bounds) {
        metric->bounds = sl_alloc(bound_count, sizeof(*bounds), "metric bounds");
        memcpy(metric->bounds, bounds, bound_count * sizeof(*bounds));
        metric->buckets = sl_alloc(bound_count + 1, sizeof(*metric->buckets), "metric buckets");
        metric->bound_count = bound_count;
    }
    pthread_mutex_unlock(&metrics->lock);
    return metric;
}

static double series_value(const metric_series *series)
{
    uint64_t bits = atomic_load_explicit(&series->value_bits, memory_order_relaxed);
    double value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static void series_set(metric_series *series, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    atomic_store_explicit(&series->value_bits, bits, memory_order_relaxed);
}

static void series_add(metric_series *series, double amount)
{
    uint64_t seen = atomic_load_explicit(&series->value_bits, memory_order_relaxed), bits;
    do {
        double value;
        memcpy(&value, &seen, sizeof(value));
        value += amount;
        memcpy(&bits, &value, sizeof(bits));
    } while (!atomic_compare_exchange_weak_explicit(&series->value_bits, &seen, bits,
                                                    memory_order_relaxed, memory_order_relaxed));
}

static size_t label_hash(const char *label)
{
    uint64_t hash =
        0xcbf29ce484222325ull; /* FNV-1a: labels are our own or counted by the maximum */
    for (; *label; label++)
        hash = (hash ^ (unsigned char)*label) * 0x100000001b3ull;
    return (size_t)(hash ^ hash >> 32);
}

static metric_series *series_new(const char *label)
{
    metric_series *series = sl_alloc(1, sizeof(*series), "metric series");
    series->label = sl_strndup(label, strnlen(label, LABEL_MAX), "metric label");
    return series;
}

/* create: a missing series is made (or `other` given when there are too many), else NULL. */
static metric_series *series_find(sl_metric *metric, const char *label, bool create)
{
    sl_assert(!label == !metric->label_name);
    if (!label)
        return &metric->plain;
    metric_series *fresh = NULL;
    size_t slot = label_hash(label);
    for (size_t probe = 0; probe < TABLE_SLOTS; probe++, slot++) {
        _Atomic(metric_series *) *place = &metric->table[slot & (TABLE_SLOTS - 1)];
        metric_series *seen = atomic_load_explicit(place, memory_order_acquire);
        if (!seen) {
            if (!create)
                return NULL;
            if (!fresh) {
                if (atomic_fetch_add(&metric->series_count, 1) >= SL_METRIC_SERIES_MAX) {
                    atomic_fetch_sub(&metric->series_count, 1);
                    return &metric->other;
                }
                fresh = series_new(label);
            }
            if (atomic_compare_exchange_strong(place, &seen, fresh))
                return fresh;
        }
        if (strncmp(seen->label, label, LABEL_MAX) == 0) {
            if (fresh) { /* another thread was first */
                atomic_fetch_sub(&metric->series_count, 1);
                sl_free(fresh->label);
                sl_free(fresh);
            }
            return seen;
        }
    }
    sl_assert(!fresh); /* the table is twice the maximum: never full */
    return create ? &metric->other : NULL;
}

void sl_metric_add(sl_metric *metric, const char *label_value, double amount)
{
    sl_assert(metric->kind != KIND_HISTOGRAM);
    sl_assert(metric->kind == KIND_GAUGE || amount >= 0);
    series_add(series_find(metric, label_value, true), amount);
}

void sl_metric_set(sl_metric *metric, const char *label_value, double value)
{
    sl_assert(metric->kind == KIND_GAUGE);
    series_set(series_find(metric, label_value, true), value);
}

void sl_metric_observe(sl_metric *metric, double value)
{
    sl_assert(metric->kind == KIND_HISTOGRAM);
    size_t i = 0;
    while (i < metric->bound_count && !(value <= metric->bounds[i]))
        i++;
    atomic_fetch_add_explicit(&metric->buckets[i], 1, memory_order_relaxed);
    series_add(&metric->plain, value);
}

double sl_metric_get(const sl_metric *metric, const char *label_value)
{
    if (metric->kind == KIND_HISTOGRAM) {
        uint64_t count = 0;
        for (size_t i = 0; i <= metric->bound_count; i++)
            count += atomic_load_explicit(&metric->buckets[i], memory_order_relaxed);
        return (double)count;
    }
    metric_series *series = series_find((sl_metric *)metric, label_value, false);
    return series ? series_value(series) : 0;
}

static void write_escaped(sl_buf *buf, const char *text, bool quotes)
{
    for (; *text; text++) {
        if (*text == '\n')
            sl_buf_puts(buf, "\\n");
        else if (*text == '\\' || (quotes && *text == '"'))
            sl_buf_printf(buf, "\\%c", *text);
        else
            sl_buf_putc(buf, *text);
    }
}

static void write_value(sl_buf *buf, double value)
{
    if (isnan(value))
        sl_buf_puts(buf, "NaN");
    else if (isinf(value))
        sl_buf_puts(buf, value < 0 ? "-Inf" : "+Inf");
    else if (value == floor(value) && fabs(value) < 0x1p53)
        sl_buf_printf(buf, "%.0f", value);
    else
        sl_buf_printf(buf, "%.15g", value);
}

static void write_series(sl_buf *buf, const sl_metric *metric, const char *label, double value)
{
    sl_buf_puts(buf, metric->name);
    if (label) {
        sl_buf_printf(buf, "{%s=\"", metric->label_name);
        write_escaped(buf, label, true);
        sl_buf_puts(buf, "\"}");
    }
    sl_buf_putc(buf, ' ');
    write_value(buf, value);
    sl_buf_putc(buf, '\n');
}

static int by_label(const void *a, const void *b)
{
    return strcmp((*(metric_series *const *)a)->label, (*(metric_series *const *)b)->label);
}

static void write_labelled(sl_buf *buf, const sl_metric *metric)
{
    metric_series *found[TABLE_SLOTS];
    size_t count = 0;
    for (size_t i = 0; i < TABLE_SLOTS; i++) {
        metric_series *series = atomic_load_explicit(&metric->table[i], memory_order_acquire);
        if (series)
            found[count++] = series;
    }
    qsort(found, count, sizeof(found[0]), by_label);
    for (size_t i = 0; i < count; i++)
        write_series(buf, metric, found[i]->label, series_value(found[i]));
    if (series_value(&metric->other) != 0)
        write_series(buf, metric, "other", series_value(&metric->other));
}

static void write_histogram(sl_buf *buf, const sl_metric *metric)
{
    uint64_t count = 0;
    for (size_t i = 0; i <= metric->bound_count; i++) {
        count += atomic_load_explicit(&metric->buckets[i], memory_order_relaxed);
        sl_buf_printf(buf, "%s_bucket{le=\"", metric->name);
        write_value(buf, i < metric->bound_count ? metric->bounds[i] : INFINITY);
        sl_buf_printf(buf, "\"} %llu\n", (unsigned long long)count);
    }
    sl_buf_printf(buf, "%s_sum ", metric->name);
    write_value(buf, series_value(&metric->plain));
    sl_buf_printf(buf, "\n%s_count %llu\n", metric->name, (unsigned long long)count);
}

void sl_metrics_set_refresh(sl_metrics *metrics, void (*fn)(void *context), void *context)
{
    metrics->refresh = fn;
    metrics->refresh_context = context;
}

void sl_metrics_write(const sl_metrics *metrics, sl_buf *buf)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    if (metrics->refresh)
        metrics->refresh(metrics->refresh_context);
    sl_metrics *locked = (sl_metrics *)metrics; /* the list only grows at its end */
    pthread_mutex_lock(&locked->lock);
    const sl_metric *metric = metrics->first;
    pthread_mutex_unlock(&locked->lock);
    while (metric) {
        sl_buf_printf(buf, "# HELP %s ", metric->name);
        write_escaped(buf, metric->help, false);
        sl_buf_printf(buf, "\n# TYPE %s %s\n", metric->name, kinds[metric->kind]);
        if (metric->kind == KIND_HISTOGRAM)
            write_histogram(buf, metric);
        else if (metric->label_name)
            write_labelled(buf, metric);
        else
            write_series(buf, metric, NULL, series_value(&metric->plain));
        pthread_mutex_lock(&locked->lock);
        metric = metric->next;
        pthread_mutex_unlock(&locked->lock);
    }
}
