/* Safetensors: any file. What opens has every tensor readable, aligned and as large as its
 * shape says. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_tensors(const mdl_checkpoint *c)
{
    uint8_t sum = 0;

    for (size_t i = 0; i < mdl_checkpoint_count(c); i++) {
        const mdl_tensor *t = mdl_checkpoint_at(c, i);
        const uint8_t *bytes = t->data;
        size_t expected = mdl_dtype_bytes(t->dtype);

        for (int32_t k = 0; k < t->rank; k++)
            expected *= (size_t)t->shape[k];
        sl_assert(expected == t->bytes);
        sl_assert((uintptr_t)t->data % mdl_dtype_bytes(t->dtype) == 0);
        sl_assert(mdl_checkpoint_find(c, t->name) == t);
        if (t->bytes > 0)
            sum = (uint8_t)(sum + bytes[0] + bytes[t->bytes - 1]);
    }
    __asm__ volatile("" : : "r"(sum)); /* so that the bytes are really read */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    char path[64];
    mdl_checkpoint *c = NULL;
    sl_err err;

    if (fd < 0)
        fd = memfd_create("fuzz", MFD_CLOEXEC);
    sl_assert(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
    sl_assert(size == 0 || pwrite(fd, data, size, 0) == (ssize_t)size);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (sl_is_ok(mdl_checkpoint_open_file(path, &c, &err)))
        check_tensors(c);
    else
        sl_assert(!c && err.text[0]);
    mdl_checkpoint_close(c);
    sl_assert(sl_alloc_live() == 0);
    return 0;
}
