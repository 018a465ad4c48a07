/* Writing safetensors files (dumps). Owns nothing. */
#include "model/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/json.h"

static int by_element_size(const void *a, const void *b)
{
    const mdl_tensor *const *x = a, *const *y = b;
    size_t p = mdl_dtype_bytes((*x)->dtype), q = mdl_dtype_bytes((*y)->dtype);

    if (p != q)
        return p > q ? -1 : 1;
    return *x < *y ? -1 : *x > *y; /* same array: keeps the caller's order */
}

static void write_header(sl_buf *buf, const mdl_tensor *const *order, size_t count)
{
    size_t at = 0;

    sl_buf_putc(buf, '{');
    for (size_t i = 0; i < count; i++) {
        const mdl_tensor *t = order[i];

        sl_buf_puts(buf, i ? "," : "");
        sl_json_write_string(buf, t->name, strlen(t->name));
        sl_buf_printf(buf, ":{\"dtype\":\"%s\",\"shape\":[", mdl_dtype_name(t->dtype));
        for (int32_t k = 0; k < t->rank; k++)
            sl_buf_printf(buf, "%s%lld", k ? "," : "", (long long)t->shape[k]);
        sl_buf_printf(buf, "],\"data_offsets\":[%zu,%zu]}", at, at + t->bytes);
        at += t->bytes;
    }
    sl_buf_putc(buf, '}');
    while (buf->size % 8 != 0)
        sl_buf_putc(buf, ' ');
}

static sl_status check_tensors(const char *path, const mdl_tensor *tensors, size_t count,
                               sl_err *err)
{
    for (size_t i = 0; i < count; i++) {
        const mdl_tensor *t = &tensors[i];
        size_t bytes = mdl_dtype_bytes(t->dtype);

        sl_assert(t->rank >= 0 && t->rank <= MDL_TENSOR_RANK_MAX);
        for (int32_t k = 0; k < t->rank; k++)
            bytes *= (size_t)t->shape[k];
        if (bytes != t->bytes)
            return sl_fail(err, SL_INVALID, "%s: tensor %s has %zu bytes, its shape needs %zu",
                           path, t->name, t->bytes, bytes);
        for (size_t k = 0; k < i; k++) {
            if (strcmp(tensors[k].name, t->name) == 0)
                return sl_fail(err, SL_INVALID, "%s: tensor %s twice", path, t->name);
        }
    }
    return sl_ok();
}

static sl_status write_file(const char *path, const sl_buf *header, const mdl_tensor *const *order,
                            size_t count, sl_err *err)
{
    uint64_t header_bytes = header->size;
    FILE *file = fopen(path, "wbe");
    bool good;

    if (!file)
        return sl_fail_errno(err, SL_IO, "create %s", path);
    good =
        fwrite(&header_bytes, 8, 1, file) == 1 && fwrite(header->data, header->size, 1, file) == 1;
    for (size_t i = 0; i < count && good; i++)
        good = order[i]->bytes == 0 || fwrite(order[i]->data, order[i]->bytes, 1, file) == 1;
    if (fclose(file) != 0)
        good = false;
    if (!good)
        return sl_fail_errno(err, SL_IO, "write %s", path);
    return sl_ok();
}

sl_status mdl_safetensors_write(const char *path, const mdl_tensor *tensors, size_t tensor_count,
                                sl_err *err)
{
    const mdl_tensor **order;
    char *temporary;
    sl_buf header;
    sl_status status;

    SL_TRY(check_tensors(path, tensors, tensor_count, err));
    order = sl_alloc(tensor_count + 1, sizeof(*order), "tensor order");
    for (size_t i = 0; i < tensor_count; i++)
        order[i] = &tensors[i];
    qsort(order, tensor_count, sizeof(*order), by_element_size);
    sl_buf_init(&header, MDL_HEADER_BYTES_MAX);
    write_header(&header, order, tensor_count);
    temporary = sl_asprintf("file name", "%s.%ld.tmp", path, (long)getpid());
    if (header.overflow)
        status = sl_fail(err, SL_TOO_LARGE, "%s: header is too large", path);
    else
        status = write_file(temporary, &header, order, tensor_count, err);
    if (sl_is_ok(status) && rename(temporary, path) != 0)
        status = sl_fail_errno(err, SL_IO, "rename %s to %s", temporary, path);
    if (!sl_is_ok(status))
        unlink(temporary);
    sl_free(temporary);
    sl_buf_fini(&header);
    sl_free(order);
    return status;
}
