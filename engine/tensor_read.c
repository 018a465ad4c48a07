/* Looks at tensors block by block, so that a block is judged and summed while it is in the cache.
 * Owns nothing; any thread. */
#include "engine/tensor_read.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/hash.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

/* Lanes of a 64-bit word: exponent bits (e4m3: all but the sign) and their lowest one. All
 * exponent bits set, and only then, the sum carries into the lane's sign. */
typedef struct lane {
    uint64_t exponent, lowest;
} lane;

static const lane LANES[MDL_DTYPE_COUNT] = {
    [MDL_DTYPE_F32] = {0x7F8000007F800000u, 0x0080000000800000u},
    [MDL_DTYPE_BF16] = {0x7F807F807F807F80u, 0x0080008000800080u},
    [MDL_DTYPE_F8_E4M3] = {0x7F7F7F7F7F7F7F7Fu, 0x0101010101010101u}, /* only NaN: no infinity */
};

static bool word_is_number(const lane *l, uint64_t word)
{
    return (((word & l->exponent) + l->lowest) & (l->exponent + l->lowest)) == 0;
}

static bool are_numbers(const lane *l, const uint8_t *data, size_t bytes)
{
    uint64_t carries = 0, word = 0;
    size_t at = 0;
    for (; at + 8 <= bytes; at += 8) {
        memcpy(&word, data + at, 8);
        carries |= (word & l->exponent) + l->lowest;
    }
    if (at < bytes) {
        word = 0;
        memcpy(&word, data + at, bytes - at);
        carries |= (word & l->exponent) + l->lowest;
    }
    return (carries & (l->exponent + l->lowest)) == 0;
}

static bool weights_good(const mdl_tensor *tensor, size_t at, size_t bytes, eng_tensor_read *read)
{
    const lane *l = &LANES[tensor->dtype];
    const uint8_t *data = (const uint8_t *)tensor->data + at;
    if (are_numbers(l, data, bytes))
        return true;
    size_t size = mdl_dtype_bytes(tensor->dtype);
    for (size_t i = 0; i < bytes; i += size) {
        uint64_t word = 0;
        memcpy(&word, data + i, size);
        if (word_is_number(l, word))
            continue;
        snprintf(read->fault, sizeof(read->fault), "element %zu is NaN or infinity",
                 (at + i) / size);
        break;
    }
    return false;
}

static bool scales_good(const mdl_tensor *tensor, size_t at, size_t bytes, bool pow2,
                        eng_tensor_read *read)
{
    const uint8_t *data = (const uint8_t *)tensor->data + at;
    size_t size = mdl_dtype_bytes(tensor->dtype);
    for (size_t i = 0; i < bytes; i += size) {
        if (tensor->dtype != MDL_DTYPE_F32) { /* U8 is the same bytes under another name */
            if (data[i] != 0xFF)
                continue;
            snprintf(read->fault, sizeof(read->fault), "scale %zu is 255, which is NaN in ue8m0",
                     at + i);
            return false;
        }
        uint32_t bits;
        memcpy(&bits, data + i, sizeof(bits));
        uint32_t exponent = bits >> 23; /* the sign bit makes it too large */
        if (exponent > 0 && exponent < 255 && (!pow2 || (bits & 0x7FFFFF) == 0))
            continue;
        float value;
        memcpy(&value, &bits, sizeof(value));
        snprintf(read->fault, sizeof(read->fault), "scale %zu is %g, not a %s", (at + i) / size,
                 (double)value, pow2 ? "power of two (scale_fmt ue8m0)" : "positive number");
        return false;
    }
    return true;
}

/* The whole pages around a tensor (outward) or inside it. */
typedef struct page_range {
    void *begin;
    size_t bytes;
} page_range;

static page_range pages_of(const mdl_tensor *tensor, bool outward)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), up = page - 1;
    uintptr_t begin = (uintptr_t)tensor->data + (outward ? 0 : up);
    uintptr_t end = (uintptr_t)tensor->data + tensor->bytes + (outward ? up : 0);
    begin &= ~up;
    end &= ~up;
    return (page_range){(void *)begin, end > begin ? end - begin : 0};
}

/* Reads the pages in one go instead of fault by fault; true where the kernel cannot say. */
static bool populate(const mdl_tensor *tensor, eng_tensor_read *read)
{
    page_range pages = pages_of(tensor, true);
    if (tensor->copied || madvise(pages.begin, pages.bytes, MADV_POPULATE_READ) == 0)
        return true;
    if (errno == EINVAL) /* an older kernel */
        return true;
    snprintf(read->fault, sizeof(read->fault),
             "cannot be read: the disk fails, or the file was cut short since it was opened");
    return false;
}

bool eng_tensor_look(const mdl_tensor *tensor, eng_values values, eng_tensor_read *out_read)
{
    *out_read = (eng_tensor_read){0};
    if (!populate(tensor, out_read))
        return false;
    for (size_t at = 0, block = 0; at < tensor->bytes; at += MDL_SUM_BLOCK, block++) {
        size_t left = tensor->bytes - at;
        size_t bytes = left < MDL_SUM_BLOCK ? left : MDL_SUM_BLOCK;
        bool good =
            values == ENG_VALUES_WEIGHTS
                ? weights_good(tensor, at, bytes, out_read)
                : scales_good(tensor, at, bytes, values == ENG_VALUES_POW2_SCALES, out_read);
        if (!good)
            return false;
        out_read->sum += mdl_block_sum(block, (const uint8_t *)tensor->data + at, bytes);
    }
    return true;
}

bool eng_tensor_compare(const mdl_tensor *copy, const mdl_tensor *original,
                        eng_tensor_read *out_read)
{
    *out_read = (eng_tensor_read){0};
    if (!populate(copy, out_read) || !populate(original, out_read))
        return false;
    if (memcmp(copy->data, original->data, copy->bytes) == 0)
        return true;
    snprintf(out_read->fault, sizeof(out_read->fault), "differs from %.64s", original->name);
    return false;
}

/* Advice only, both: nothing depends on it. */

void eng_tensor_expect(const mdl_tensor *tensor)
{
    page_range pages = pages_of(tensor, true);
    if (!tensor->copied)
        (void)madvise(pages.begin, pages.bytes, MADV_WILLNEED);
}

void eng_tensor_forget(const mdl_tensor *tensor)
{
    page_range pages = pages_of(tensor, false);
    if (!tensor->copied && pages.bytes > 0)
        (void)madvise(pages.begin, pages.bytes, MADV_DONTNEED);
}
