/* The thread pool: every task runs once, whatever the counts; ends cleanly; refuses nonsense. */
#include "tests/unit/test.h"

#include "kernels/kernels.h"

#include <stdatomic.h>

typedef struct marks {
    _Atomic uint32_t ran[5000];
    _Atomic uint32_t threads_seen[KRN_POOL_THREADS_MAX];
    uint32_t plain[5000]; /* written by tasks, read by the caller after the run */
} marks;

static void mark(void *context, uint32_t task, uint32_t thread)
{
    marks *m = context;
    atomic_fetch_add(&m->ran[task], 1);
    atomic_fetch_add(&m->threads_seen[thread], 1);
    m->plain[task] = task * 3 + 1;
}

static void check(krn_pool *pool, uint32_t count)
{
    static marks m;
    memset(&m, 0, sizeof m);
    krn_pool_run(pool, count, mark, &m);
    uint32_t total = 0;
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(atomic_load(&m.ran[i]), 1);
        assert_int_equal(m.plain[i], i * 3 + 1);
    }
    for (uint32_t i = 0; i < KRN_POOL_THREADS_MAX; i++) {
        uint32_t seen = atomic_load(&m.threads_seen[i]);
        assert_true(seen == 0 || i < krn_pool_threads(pool));
        total += seen;
    }
    assert_int_equal(total, count);
}

TEST(every_task_runs_once)
{
    static const int sizes[] = {1, 2, 3, 8};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        krn_pool *pool;
        sl_err err;
        assert_ok(krn_pool_create(sizes[s], &pool, &err), &err);
        assert_int_equal(krn_pool_threads(pool), sizes[s]);
        for (uint32_t round = 0; round < 300; round++)
            check(pool, round % 7);
        check(pool, 5000);
        krn_pool_destroy(pool);
    }
}

TEST(no_pool_is_the_caller)
{
    assert_int_equal(krn_pool_threads(NULL), 1);
    check(NULL, 10);
}

TEST(a_pool_may_be_destroyed_unused)
{
    krn_pool *pool;
    sl_err err;
    assert_ok(krn_pool_create(0, &pool, &err), &err);
    assert_true(krn_pool_threads(pool) >= 1);
    krn_pool_destroy(pool);
    krn_pool_destroy(NULL);
}

TEST(a_negative_count_is_refused)
{
    krn_pool *pool = NULL;
    sl_err err;
    assert_code(krn_pool_create(-1, &pool, &err), SL_INVALID);
    assert_null(pool);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_task_runs_once),
    cmocka_unit_test(no_pool_is_the_caller),
    cmocka_unit_test(a_pool_may_be_destroyed_unused),
    cmocka_unit_test(a_negative_count_is_refused),
};
TEST_MAIN(tests)
