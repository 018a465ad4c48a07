/* Opens libsluice_cuda.so at run time, so that one binary serves machines with and without CUDA.
 *
 * Thread: any; the object stays loaded. */
#ifndef KERNELS_CUDA_LOAD_H
#define KERNELS_CUDA_LOAD_H

#include "base/status.h"
#include "kernels/cuda/sluice_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* path: NULL = "libsluice_cuda.so" by the loader's search path. SL_UNSUPPORTED: no such object, no
 * device, or not compute capability 9.0; SL_INCOMPATIBLE: the object has another version. */
SL_MUST_USE sl_status krn_cuda_load(const char *path, int32_t device, const krn_cuda_api **out_api,
                                    krn_cuda_device *out_device, sl_err *err);
/* An operation's code as a status; the text is the object's. */
SL_MUST_USE sl_status krn_cuda_status(const krn_cuda_api *api, int code, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
