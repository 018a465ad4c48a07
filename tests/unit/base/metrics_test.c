/* Metrics: values, series limits, the text form, updates from threads. */
#include "tests/unit/test.h"

#include <math.h>
#include <pthread.h>

#include "base/metrics.h"

static void assert_text(const sl_metrics *metrics, const char *want)
{
    sl_buf buf;
    sl_buf_init(&buf, 0);
    sl_metrics_write(metrics, &buf);
    assert_string_equal(buf.data ? buf.data : "", want);
    sl_buf_fini(&buf);
}

TEST(text_form)
{
    sl_metrics *metrics = sl_metrics_create();
    assert_text(metrics, "");
    sl_metric *plain = sl_counter(metrics, "sluice_a_total", "Things \\ done\nhere", NULL);
    sl_metric *by_code = sl_counter(metrics, "sluice_b_total", "By code", "code");
    sl_metric *gauge = sl_gauge(metrics, "sluice_c", "Now", NULL);
    static const double bounds[] = {0.5, 1, 2.5};
    sl_metric *seconds = sl_histogram(metrics, "sluice_d_seconds", "Time", bounds, 3);
    sl_metric_add(plain, NULL, 3);
    sl_metric_add(by_code, "500", 1);
    sl_metric_add(by_code, "200", 2);
    sl_metric_add(by_code, "200", 0.5);
    sl_metric_add(by_code, "a\"b\\c\n", 1);
    sl_metric_set(gauge, NULL, -1.25);
    sl_metric_observe(seconds, 0.5);
    sl_metric_observe(seconds, 2);
    sl_metric_observe(seconds, 9);
    assert_text(metrics, "# HELP sluice_a_total Things \\\\ done\\nhere\n"
                         "# TYPE sluice_a_total counter\n"
                         "sluice_a_total 3\n"
                         "# HELP sluice_b_total By code\n"
                         "# TYPE sluice_b_total counter\n"
                         "sluice_b_total{code=\"200\"} 2.5\n"
                         "sluice_b_total{code=\"500\"} 1\n"
                         "sluice_b_total{code=\"a\\\"b\\\\c\\n\"} 1\n"
                         "# HELP sluice_c Now\n"
                         "# TYPE sluice_c gauge\n"
                         "sluice_c -1.25\n"
                         "# HELP sluice_d_seconds Time\n"
                         "# TYPE sluice_d_seconds histogram\n"
                         "sluice_d_seconds_bucket{le=\"0.5\"} 1\n"
                         "sluice_d_seconds_bucket{le=\"1\"} 1\n"
                         "sluice_d_seconds_bucket{le=\"2.5\"} 2\n"
                         "sluice_d_seconds_bucket{le=\"+Inf\"} 3\n"
                         "sluice_d_seconds_sum 11.5\n"
                         "sluice_d_seconds_count 3\n");
    assert_true(sl_metric_get(by_code, "200") == 2.5);
    assert_true(sl_metric_get(by_code, "404") == 0);
    assert_true(sl_metric_get(seconds, NULL) == 3);
    sl_metrics_destroy(metrics);
    sl_metrics_destroy(NULL);
}

TEST(same_name_is_the_same_metric)
{
    sl_metrics *metrics = sl_metrics_create();
    sl_metric *a = sl_counter(metrics, "sluice_a_total", "A", NULL);
    assert_ptr_equal(sl_counter(metrics, "sluice_a_total", "A", NULL), a);
    assert_ptr_equal(
        sl_histogram(metrics, "sluice_h", "H", SL_SECONDS_BOUNDS, SL_SECONDS_BOUND_COUNT),
        sl_histogram(metrics, "sluice_h", "H", SL_SECONDS_BOUNDS, SL_SECONDS_BOUND_COUNT));
    sl_metrics_destroy(metrics);
}

TEST(series_beyond_the_maximum_go_to_other)
{
    sl_metrics *metrics = sl_metrics_create();
    sl_metric *metric = sl_counter(metrics, "sluice_x_total", "X", "peer");
    char label[16];
    for (int i = 0; i < SL_METRIC_SERIES_MAX + 50; i++) {
        snprintf(label, sizeof(label), "p%d", i);
        sl_metric_add(metric, label, 1);
    }
    sl_metric_add(metric, "p0", 1); /* known ones go on */
    assert_true(sl_metric_get(metric, "p0") == 2);
    assert_true(sl_metric_get(metric, "p300") == 0);
    sl_buf buf;
    sl_buf_init(&buf, 0);
    sl_metrics_write(metrics, &buf);
    assert_text_contains(buf.data, "sluice_x_total{peer=\"other\"} 50\n");
    sl_buf_fini(&buf);
    sl_metrics_destroy(metrics);
}

TEST(strange_values_have_their_text)
{
    sl_metrics *metrics = sl_metrics_create();
    sl_metric *gauge = sl_gauge(metrics, "g", "G", "k");
    sl_metric_set(gauge, "a", NAN);
    sl_metric_set(gauge, "b", INFINITY);
    sl_metric_set(gauge, "c", -INFINITY);
    sl_metric_set(gauge, "d", 1e300);
    sl_metric_set(gauge, "e", 0.1);
    assert_text(metrics, "# HELP g G\n# TYPE g gauge\ng{k=\"a\"} NaN\ng{k=\"b\"} +Inf\n"
                         "g{k=\"c\"} -Inf\ng{k=\"d\"} 1e+300\ng{k=\"e\"} 0.1\n");
    sl_metrics_destroy(metrics);
}

TEST(seconds_bounds_ascend)
{
    for (size_t i = 1; i < SL_SECONDS_BOUND_COUNT; i++)
        assert_true(SL_SECONDS_BOUNDS[i - 1] < SL_SECONDS_BOUNDS[i]);
    assert_true(SL_SECONDS_BOUNDS[0] == 0.001);
    assert_true(SL_SECONDS_BOUNDS[SL_SECONDS_BOUND_COUNT - 1] == 120);
}

#define ROUNDS 20000

static sl_metric *shared_counter, *shared_histogram;

static void *update(void *context)
{
    static const char *const labels[] = {"a", "b", "c", "d", "e", "f", "g", "h"};
    for (int i = 0; i < ROUNDS; i++) {
        sl_metric_add(shared_counter, labels[i % 8], 1);
        sl_metric_observe(shared_histogram, i % 2);
    }
    return NULL;
}

TEST(updates_from_threads_all_count)
{
    sl_metrics *metrics = sl_metrics_create();
    static const double bounds[] = {0.5};
    pthread_t threads[2];
    double total = 0;
    shared_counter = sl_counter(metrics, "c_total", "C", "label");
    shared_histogram = sl_histogram(metrics, "h", "H", bounds, 1);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, update, NULL), 0);
    for (int i = 0; i < 20; i++) { /* scrapes meanwhile */
        sl_buf buf;
        sl_buf_init(&buf, 0);
        sl_metrics_write(metrics, &buf);
        sl_buf_fini(&buf);
    }
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    for (char label[2] = "a"; label[0] <= 'h'; label[0]++)
        total += sl_metric_get(shared_counter, label);
    assert_true(total == 2 * ROUNDS);
    assert_true(sl_metric_get(shared_histogram, NULL) == 2 * ROUNDS);
    sl_metrics_destroy(metrics);
}

static void measure(void *context)
{
    sl_metric_set(context, NULL, sl_metric_get(context, NULL) + 1);
}

TEST(what_is_read_is_read_when_it_is_told)
{
    sl_metrics *metrics = sl_metrics_create();
    sl_metrics_set_refresh(metrics, measure, sl_gauge(metrics, "g", "G", NULL));
    for (int i = 1; i <= 2; i++) {
        sl_buf buf;
        sl_buf_init(&buf, 0);
        sl_metrics_write(metrics, &buf);
        assert_non_null(strstr(buf.data, i == 1 ? "\ng 1\n" : "\ng 2\n"));
        sl_buf_fini(&buf);
    }
    sl_metrics_destroy(metrics);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(text_form),
    cmocka_unit_test(same_name_is_the_same_metric),
    cmocka_unit_test(series_beyond_the_maximum_go_to_other),
    cmocka_unit_test(strange_values_have_their_text),
    cmocka_unit_test(seconds_bounds_ascend),
    cmocka_unit_test(updates_from_threads_all_count),
    cmocka_unit_test(what_is_read_is_read_when_it_is_told),
};
TEST_MAIN(tests)
