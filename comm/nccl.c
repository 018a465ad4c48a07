/* dlopen of the NCCL backend. Owns nothing; needs neither CUDA nor NCCL to build. */
#include "comm/nccl.h"

#include <dlfcn.h>

sl_status com_nccl_load(const char *path, const com_device_api **out_api, sl_err *err)
{
    const char *name = path ? path : "libsluice_nccl.so";
    void *object = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!object)
        return sl_fail(err, SL_UNSUPPORTED, "nccl backend: %s (`make cuda` builds it)", dlerror());
    com_device_api_get_fn get;
    *(void **)&get = dlsym(object, COM_DEVICE_SYMBOL);
    const com_device_api *api = get ? get(COM_DEVICE_API_VERSION) : NULL;
    if (!api || api->version != COM_DEVICE_API_VERSION || api->bytes != sizeof(*api)) {
        dlclose(object);
        return sl_fail(err, SL_INCOMPATIBLE, "nccl backend: %s is not of version %u", name,
                       COM_DEVICE_API_VERSION);
    }
    *out_api = api;
    return sl_ok();
}
