/* What is opened, and what is refused without waiting for it? */
#include "base/file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/test.h"

static char path[] = "/tmp/sluice-file-test-XXXXXX";

static void check_refused(sl_code code, const char *text)
{
    sl_err err;
    int fd = -7;
    uint64_t bytes = 7;
    assert_code(sl_file_open(path, &fd, &bytes, &err), code);
    assert_text_contains(err.text, text);
    assert_true(fd == -7 && bytes == 7);
}

TEST(regular_files_alone)
{
    sl_err err;
    uint64_t bytes;
    char text[8];
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "hello", 5), 5);
    close(fd);
    assert_code(sl_file_open(path, &fd, &bytes, &err), SL_OK);
    assert_int_equal(bytes, 5);
    assert_int_equal(read(fd, text, sizeof(text)), 5);
    close(fd);
    unlink(path);
    check_refused(SL_NOT_FOUND, "No such file");
    assert_int_equal(mkdir(path, 0700), 0);
    check_refused(SL_INVALID, "not a regular file");
    rmdir(path);
    assert_int_equal(mkfifo(path, 0600), 0); /* nobody writes: it must not wait */
    check_refused(SL_INVALID, "not a regular file");
    unlink(path);
}

static const struct CMUnitTest TESTS[] = {cmocka_unit_test(regular_files_alone)};
TEST_MAIN(TESTS)
