/* What the model tests share: where the shared folder is, and temporary files. */
#ifndef TESTS_UNIT_MODEL_SUPPORT_H
#define TESTS_UNIT_MODEL_SUPPORT_H

#include <unistd.h>

#include "base/bytes.h"
#include "tests/unit/test.h"

#define SHARED     "../shared"
#define DEMO_MODEL "models/demo" /* kept in the repository, without its vectors */

/* True if the path is there; else says loudly that the test is skipped. */
static inline bool have(const char *path)
{
    if (access(path, R_OK) == 0)
        return true;
    fprintf(stderr, "SKIPPED: %s is not there\n", path);
    return false;
}

#define skip_without(path) \
    do {                   \
        if (!have(path)) { \
            skip();        \
            return;        \
        }                  \
    } while (0)

static inline void read_whole(const char *path, sl_buf *out)
{
    char block[65536];
    size_t n;
    FILE *file = fopen(path, "rb");

    assert_non_null(file);
    sl_buf_init(out, 0);
    while ((n = fread(block, 1, sizeof(block), file)) > 0)
        sl_buf_append(out, block, n);
    fclose(file);
}

static inline void write_whole(const char *path, const void *data, size_t size)
{
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    if (size > 0)
        assert_int_equal(fwrite(data, size, 1, file), 1);
    assert_int_equal(fclose(file), 0);
}

#endif
