/* Fault specs: what is refused, when sites fire, holding and releasing. */
#include "tests/unit/test.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"

static const char *const sites[] = {"a.one", "b.two", NULL};

static void arm(const char *text)
{
    sl_err err;
    assert_ok(sl_fault_init(sites, text, &err), &err);
}

/* Which of the first ten hits of a site fail, as text. */
static const char *hits(const char *site)
{
    static char text[11];
    for (int i = 0; i < 10; i++)
        text[i] = sl_fault(site) ? 'F' : '.';
    return text;
}

TEST(unarmed_sites_do_nothing)
{
    arm(NULL);
    assert_string_equal(hits("a.one"), "..........");
    arm("");
    assert_string_equal(hits("a.one"), "..........");
    arm(";;b.two=fail;");
    assert_string_equal(hits("a.one"), "..........");
}

TEST(fail_counts_hits)
{
    arm("a.one=fail");
    assert_string_equal(hits("a.one"), "FFFFFFFFFF");
    arm("a.one=fail@3");
    assert_string_equal(hits("a.one"), "..F.......");
    arm("a.one=fail@3x2");
    assert_string_equal(hits("a.one"), "..FF......");
    arm("a.one=failx4;b.two=fail@10");
    assert_string_equal(hits("a.one"), "FFFF......");
    assert_string_equal(hits("b.two"), ".........F");
    arm("a.one=fail@2;a.one=fail@5");
    assert_string_equal(hits("a.one"), ".F..F.....");
}

TEST(refuses_bad_specs)
{
    static const char *const wrong[] = {"a.one",
                                        "a.one=",
                                        "=fail",
                                        "a.one=fial",
                                        "a.one=fail@",
                                        "a.one=fail@0",
                                        "a.one=failx",
                                        "a.one=failx0",
                                        "a.one=fail@1y",
                                        "a.one=slow",
                                        "a.one=slow=",
                                        "a.one=slow=x",
                                        "a.one=slow=99999999",
                                        "a.one=fail @1",
                                        "a.one=fail@-1",
                                        "a.one=fail@99999999999999999999999"};
    sl_err err;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        if (sl_fault_init(sites, wrong[i], &err).code != SL_INVALID)
            fail_msg("accepted \"%s\"", wrong[i]);
    assert_code(sl_fault_init(sites, "c.three=fail", &err), SL_INVALID);
    assert_text_contains(err.text, "c.three");
    /* A wrong spec arms nothing, not even its right part. */
    assert_code(sl_fault_init(sites, "a.one=fail;c.three=fail", &err), SL_INVALID);
    assert_string_equal(hits("a.one"), "..........");
}

TEST(slow_waits)
{
    arm("a.one=slow=20@1");
    sl_time_ns start = sl_now_ns();
    assert_false(sl_fault("a.one"));
    assert_true(sl_now_ns() - start >= 20 * SL_MS_NS);
}

TEST(exit_exits)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        sl_err err;
        close(STDERR_FILENO);
        if (!sl_is_ok(sl_fault_init(sites, "a.one=exit@2", &err)))
            _exit(1);
        if (sl_fault("a.one"))
            _exit(2);
        sl_fault("a.one");
        _exit(3);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 86);
}

static _Atomic int released;

static void *hit_hold(void *context)
{
    sl_fault("b.two");
    atomic_fetch_add(&released, 1);
    return NULL;
}

TEST(hold_until_sigusr2)
{
    pthread_t thread;
    int fds[2];
    char text[256];
    arm("b.two=hold@1");
    /* The log line says that the thread holds: wait for it, then release. */
    assert_int_equal(pipe(fds), 0);
    int saved = dup(STDERR_FILENO);
    dup2(fds[1], STDERR_FILENO);
    assert_int_equal(pthread_create(&thread, NULL, hit_hold, NULL), 0);
    ssize_t got = read(fds[0], text, sizeof(text) - 1);
    dup2(saved, STDERR_FILENO);
    assert_true(got > 0);
    text[got] = '\0';
    assert_text_contains(text, "fault b.two: hold at hit 1");
    assert_int_equal(atomic_load(&released), 0);
    kill(getpid(), SIGUSR2); /* once is enough, however early it comes */
    pthread_join(thread, NULL);
    assert_int_equal(atomic_load(&released), 1);
    close(saved);
    close(fds[0]);
    close(fds[1]);
    arm(NULL);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(unarmed_sites_do_nothing),
    cmocka_unit_test(fail_counts_hits),
    cmocka_unit_test(refuses_bad_specs),
    cmocka_unit_test(slow_waits),
    cmocka_unit_test(exit_exits),
    cmocka_unit_test(hold_until_sigusr2),
};

int main(int argc, char **argv)
{
    sl_log_set_level(SL_LOG_WARN);
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name(__FILE__, tests, NULL, NULL) || sl_alloc_live() != 0;
}
