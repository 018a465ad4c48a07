/* Opens libsluice_nccl.so at run time: the device backend over NVIDIA GPUs and NCCL. Whoever does
 * not call this needs neither CUDA nor NCCL.
 *
 * Thread: any; the object stays loaded. */
#ifndef COMM_NCCL_H
#define COMM_NCCL_H

#include "base/status.h"
#include "comm/device_api.h"

#ifdef __cplusplus
extern "C" {
#endif

/* path: NULL = "libsluice_nccl.so" by the loader's search path. SL_UNSUPPORTED: no such object, or
 * no NCCL for it; SL_INCOMPATIBLE: it is another object, or of another version. */
SL_MUST_USE sl_status com_nccl_load(const char *path, const com_device_api **out_api, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
