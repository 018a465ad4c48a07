/* Status, error text, logs, allocations, clock. */
#include "tests/unit/test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"

TEST(fail_fills_code_and_text)
{
    sl_err err;
    assert_code(sl_fail(&err, SL_FULL, "queue %s holds %d", "q", 3), SL_FULL);
    assert_int_equal(err.code, SL_FULL);
    assert_string_equal(err.text, "queue q holds 3");
    assert_code(sl_fail(NULL, SL_DENIED, "x"), SL_DENIED);
}

TEST(fail_errno_appends_and_keeps_errno)
{
    sl_err err;
    errno = ENOENT;
    assert_code(sl_fail_errno(&err, SL_IO, "open %s", "/x"), SL_IO);
    assert_string_equal(err.text, "open /x: No such file or directory");
    assert_int_equal(errno, ENOENT);
}

TEST(wrap_prepends)
{
    sl_err err;
    sl_status status = sl_fail(&err, SL_CORRUPT, "bad sum");
    assert_code(sl_wrap(&err, status, "page %d", 7), SL_CORRUPT);
    assert_string_equal(err.text, "page 7: bad sum");
}

TEST(long_text_is_cut_not_overrun)
{
    sl_err err;
    char text[2000];
    memset(text, 'a', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    sl_status status = sl_fail(&err, SL_INVALID, "%s", text);
    assert_int_equal(strlen(err.text), SL_ERR_TEXT_MAX - 1);
    status = sl_wrap(&err, status, "%s", text);
    assert_int_equal(strlen(err.text), SL_ERR_TEXT_MAX - 1);
    assert_code(status, SL_INVALID);
}

static sl_status tries(sl_status inner)
{
    SL_TRY(inner);
    return sl_fail(NULL, SL_INTERNAL, "reached");
}

/* However it came to be too long, it ends so that it is seen, and not amid a character. */
static void assert_cut(const sl_err *err, size_t least)
{
    size_t size = strlen(err->text);
    assert_true(size >= least && size < SL_ERR_TEXT_MAX);
    assert_string_equal(err->text + size - 3, "...");
    size_t characters = size - 3;
    while (characters > 0 && ((unsigned char)err->text[characters - 1] & 0xc0) == 0x80)
        characters--;
    if (characters < size - 3) /* its first byte says how many there are */
        assert_int_equal((unsigned char)err->text[characters - 1] >> 4, 0xe);
    assert_true(characters == size - 3 || size - 3 - characters == 2);
}

TEST(a_text_that_was_cut_says_so)
{
    char euros[3 * 200 + 1];
    sl_err err;
    for (size_t i = 0; i < 200; i++)
        memcpy(euros + 3 * i, "\xe2\x82\xac", 4);
    for (int shift = 0; shift < 3; shift++) {
        assert_code(sl_fail(&err, SL_INVALID, "%.*s%s", shift, "ab", euros), SL_INVALID);
        assert_cut(&err, SL_ERR_TEXT_MAX - 3);
        assert_code(sl_fail(&err, SL_INVALID, "%.*s%.498s", shift, "ab", euros), SL_INVALID);
        assert_null(strstr(err.text, "..."));
        (void)sl_wrap(&err, (sl_status){SL_INVALID}, "where it came from");
        assert_cut(&err, SL_ERR_TEXT_MAX - 3);
        (void)sl_wrap(&err, (sl_status){SL_INVALID}, "%s", euros);
        assert_cut(&err, SL_ERR_TEXT_MAX - 3);
        errno = ENOENT;
        assert_code(sl_fail_errno(&err, SL_IO, "%.*s%.498s", shift, "ab", euros), SL_IO);
        assert_cut(&err, SL_ERR_TEXT_MAX - 3);
    }
}

TEST(try_returns_the_failure)
{
    assert_code(tries(sl_fail(NULL, SL_DEADLINE, "x")), SL_DEADLINE);
    assert_code(tries(sl_ok()), SL_INTERNAL);
}

TEST(every_code_has_its_own_name)
{
    static const sl_code codes[] = {
        SL_OK,           SL_INVALID,  SL_TOO_LARGE, SL_UNSUPPORTED, SL_NOT_FOUND, SL_EXISTS,
        SL_CANCELLED,    SL_DEADLINE, SL_FULL,      SL_CONFLICT,    SL_CORRUPT,   SL_UNAVAILABLE,
        SL_INCOMPATIBLE, SL_DENIED,   SL_IO,        SL_NO_MEMORY,   SL_INTERNAL};
    for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
        assert_string_not_equal(sl_code_name(codes[i]), "unknown");
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(sl_code_name(codes[i]), sl_code_name(codes[j]));
    }
    assert_string_equal(sl_code_name((sl_code)999), "unknown");
}

/* What one log call writes to descriptor 2. */
static void captured_log(char *out, size_t size, sl_log_level level, const char *text)
{
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    int saved = dup(STDERR_FILENO);
    dup2(fds[1], STDERR_FILENO);
    sl_log(level, "%s", text);
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(fds[1]);
    size_t used = 0;
    ssize_t got;
    while ((got = read(fds[0], out + used, size - 1 - used)) > 0)
        used += (size_t)got;
    out[used] = '\0';
    close(fds[0]);
}

TEST(log_line_has_its_form)
{
    char line[8192];
    sl_log_set_name("prefill-0");
    captured_log(line, sizeof(line), SL_LOG_WARN, "peer x: gone");
    assert_int_equal(line[4], '-');
    assert_int_equal(line[10], 'T');
    assert_int_equal(line[26], 'Z');
    assert_string_equal(line + 27, " warn  prefill-0  peer x: gone\n");
}

TEST(log_level_filters)
{
    char line[8192];
    sl_log_level level;
    captured_log(line, sizeof(line), SL_LOG_DEBUG, "hidden");
    assert_string_equal(line, "");
    assert_true(sl_log_level_parse("debug", &level));
    sl_log_set_level(level);
    captured_log(line, sizeof(line), SL_LOG_DEBUG, "shown");
    assert_text_contains(line, "shown");
    sl_log_set_level(SL_LOG_INFO);
    assert_false(sl_log_level_parse("loud", &level));
    assert_false(sl_log_level_parse(NULL, &level));
}

TEST(log_text_cannot_forge_lines)
{
    char line[8192];
    captured_log(line, sizeof(line), SL_LOG_ERROR, "a\nb\x1b[0m");
    assert_text_contains(line, "a b?[0m\n");
    assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
}

TEST(long_log_lines_are_cut)
{
    char line[8192];
    char *text = sl_alloc(6000, 1, "test");
    memset(text, 'x', 5999);
    captured_log(line, sizeof(line), SL_LOG_ERROR, text);
    sl_free(text);
    size_t size = strlen(line);
    assert_true(size <= 4096);
    assert_string_equal(line + size - 4, "...\n");
}

TEST(allocations_are_zeroed_and_counted)
{
    uint64_t before = sl_alloc_live();
    uint8_t *bytes = sl_alloc(100, 3, "test block");
    for (int i = 0; i < 300; i++)
        assert_int_equal(bytes[i], 0);
    assert_int_equal((uintptr_t)bytes % 16, 0);
    assert_int_equal(sl_alloc_live(), before + 1);
    bytes = sl_realloc(bytes, 1000, 3, "test block");
    assert_int_equal(sl_alloc_live(), before + 1);
    sl_free(bytes);
    sl_free(NULL);
    assert_int_equal(sl_alloc_live(), before);
    void *a = sl_alloc(0, 8, "empty"), *b = sl_alloc(0, 8, "empty");
    assert_ptr_not_equal(a, b);
    sl_free(a);
    sl_free(b);
}

TEST(text_helpers_copy)
{
    char *a = sl_strdup("abc", "test"), *b = sl_strndup("abc", 2, "test");
    char *c = sl_asprintf("test", "%s-%d", a, 5);
    assert_string_equal(a, "abc");
    assert_string_equal(b, "ab");
    assert_string_equal(c, "abc-5");
    sl_free(a);
    sl_free(b);
    sl_free(c);
}

TEST(pages_are_zero_and_counted)
{
    sl_err err;
    void *memory;
    uint64_t before = sl_alloc_live();
    assert_ok(sl_alloc_pages((size_t)3 << 20, &memory, &err), &err);
    assert_int_equal(((uint8_t *)memory)[(3 << 20) - 1], 0);
    assert_int_equal(sl_alloc_live(), before + 1);
    sl_free_pages(memory, (size_t)3 << 20);
    assert_code(sl_alloc_pages(0, &memory, &err), SL_INVALID);
    assert_code(sl_alloc_pages((size_t)1 << 60, &memory, &err), SL_NO_MEMORY);
    assert_int_equal(sl_alloc_live(), before);
}

/* The signal that ends a child which does `wrong`. */
static int death_of(void (*wrong)(void))
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        int null = open("/dev/null", O_WRONLY);
        dup2(null, STDERR_FILENO);
        signal(SIGABRT, SIG_DFL);
        wrong();
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void free_of_foreign(void)
{
    uint64_t words[8] = {0};
    sl_free(words + 4);
}

static void false_assertion(void)
{
    sl_assert(1 + 1 == 3);
}

TEST(misuse_aborts)
{
    assert_int_equal(death_of(free_of_foreign), SIGABRT);
    assert_int_equal(death_of(false_assertion), SIGABRT);
}

TEST(clocks_run_forward)
{
    sl_time_ns a = sl_now_ns(), b = sl_now_ns();
    assert_true(b >= a);
    assert_true(sl_wall_ns() > 1700000000ull * SL_S_NS);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(fail_fills_code_and_text),
    cmocka_unit_test(fail_errno_appends_and_keeps_errno),
    cmocka_unit_test(wrap_prepends),
    cmocka_unit_test(long_text_is_cut_not_overrun),
    cmocka_unit_test(a_text_that_was_cut_says_so),
    cmocka_unit_test(try_returns_the_failure),
    cmocka_unit_test(every_code_has_its_own_name),
    cmocka_unit_test(log_line_has_its_form),
    cmocka_unit_test(log_level_filters),
    cmocka_unit_test(log_text_cannot_forge_lines),
    cmocka_unit_test(long_log_lines_are_cut),
    cmocka_unit_test(allocations_are_zeroed_and_counted),
    cmocka_unit_test(text_helpers_copy),
    cmocka_unit_test(pages_are_zero_and_counted),
    cmocka_unit_test(misuse_aborts),
    cmocka_unit_test(clocks_run_forward),
};
TEST_MAIN(tests)
