/* The two halves of a model hash. Owns nothing. */
#include "model/hash.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/file.h"
#include "base/sum.h"

#define FILE_BYTES_MAX ((size_t)256 << 20)
#define HALF_BYTES     16
#define SUM_KEY        0x736c756963652d77ull

typedef struct digest {
    EVP_MD_CTX *md;
    bool good;
} digest;

static void digest_open(digest *d)
{
    d->md = EVP_MD_CTX_new();
    d->good = d->md && EVP_DigestInit_ex(d->md, EVP_sha256(), NULL) == 1;
}

static void digest_add(digest *d, const void *data, size_t size)
{
    d->good = d->good && EVP_DigestUpdate(d->md, data, size) == 1;
}

/* With its NUL, so that no two lists of texts look alike. */
static void digest_text(digest *d, const char *text)
{
    digest_add(d, text, strlen(text) + 1);
}

/* The first half of the SHA-256 as text. */
static sl_status digest_close(digest *d, char out_text[2 * HALF_BYTES + 1], sl_err *err)
{
    uint8_t hash[EVP_MAX_MD_SIZE];

    if (d->good)
        d->good = EVP_DigestFinal_ex(d->md, hash, NULL) == 1;
    EVP_MD_CTX_free(d->md);
    if (!d->good)
        return sl_fail(err, SL_INTERNAL, "SHA-256 failed");
    for (size_t i = 0; i < HALF_BYTES; i++)
        snprintf(out_text + 2 * i, 3, "%02x", hash[i]);
    return sl_ok();
}

/* Name, size and bytes of dir/name. */
static sl_status digest_file(digest *d, const char *dir, const char *name, bool optional,
                             sl_err *err)
{
    char *path = sl_asprintf("file name", "%s/%s", dir, name);
    char block[65536];
    uint64_t total = 0, bytes;
    size_t n = 0;
    int fd = -1;
    sl_status status = sl_file_open(path, &fd, &bytes, err);
    FILE *file = sl_is_ok(status) ? fdopen(fd, "rb") : NULL;

    if (sl_is_ok(status) && !file) {
        status = sl_fail_errno(err, SL_IO, "open %s", path);
        close(fd);
    } else if (status.code == SL_NOT_FOUND) {
        status.code = optional ? SL_OK : SL_IO;
        err->code = status.code;
    }
    digest_text(d, file ? name : "");
    while (file && (n = fread(block, 1, sizeof(block), file)) > 0 && total <= FILE_BYTES_MAX) {
        total += n;
        digest_add(d, block, n);
    }
    if (file && (ferror(file) || total > FILE_BYTES_MAX))
        status = sl_fail(err, SL_IO, "%s: cannot be read or is larger than %zu bytes", path,
                         FILE_BYTES_MAX);
    digest_add(d, &total, sizeof(total));
    if (file)
        fclose(file);
    sl_free(path);
    return status;
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const mdl_tensor *const *)a)->name, (*(const mdl_tensor *const *)b)->name);
}

static void digest_tensor(digest *d, const mdl_tensor *t)
{
    int64_t shape[1 + MDL_TENSOR_RANK_MAX] = {t->rank};

    memcpy(shape + 1, t->shape, sizeof(t->shape));
    digest_text(d, t->name);
    digest_text(d, mdl_dtype_name(t->dtype));
    digest_add(d, shape, sizeof(shape));
}

sl_status mdl_identity(const mdl_checkpoint *checkpoint, const char *dir,
                       char out_text[MDL_IDENTITY_CHARS + 1], sl_err *err)
{
    size_t count = mdl_checkpoint_count(checkpoint);
    uint64_t absent = mdl_checkpoint_absent_count(checkpoint);
    const mdl_tensor **order = sl_alloc(count + 1, sizeof(*order), "tensor order");
    digest d;

    for (size_t i = 0; i < count; i++)
        order[i] = mdl_checkpoint_at(checkpoint, i);
    qsort(order, count, sizeof(*order), by_name);
    digest_open(&d);
    sl_status status = digest_file(&d, dir, "config.json", false, err);
    if (sl_is_ok(status))
        status = digest_file(&d, dir, "tokenizer.json", true, err);
    for (size_t i = 0; i < count; i++)
        digest_tensor(&d, order[i]);
    digest_add(&d, &absent, sizeof(absent));
    sl_free(order);
    if (!sl_is_ok(status)) {
        EVP_MD_CTX_free(d.md);
        return status;
    }
    return digest_close(&d, out_text, err);
}

uint64_t mdl_block_sum(uint64_t block, const void *data, size_t bytes)
{
    return sl_sum64(SUM_KEY, block, data, bytes);
}

static int by_sum_name(const void *a, const void *b)
{
    return strcmp(((const mdl_tensor_sum *)a)->name, ((const mdl_tensor_sum *)b)->name);
}

sl_status mdl_model_hash(const char *identity, mdl_tensor_sum *sums, size_t count,
                         char out_text[MDL_HASH_CHARS + 1], sl_err *err)
{
    char content[2 * HALF_BYTES + 1];
    digest d;

    sl_assert(strlen(identity) == MDL_IDENTITY_CHARS);
    qsort(sums, count, sizeof(*sums), by_sum_name);
    digest_open(&d);
    for (size_t i = 0; i < count; i++) {
        digest_text(&d, sums[i].name);
        digest_add(&d, &sums[i].sum, sizeof(sums[i].sum));
    }
    SL_TRY(digest_close(&d, content, err));
    snprintf(out_text, MDL_HASH_CHARS + 1, "%s%s", identity, content);
    return sl_ok();
}
