/* Files that must be plain ones. */
#ifndef BASE_FILE_H
#define BASE_FILE_H

#include <stdint.h>

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Opens a regular file to read; what is none (a pipe, a device, a directory) is refused without
 * waiting for its other end. *out_fd: the caller's to close. SL_NOT_FOUND: there is none; SL_IO;
 * SL_INVALID: not a regular file. Thread: any. */
SL_MUST_USE sl_status sl_file_open(const char *path, int *out_fd, uint64_t *out_bytes, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
