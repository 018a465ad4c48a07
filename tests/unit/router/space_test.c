/* Cache spaces: what is made of the cluster secret and a request's salt. */
#include "tests/unit/test.h"

#include "router/space.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECRET "0123456789abcdef0123456789abcdef"

static sl_err err;

/* Worked out apart: HMAC-SHA256 of the two names under the secret, then SipHash-2-4. */
TEST(known_values)
{
    rtr_space_key key;
    rtr_space_key_make(SECRET, &key);
    assert_true(key.secret);
    assert_string_equal(key.mark, "584d6ef7174e1dc3");
    assert_true(key.words[0] == 0xb8b8b9509261096aull);
    assert_true(key.words[1] == 0x2d8ebf26a04f992full);
    assert_true(rtr_space(&key, "", 0) == 0x31976754733eb169ull);
    assert_true(rtr_space(&key, "alice", 5) == 0xd7f1869aac7cb23cull);
    rtr_space_key none = {0};
    assert_true(rtr_space(&none, "", 0) == 0);
    assert_true(rtr_space(&none, "alice", 5) == 0x1f8c64159cad969cull);
}

TEST(another_secret_is_another_space)
{
    rtr_space_key a, b;
    rtr_space_key_make(SECRET, &a);
    rtr_space_key_make(SECRET "x", &b);
    assert_string_not_equal(a.mark, b.mark);
    assert_true(rtr_space(&a, "", 0) != rtr_space(&b, "", 0));
    assert_true(rtr_space(&a, "alice", 5) != rtr_space(&b, "alice", 5));
    assert_true(rtr_space(&a, "alice", 5) != rtr_space(&a, "bob", 3));
}

TEST(from_a_file)
{
    char path[] = "/tmp/space_test.XXXXXX", line[RTR_SECRET_BYTES_MAX + 2];
    rtr_space_key key, same;
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, SECRET "\n", 33) == 33);
    assert_ok(rtr_space_key_read(path, &key, &err), &err);
    rtr_space_key_make(SECRET, &same);
    assert_memory_equal(&key, &same, sizeof key);
    assert_ok(rtr_space_key_read(NULL, &key, &err), &err);
    assert_false(key.secret);
    assert_string_equal(key.mark, "");
    memset(line, 's', sizeof line);
    assert_true(pwrite(fd, line, RTR_SECRET_BYTES_MAX, 0) == RTR_SECRET_BYTES_MAX);
    assert_ok(rtr_space_key_read(path, &key, &err), &err);
    assert_true(pwrite(fd, line, sizeof line, 0) == (ssize_t)sizeof line);
    assert_code(rtr_space_key_read(path, &key, &err), SL_INVALID);
    assert_text_contains(err.text, "--cluster-secret-file");
    assert_text_contains(err.text, "want 32 to 512 bytes");
    assert_int_equal(ftruncate(fd, RTR_SECRET_BYTES_MIN - 1), 0);
    assert_code(rtr_space_key_read(path, &key, &err), SL_INVALID);
    assert_false(key.secret);
    close(fd);
    unlink(path);
    assert_code(rtr_space_key_read(path, &key, &err), SL_IO);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(known_values),
    cmocka_unit_test(another_secret_is_another_space),
    cmocka_unit_test(from_a_file),
};
TEST_MAIN(TESTS)
