/* See file.h. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

sl_status sl_file_open(const char *path, int *out_fd, uint64_t *out_bytes, sl_err *err)
{
    struct stat info;
    /* A pipe without a writer would hold us; to a regular file it means nothing. */
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return sl_fail_errno(err, errno == ENOENT ? SL_NOT_FOUND : SL_IO, "open %s", path);
    sl_status status = sl_ok();
    if (fstat(fd, &info) != 0)
        status = sl_fail_errno(err, SL_IO, "stat %s", path);
    else if (!S_ISREG(info.st_mode))
        status = sl_fail(err, SL_INVALID, "%s: not a regular file", path);
    if (!sl_is_ok(status)) {
        close(fd);
        return status;
    }
    *out_fd = fd;
    *out_bytes = (uint64_t)info.st_size;
    return status;
}
