/* See secret.h. */
#include "base/secret.h"

#include "base/assert.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LINE_MAX_BYTES 1024

static sl_status check_file(int fd, const char *option, const char *path, sl_err *err)
{
    struct stat is;
    if (fstat(fd, &is) != 0)
        return sl_fail_errno(err, SL_IO, "%s: stat %s", option, path);
    if (!S_ISREG(is.st_mode))
        return sl_fail(err, SL_INVALID, "%s %s: not a regular file", option, path);
    if (is.st_uid != 0 && is.st_uid != geteuid())
        return sl_fail(err, SL_INVALID,
                       "%s %s: belongs to user %u, who may change it: want root's or our own (%u)",
                       option, path, (unsigned)is.st_uid, (unsigned)geteuid());
    if (is.st_mode & (S_IWGRP | S_IRWXO))
        return sl_fail(err, SL_INVALID, "%s %s: open to others (mode %03o): chmod 600 it", option,
                       path, (unsigned)is.st_mode & 0777);
    return sl_ok();
}

/* As much of the file as a line may be; *out_bytes of it. */
static sl_status read_start(int fd, const char *option, const char *path, char *out,
                            size_t *out_bytes, sl_err *err)
{
    size_t have = 0;
    while (have < LINE_MAX_BYTES) {
        ssize_t got = read(fd, out + have, LINE_MAX_BYTES - have);
        if (got < 0)
            return sl_fail_errno(err, SL_IO, "%s: read %s", option, path);
        if (got == 0)
            break;
        have += (size_t)got;
    }
    *out_bytes = have;
    return sl_ok();
}

static sl_status take_line(const char *start, size_t bytes, const char *option, const char *path,
                           size_t min, char *out_line, size_t size, sl_err *err)
{
    const char *end = memchr(start, '\n', bytes);
    size_t length = end ? (size_t)(end - start) : bytes;
    if (length > 0 && start[length - 1] == '\r')
        length--;
    if (length < min || length >= size || memchr(start, '\0', length))
        return sl_fail(err, SL_INVALID, "%s %s: want %zu to %zu bytes on its first line, no NUL",
                       option, path, min, size - 1);
    memcpy(out_line, start, length);
    out_line[length] = '\0';
    return sl_ok();
}

sl_status sl_secret_read(const char *option, const char *path, size_t min, char *out_line,
                         size_t size, sl_err *err)
{
    char start[LINE_MAX_BYTES];
    size_t bytes = 0;
    sl_assert(min > 0 && size > min && size < sizeof(start));
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return sl_fail_errno(err, SL_IO, "%s: open %s", option, path);
    sl_status status = check_file(fd, option, path, err);
    if (sl_is_ok(status))
        status = read_start(fd, option, path, start, &bytes, err);
    close(fd);
    if (sl_is_ok(status))
        status = take_line(start, bytes, option, path, min, out_line, size, err);
    explicit_bzero(start, sizeof(start));
    return status;
}
