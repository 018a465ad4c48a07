/* Secrets in files: whose files, which modes, which lines. */
#include "tests/unit/test.h"

#include "base/secret.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define OPTION "--test-file"

static char directory[] = "/tmp/secret_test.XXXXXX";
static char path[64];
static sl_err err;

static void write_file(const void *data, size_t size, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
}

static sl_status read_line(char line[16])
{
    memset(line, '#', 16);
    return sl_secret_read(OPTION, path, 4, line, 16, &err);
}

static void check_refused(const char *text)
{
    char line[16];
    assert_code(read_line(line), SL_INVALID);
    assert_text_contains(err.text, OPTION);
    assert_text_contains(err.text, path);
    assert_text_contains(err.text, text);
    for (size_t i = 0; i < sizeof line; i++)
        assert_int_equal(line[i], '#');
}

TEST(first_line)
{
    static const char *const RIGHT[] = {"abcd", "abcd\n", "abcd\r\n", "abcd\nmore\n", "abcd\n\0x"};
    char line[16], large[4096];
    for (size_t i = 0; i < sizeof RIGHT / sizeof RIGHT[0]; i++) {
        write_file(RIGHT[i], strlen(RIGHT[i]), 0600);
        assert_ok(read_line(line), &err);
        assert_string_equal(line, "abcd");
    }
    write_file("123456789012345\n", 16, 0600);
    assert_ok(read_line(line), &err);
    assert_string_equal(line, "123456789012345");
    memset(large, 'x', sizeof large);
    memcpy(large, "abcd\n", 5);
    write_file(large, sizeof large, 0600);
    assert_ok(read_line(line), &err);
    assert_string_equal(line, "abcd");
}

TEST(lines_that_are_none)
{
    static const struct {
        const char *data;
        size_t size;
    } WRONG[] = {{"", 0},       {"\n", 1},        {"abc", 3},      {"abc\r\n", 5},
                 {"\nabcd", 5}, {"abcd\0e\n", 7}, {"\0\0\0\0", 4}, {"1234567890123456", 16}};
    char large[4096];
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        write_file(WRONG[i].data, WRONG[i].size, 0600);
        check_refused("want 4 to 15 bytes on its first line, no NUL");
    }
    memset(large, 'x', sizeof large);
    write_file(large, sizeof large, 0600);
    check_refused("want 4 to 15 bytes");
}

TEST(modes)
{
    static const mode_t RIGHT[] = {0600, 0400, 0640, 0440, 0700};
    static const mode_t WRONG[] = {0604, 0602, 0601, 0620, 0644, 0666, 0664};
    char line[16], text[32];
    for (size_t i = 0; i < sizeof RIGHT / sizeof RIGHT[0]; i++) {
        write_file("abcd", 4, RIGHT[i]);
        assert_ok(read_line(line), &err);
        unlink(path);
    }
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        write_file("abcd", 4, WRONG[i]);
        snprintf(text, sizeof text, "(mode %03o): chmod 600", (unsigned)WRONG[i]);
        check_refused(text);
    }
}

TEST(links_are_followed_to_what_they_name)
{
    char target[80], line[16];
    write_file("abcd", 4, 0600);
    snprintf(target, sizeof target, "%s.target", path);
    assert_int_equal(rename(path, target), 0);
    assert_int_equal(symlink(target, path), 0);
    assert_ok(read_line(line), &err);
    assert_int_equal(chmod(target, 0644), 0);
    check_refused("mode 644");
    unlink(path);
    unlink(target);
}

TEST(no_files)
{
    char line[16];
    unlink(path);
    assert_code(read_line(line), SL_IO);
    assert_text_contains(err.text, "open ");
    assert_text_contains(err.text, "No such file");
    assert_int_equal(mkdir(path, 0700), 0);
    check_refused("not a regular file");
    rmdir(path);
    assert_int_equal(mkfifo(path, 0600), 0); /* nobody writes: it must not wait */
    check_refused("not a regular file");
    unlink(path);
}

TEST(other_owners)
{
    if (geteuid() != 0)
        skip(); /* only root gives files away */
    write_file("abcd", 4, 0600);
    assert_int_equal(chown(path, 12345, 0), 0);
    check_refused("belongs to user 12345");
}

static int set_up(void **state)
{
    if (!mkdtemp(directory))
        return -1;
    snprintf(path, sizeof path, "%s/file", directory);
    return 0;
}

static int tear_down(void **state)
{
    unlink(path);
    return rmdir(directory);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(first_line), cmocka_unit_test(lines_that_are_none),
    cmocka_unit_test(modes),      cmocka_unit_test(links_are_followed_to_what_they_name),
    cmocka_unit_test(no_files),   cmocka_unit_test(other_owners),
};

int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name(__FILE__, TESTS, set_up, tear_down);
}
