/* Safetensors reader and writer.
 *
 * Owns the mappings and the tensor table. A file is believed only after its header fits it exactly:
 * every byte of data belongs to one tensor. Opening reads tensor data only to copy what is
 * unaligned. */
#include "model/safetensors.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/file.h"
#include "base/json.h"
#include "base/rng.h"

#define TENSORS_MAX     ((size_t)1 << 20)
#define INDEX_BYTES_MAX ((size_t)256 << 20)
#define HEADER_DEPTH    8

static const struct {
    const char *name;
    size_t bytes;
} DTYPES[MDL_DTYPE_COUNT] = {
    [MDL_DTYPE_F32] = {"F32", 4},         [MDL_DTYPE_BF16] = {"BF16", 2},
    [MDL_DTYPE_F8_E4M3] = {"F8_E4M3", 1}, [MDL_DTYPE_F8_E8M0] = {"F8_E8M0", 1},
    [MDL_DTYPE_U8] = {"U8", 1},           [MDL_DTYPE_I32] = {"I32", 4},
    [MDL_DTYPE_I64] = {"I64", 8},
};

typedef struct mapped_file {
    char *name;      /* as shown in messages */
    uint8_t *memory; /* NULL: the index names it, but it is not there */
    size_t bytes;
} mapped_file;

struct mdl_checkpoint {
    mapped_file *files;
    size_t file_count;
    mdl_tensor *tensors; /* those that are there, then the absent ones */
    size_t tensor_count;
    size_t present_count;
    size_t tensor_capacity;
    uint32_t *slots; /* open addressing: index + 1 into tensors, 0 = free */
    size_t slot_count;
    uint64_t key[2];
    void **copies; /* data of tensors that lie unaligned in their file */
    size_t copy_count;
};

size_t mdl_dtype_bytes(mdl_dtype dtype)
{
    sl_assert((unsigned)dtype < MDL_DTYPE_COUNT);
    return DTYPES[dtype].bytes;
}

const char *mdl_dtype_name(mdl_dtype dtype)
{
    sl_assert((unsigned)dtype < MDL_DTYPE_COUNT);
    return DTYPES[dtype].name;
}

static bool dtype_parse(const char *text, mdl_dtype *out_dtype)
{
    for (int i = 0; i < MDL_DTYPE_COUNT; i++) {
        if (strcmp(DTYPES[i].name, text) == 0) {
            *out_dtype = (mdl_dtype)i;
            return true;
        }
    }
    return false;
}

/* --- the table of names --- */

static uint32_t *find_slot(const mdl_checkpoint *c, const char *name)
{
    size_t mask = c->slot_count - 1;
    size_t at = sl_siphash(c->key, name, strlen(name)) & mask;

    while (c->slots[at] && strcmp(c->tensors[c->slots[at] - 1].name, name) != 0)
        at = (at + 1) & mask;
    return &c->slots[at];
}

static void rehash(mdl_checkpoint *c, size_t slot_count)
{
    sl_free(c->slots);
    c->slots = sl_alloc(slot_count, sizeof(*c->slots), "checkpoint names");
    c->slot_count = slot_count;
    for (size_t i = 0; i < c->tensor_count; i++)
        *find_slot(c, c->tensors[i].name) = (uint32_t)(i + 1);
}

/* Takes the name. */
static sl_status add_tensor(mdl_checkpoint *c, const mdl_tensor *tensor, sl_err *err)
{
    uint32_t *slot;

    if ((c->tensor_count + 1) * 2 > c->slot_count)
        rehash(c, c->slot_count * 2);
    slot = find_slot(c, tensor->name);
    if (*slot)
        return sl_fail(err, SL_CORRUPT, "%s: tensor %s is also in %s", tensor->file, tensor->name,
                       c->tensors[*slot - 1].file);
    if (c->tensor_count == TENSORS_MAX)
        return sl_fail(err, SL_TOO_LARGE, "%s: more than %zu tensors", tensor->file, TENSORS_MAX);
    if (c->tensor_count == c->tensor_capacity) {
        c->tensor_capacity = c->tensor_capacity ? c->tensor_capacity * 2 : 64;
        c->tensors = sl_realloc(c->tensors, c->tensor_capacity, sizeof(*c->tensors), "tensors");
    }
    c->tensors[c->tensor_count] = *tensor;
    *slot = (uint32_t)++c->tensor_count;
    return sl_ok();
}

/* --- one header --- */

/* Keys at depth one of a text that is known to be a valid JSON object: the parser folds duplicates,
 * so they show as a difference between this and its count. */
static size_t count_keys(const char *text, size_t size)
{
    size_t keys = 0;
    int depth = 0;
    bool in_string = false;

    for (size_t i = 0; i < size; i++) {
        char ch = text[i];

        if (in_string) {
            if (ch == '\\')
                i++;
            else if (ch == '"')
                in_string = false;
        } else if (ch == '"') {
            in_string = true;
        } else if (ch == '{' || ch == '[') {
            depth++;
        } else if (ch == '}' || ch == ']') {
            depth--;
        } else if (ch == ':' && depth == 1) {
            keys++;
        }
    }
    return keys;
}

static sl_status parse_shape(const char *file, const sl_json *entry, mdl_tensor *t,
                             uint64_t *out_bytes, sl_err *err)
{
    const sl_json *shape = sl_json_get(entry, "shape");
    uint64_t bytes = mdl_dtype_bytes(t->dtype);

    if (sl_json_typeof(shape) != SL_JSON_ARRAY || sl_json_count(shape) > MDL_TENSOR_RANK_MAX)
        return sl_fail(err, SL_CORRUPT, "%s: tensor %s: shape must be an array of at most %d", file,
                       t->name, MDL_TENSOR_RANK_MAX);
    t->rank = (int32_t)sl_json_count(shape);
    for (int32_t i = 0; i < t->rank; i++) {
        int64_t n;

        if (!sl_json_i64(sl_json_at(shape, (size_t)i), &n) || n < 0 ||
            __builtin_mul_overflow(bytes, (uint64_t)n, &bytes))
            return sl_fail(err, SL_CORRUPT, "%s: tensor %s: bad shape", file, t->name);
        t->shape[i] = n;
    }
    *out_bytes = bytes;
    return sl_ok();
}

static sl_status parse_tensor(const mapped_file *file, size_t data_begin, const char *name,
                              size_t name_size, const sl_json *entry, mdl_tensor *out_tensor,
                              sl_err *err)
{
    mdl_tensor t = {.name = name, .file = file->name};
    const char *dtype = sl_json_string(sl_json_get(entry, "dtype"), NULL);
    const sl_json *offsets = sl_json_get(entry, "data_offsets");
    int64_t begin, end;
    uint64_t expected = 0;

    if (name_size == 0 || name_size > MDL_TENSOR_NAME_MAX || strlen(name) != name_size)
        return sl_fail(err, SL_CORRUPT, "%s: tensor name \"%.64s\" is empty, too long or holds NUL",
                       file->name, name);
    if (!dtype)
        return sl_fail(err, SL_CORRUPT, "%s: tensor %s: dtype is missing", file->name, name);
    if (!dtype_parse(dtype, &t.dtype))
        return sl_fail(err, SL_UNSUPPORTED, "%s: tensor %s: dtype %.32s is not supported",
                       file->name, name, dtype);
    SL_TRY(parse_shape(file->name, entry, &t, &expected, err));
    if (sl_json_count(offsets) != 2 || !sl_json_i64(sl_json_at(offsets, 0), &begin) ||
        !sl_json_i64(sl_json_at(offsets, 1), &end) || begin < 0 || end < begin)
        return sl_fail(err, SL_CORRUPT, "%s: tensor %s: bad data_offsets", file->name, name);
    if ((uint64_t)end > file->bytes - data_begin)
        return sl_fail(err, SL_CORRUPT,
                       "%s: tensor %s: ends at byte %lld of %zu: file is cut short", file->name,
                       name, (long long)end, file->bytes - data_begin);
    if ((uint64_t)(end - begin) != expected)
        return sl_fail(err, SL_CORRUPT, "%s: tensor %s: holds %lld bytes, its shape needs %llu",
                       file->name, name, (long long)(end - begin), (unsigned long long)expected);
    t.bytes = (size_t)(end - begin);
    t.data = file->memory + data_begin + begin;
    *out_tensor = t;
    return sl_ok();
}

static int by_position(const void *a, const void *b)
{
    const mdl_tensor *x = a, *y = b;

    if (x->data != y->data)
        return x->data < y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* tensors: this file's, sorted by position. Together they must be the data, each byte once. */
static sl_status check_cover(const mapped_file *file, size_t data_begin, const mdl_tensor *tensors,
                             size_t count, sl_err *err)
{
    const uint8_t *at = file->memory + data_begin;
    const uint8_t *end = file->memory + file->bytes;

    for (size_t i = 0; i < count; i++) {
        const uint8_t *data = tensors[i].data;

        if (data != at)
            return sl_fail(err, SL_CORRUPT, "%s: tensor %s: %s byte %zu", file->name,
                           tensors[i].name, data < at ? "overlaps another at" : "follows a gap at",
                           (size_t)((data < at ? data : at) - file->memory) - data_begin);
        at = data + tensors[i].bytes;
    }
    if (at != end)
        return sl_fail(err, SL_CORRUPT, "%s: %zu bytes after the last tensor", file->name,
                       (size_t)(end - at));
    return sl_ok();
}

/* The format promises no alignment, our callers do: what lies badly is copied. */
static void align_data(mdl_checkpoint *c, mdl_tensor *tensor)
{
    if ((uintptr_t)tensor->data % mdl_dtype_bytes(tensor->dtype) == 0)
        return;
    void *copy = sl_alloc(tensor->bytes, 1, "unaligned tensor");
    memcpy(copy, tensor->data, tensor->bytes);
    c->copies = sl_realloc(c->copies, c->copy_count + 1, sizeof(*c->copies), "unaligned tensors");
    c->copies[c->copy_count++] = copy;
    tensor->data = copy;
    tensor->copied = true;
}

static sl_status add_tensors(mdl_checkpoint *c, const mapped_file *file, size_t data_begin,
                             const sl_json *header, sl_err *err)
{
    size_t count = sl_json_count(header), used = 0;
    mdl_tensor *tensors = sl_alloc(count + 1, sizeof(*tensors), "tensors of a file");
    sl_status status = sl_ok();

    for (size_t i = 0; i < count && sl_is_ok(status); i++) {
        size_t name_size;
        const char *name = sl_json_key(header, i, &name_size);

        if (strcmp(name, "__metadata__") != 0)
            status = parse_tensor(file, data_begin, name, name_size, sl_json_at(header, i),
                                  &tensors[used++], err);
    }
    if (sl_is_ok(status)) {
        qsort(tensors, used, sizeof(*tensors), by_position);
        status = check_cover(file, data_begin, tensors, used, err);
    }
    for (size_t i = 0; i < used && sl_is_ok(status); i++) {
        char *name = sl_strdup(tensors[i].name, "tensor name");

        tensors[i].name = name;
        align_data(c, &tensors[i]);
        status = add_tensor(c, &tensors[i], err);
        if (!sl_is_ok(status))
            sl_free(name);
    }
    sl_free(tensors);
    return status;
}

static sl_status read_header(mdl_checkpoint *c, const mapped_file *file, sl_err *err)
{
    sl_json_limits limits = {.bytes_max = MDL_HEADER_BYTES_MAX, .depth_max = HEADER_DEPTH};
    uint64_t size = 0;
    const char *text = (const char *)file->memory + 8;
    sl_json_doc *doc = NULL;
    sl_status status;

    if (file->bytes < 8)
        return sl_fail(err, SL_CORRUPT, "%s: shorter than a safetensors header", file->name);
    memcpy(&size, file->memory, 8);
    if (size > MDL_HEADER_BYTES_MAX || size > file->bytes - 8)
        return sl_fail(err, SL_CORRUPT, "%s: header of %llu bytes in a file of %zu", file->name,
                       (unsigned long long)size, file->bytes);
    status = sl_json_parse(text, (size_t)size, &limits, &doc, err);
    if (!sl_is_ok(status)) {
        sl_err inner = {SL_CORRUPT, "no memory for text"};
        if (err)
            inner = *err;
        return sl_fail(err, SL_CORRUPT, "%s: header: %.300s", file->name, inner.text);
    }
    if (sl_json_typeof(sl_json_root(doc)) != SL_JSON_OBJECT)
        status = sl_fail(err, SL_CORRUPT, "%s: header is not a JSON object", file->name);
    else if (count_keys(text, (size_t)size) != sl_json_count(sl_json_root(doc)))
        status = sl_fail(err, SL_CORRUPT, "%s: a tensor name occurs twice", file->name);
    else
        status = add_tensors(c, file, 8 + (size_t)size, sl_json_root(doc), err);
    sl_json_doc_destroy(doc);
    return status;
}

/* --- files --- */

static sl_status map_file(const char *path, mapped_file *out_file, sl_err *err)
{
    void *memory = MAP_FAILED;
    sl_status status = sl_ok();
    uint64_t bytes;
    int fd;

    SL_TRY(sl_file_open(path, &fd, &bytes, err));
    if (bytes < 8)
        status = sl_fail(err, SL_CORRUPT, "%s: shorter than a safetensors header", path);
    else {
        memory = mmap(NULL, (size_t)bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (memory == MAP_FAILED)
            status = sl_fail_errno(err, SL_IO, "map %s", path);
    }
    close(fd);
    if (!sl_is_ok(status))
        return status;
    out_file->memory = memory;
    out_file->bytes = (size_t)bytes;
    return sl_ok();
}

/* Takes the next place in files (room was made). */
static sl_status add_file(mdl_checkpoint *c, const char *path, sl_err *err)
{
    mapped_file *file = &c->files[c->file_count];

    SL_TRY(map_file(path, file, err));
    file->name = sl_strdup(path, "file name");
    c->file_count++;
    SL_TRY(read_header(c, file, err));
    c->present_count = c->tensor_count;
    return sl_ok();
}

/* A file of the index. One that is not there only makes its tensors absent. */
static sl_status add_indexed_file(mdl_checkpoint *c, const char *path, sl_err *err)
{
    if (access(path, F_OK) == 0 || errno != ENOENT)
        return add_file(c, path, err);
    c->files[c->file_count++] = (mapped_file){.name = sl_strdup(path, "file name")};
    return sl_ok();
}

static mdl_checkpoint *new_checkpoint(size_t file_count_max)
{
    mdl_checkpoint *c = sl_alloc(1, sizeof(*c), "checkpoint");

    c->files = sl_alloc(file_count_max, sizeof(*c->files), "checkpoint files");
    c->key[0] = sl_random_u64();
    c->key[1] = sl_random_u64();
    rehash(c, 128);
    return c;
}

sl_status mdl_checkpoint_open_file(const char *path, mdl_checkpoint **out_checkpoint, sl_err *err)
{
    mdl_checkpoint *c = new_checkpoint(1);
    sl_status status = add_file(c, path, err);

    if (!sl_is_ok(status)) {
        mdl_checkpoint_close(c);
        return status;
    }
    *out_checkpoint = c;
    return sl_ok();
}

static const mapped_file *find_file(const mdl_checkpoint *c, const char *path)
{
    for (size_t i = 0; i < c->file_count; i++) {
        if (strcmp(c->files[i].name, path) == 0)
            return &c->files[i];
    }
    return NULL;
}

/* First all files that the index names, then every entry must be where it says. */
static sl_status open_files_of(mdl_checkpoint *c, const char *dir, const sl_json *map, sl_err *err)
{
    for (size_t i = 0; i < sl_json_count(map); i++) {
        const char *name = sl_json_string(sl_json_at(map, i), NULL);
        sl_status status = sl_ok();
        char *path;

        if (!name || !*name || strchr(name, '/') || strlen(name) > 255)
            return sl_fail(err, SL_CORRUPT, "%s: index: tensor %.128s: bad file name", dir,
                           sl_json_key(map, i, NULL));
        path = sl_asprintf("file name", "%s/%s", dir, name);
        if (!find_file(c, path)) {
            if (c->file_count == MDL_CHECKPOINT_FILES_MAX)
                status = sl_fail(err, SL_TOO_LARGE, "%s: index names more than %d files", dir,
                                 MDL_CHECKPOINT_FILES_MAX);
            else
                status = add_indexed_file(c, path, err);
        }
        sl_free(path);
        SL_TRY(status);
    }
    return sl_ok();
}

static sl_status add_absent(mdl_checkpoint *c, const char *dir, const char *name, const char *file,
                            sl_err *err)
{
    char *path = sl_asprintf("file name", "%s/%s", dir, file);
    const mapped_file *found = find_file(c, path);
    mdl_tensor tensor = {.name = sl_strdup(name, "tensor name"), .file = found->name};
    sl_status status = add_tensor(c, &tensor, err);

    if (!sl_is_ok(status))
        sl_free((void *)tensor.name);
    sl_free(path);
    return status;
}

static sl_status check_index(mdl_checkpoint *c, const char *dir, const sl_json *map, sl_err *err)
{
    for (size_t i = 0; i < c->tensor_count; i++) {
        if (!sl_json_get(map, c->tensors[i].name))
            return sl_fail(err, SL_CORRUPT, "%s: tensor %s is not in the index", c->tensors[i].file,
                           c->tensors[i].name);
    }
    for (size_t i = 0; i < sl_json_count(map); i++) {
        const char *name = sl_json_key(map, i, NULL);
        const char *file = sl_json_string(sl_json_at(map, i), NULL);
        const mdl_tensor *t = mdl_checkpoint_find(c, name);

        if (!t)
            SL_TRY(add_absent(c, dir, name, file, err));
        else if (strcmp(strrchr(t->file, '/') + 1, file) != 0)
            return sl_fail(err, SL_CORRUPT, "%s: tensor %s is not in %s as the index says", t->file,
                           name, file);
    }
    return sl_ok();
}

static sl_status open_indexed(const char *dir, const char *index_path,
                              mdl_checkpoint **out_checkpoint, sl_err *err)
{
    sl_json_limits limits = {.bytes_max = INDEX_BYTES_MAX, .depth_max = HEADER_DEPTH};
    mdl_checkpoint *c = new_checkpoint(MDL_CHECKPOINT_FILES_MAX);
    const sl_json *map;
    sl_json_doc *doc = NULL;
    sl_status status = sl_json_parse_file(index_path, &limits, &doc, err);

    if (sl_is_ok(status)) {
        map = sl_json_get(sl_json_root(doc), "weight_map");
        if (sl_json_typeof(map) != SL_JSON_OBJECT || sl_json_count(map) == 0)
            status = sl_fail(err, SL_CORRUPT, "%s: \"weight_map\" is missing or empty", index_path);
        if (sl_is_ok(status))
            status = open_files_of(c, dir, map, err);
        if (sl_is_ok(status))
            status = check_index(c, dir, map, err);
    }
    sl_json_doc_destroy(doc);
    if (!sl_is_ok(status)) {
        mdl_checkpoint_close(c);
        return status;
    }
    *out_checkpoint = c;
    return sl_ok();
}

sl_status mdl_checkpoint_open(const char *dir, mdl_checkpoint **out_checkpoint, sl_err *err)
{
    char *index_path = sl_asprintf("file name", "%s/model.safetensors.index.json", dir);
    char *single_path = sl_asprintf("file name", "%s/model.safetensors", dir);
    sl_status status;

    if (access(index_path, F_OK) == 0)
        status = open_indexed(dir, index_path, out_checkpoint, err);
    else if (access(single_path, F_OK) == 0)
        status = mdl_checkpoint_open_file(single_path, out_checkpoint, err);
    else
        status = sl_fail(err, SL_NOT_FOUND,
                         "%s: neither model.safetensors.index.json nor model.safetensors", dir);
    sl_free(single_path);
    sl_free(index_path);
    return status;
}

void mdl_checkpoint_close(mdl_checkpoint *checkpoint)
{
    if (!checkpoint)
        return;
    for (size_t i = 0; i < checkpoint->tensor_count; i++)
        sl_free((void *)checkpoint->tensors[i].name);
    sl_free(checkpoint->tensors);
    for (size_t i = 0; i < checkpoint->file_count; i++) {
        if (checkpoint->files[i].memory)
            munmap(checkpoint->files[i].memory, checkpoint->files[i].bytes);
        sl_free(checkpoint->files[i].name);
    }
    for (size_t i = 0; i < checkpoint->copy_count; i++)
        sl_free(checkpoint->copies[i]);
    sl_free(checkpoint->copies);
    sl_free(checkpoint->files);
    sl_free(checkpoint->slots);
    sl_free(checkpoint);
}

/* --- look-up --- */

size_t mdl_checkpoint_count(const mdl_checkpoint *checkpoint)
{
    return checkpoint->present_count;
}

const mdl_tensor *mdl_checkpoint_at(const mdl_checkpoint *checkpoint, size_t index)
{
    sl_assert(index < checkpoint->present_count);
    return &checkpoint->tensors[index];
}

const mdl_tensor *mdl_checkpoint_find(const mdl_checkpoint *checkpoint, const char *name)
{
    uint32_t slot = *find_slot(checkpoint, name);

    return slot && slot <= checkpoint->present_count ? &checkpoint->tensors[slot - 1] : NULL;
}

size_t mdl_checkpoint_absent_count(const mdl_checkpoint *checkpoint)
{
    return checkpoint->tensor_count - checkpoint->present_count;
}

bool mdl_checkpoint_absent(const mdl_checkpoint *checkpoint, const char *name,
                           const char **out_file, bool *out_file_there)
{
    uint32_t slot = *find_slot(checkpoint, name);

    if (!slot || slot <= checkpoint->present_count)
        return false;
    *out_file = checkpoint->tensors[slot - 1].file;
    *out_file_there = find_file(checkpoint, *out_file)->memory != NULL;
    return true;
}

static sl_status fail_missing(const mdl_checkpoint *checkpoint, const char *name, sl_err *err)
{
    const char *file;
    bool there;

    if (!mdl_checkpoint_absent(checkpoint, name, &file, &there))
        return sl_fail(err, SL_NOT_FOUND, "tensor %s is missing", name);
    return sl_fail(err, SL_NOT_FOUND, "tensor %s is missing: the index puts it into %s, which %s",
                   name, file, there ? "does not hold it" : "is not there");
}

static void describe(mdl_dtype dtype, int32_t rank, const int64_t *shape, char *out_text,
                     size_t size)
{
    int n = snprintf(out_text, size, "%s [", mdl_dtype_name(dtype));

    for (int32_t i = 0; i < rank && n > 0 && (size_t)n < size; i++)
        n += snprintf(out_text + n, size - (size_t)n, "%s%lld", i ? ", " : "", (long long)shape[i]);
    if (n > 0 && (size_t)n < size)
        snprintf(out_text + n, size - (size_t)n, "]");
}

sl_status mdl_checkpoint_get(const mdl_checkpoint *checkpoint, const char *name, mdl_dtype dtype,
                             int32_t rank, const int64_t *shape, const mdl_tensor **out_tensor,
                             sl_err *err)
{
    const mdl_tensor *t = mdl_checkpoint_find(checkpoint, name);
    char is[128], expected[128];

    sl_assert(rank >= 0 && rank <= MDL_TENSOR_RANK_MAX);
    if (!t)
        return fail_missing(checkpoint, name, err);
    if (t->dtype != dtype || t->rank != rank ||
        (rank > 0 && memcmp(t->shape, shape, sizeof(*shape) * (size_t)rank) != 0)) {
        describe(t->dtype, t->rank, t->shape, is, sizeof(is));
        describe(dtype, rank, shape, expected, sizeof(expected));
        return sl_fail(err, SL_CORRUPT, "%s: tensor %s is %s, expected %s", t->file, name, is,
                       expected);
    }
    *out_tensor = t;
    return sl_ok();
}
