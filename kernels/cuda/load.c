/* dlopen of the CUDA backend. Owns nothing; needs no CUDA to build. */
#include "kernels/cuda/load.h"

#include <dlfcn.h>

sl_status krn_cuda_status(const krn_cuda_api *api, int code, sl_err *err)
{
    switch (code) {
    case KRN_CUDA_OK:
        return sl_ok();
    case KRN_CUDA_INVALID:
        return sl_fail(err, SL_INVALID, "cuda: %s", api->last_error());
    case KRN_CUDA_UNSUPPORTED:
        return sl_fail(err, SL_UNSUPPORTED, "cuda: %s", api->last_error());
    case KRN_CUDA_NO_MEMORY:
        return sl_fail(err, SL_NO_MEMORY, "cuda: %s", api->last_error());
    default:
        return sl_fail(err, SL_IO, "cuda: %s", api->last_error());
    }
}

sl_status krn_cuda_load(const char *path, int32_t device, const krn_cuda_api **out_api,
                        krn_cuda_device *out_device, sl_err *err)
{
    void *object = dlopen(path ? path : "libsluice_cuda.so", RTLD_NOW | RTLD_LOCAL);
    if (!object)
        return sl_fail(err, SL_UNSUPPORTED,
                       "cuda backend: %s (`make cuda` builds it, --cuda-library says where it is)",
                       dlerror());
    krn_cuda_api_get_fn get;
    *(void **)&get = dlsym(object, KRN_CUDA_SYMBOL);
    const krn_cuda_api *api = get ? get(KRN_CUDA_API_VERSION) : NULL;
    if (!api || api->version != KRN_CUDA_API_VERSION || api->bytes != sizeof *api) {
        dlclose(object);
        return sl_fail(err, SL_INCOMPATIBLE, "cuda backend: %s is not of version %u",
                       path ? path : "libsluice_cuda.so", KRN_CUDA_API_VERSION);
    }
    krn_cuda_device found;
    sl_status status = krn_cuda_status(api, api->device_open(device, &found), err);
    if (!sl_is_ok(status))
        return status; /* the runtime's threads may not be unloaded */
    *out_api = api;
    *out_device = found;
    return sl_ok();
}
