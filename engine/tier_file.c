/* The file of the second cache tier: see tier_file.h.
 *
 * Threads: open, scan and close at start and end; read and write the tier's I/O thread. Never
 * writes beyond the size it was given, never maps the file (a full disk is an error, not a signal).
 */
#include "engine/tier_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/fault.h"
#include "base/rng.h"
#include "base/sum.h"

#define TIER_MAGIC   0x31726569742d6c73ull /* "sl-tier1" */
#define TIER_FORMAT  1u
#define HEADER_TWEAK UINT64_MAX /* of sums: no slot has this number */

typedef struct tier_header {
    uint64_t magic;
    uint64_t format;
    eng_stamp stamp;
    uint64_t page_bytes;
    uint64_t slot_count;
    uint64_t key[ENG_CHAIN_KEY_WORDS];
    uint64_t sum; /* of all before it */
} tier_header;

_Static_assert(sizeof(tier_header) <= ENG_TIER_BLOCK, "the header has one block");
_Static_assert(sizeof(eng_tier_record) <= ENG_TIER_BLOCK, "a record has one block");

static uint64_t round_up(uint64_t bytes)
{
    return (bytes + ENG_TIER_BLOCK - 1) / ENG_TIER_BLOCK * ENG_TIER_BLOCK;
}

static uint64_t header_sum(const eng_tier_file *file, const tier_header *header)
{
    return sl_sum64(file->sum_key, HEADER_TWEAK, header, offsetof(tier_header, sum));
}

static uint64_t record_sum(const eng_tier_file *file, uint32_t slot, const eng_tier_record *record)
{
    return sl_sum64(file->sum_key ^ file->key[0], slot, record,
                    offsetof(eng_tier_record, record_sum));
}

static uint64_t page_sum(const eng_tier_file *file, eng_chain chain, const uint8_t *page)
{
    return sl_sum64(file->sum_key ^ file->key[1], chain.low, page, (size_t)file->page_bytes);
}

static uint64_t slot_offset(const eng_tier_file *file, uint32_t slot)
{
    sl_assert(slot < file->slot_count);
    return ENG_TIER_BLOCK + slot * file->slot_bytes;
}

/* All or false; short reads and writes go on. Writing leaves data as it is. */
static bool move_all(int fd, bool write, void *data, size_t size, uint64_t offset)
{
    uint8_t *at = data;
    while (size > 0) {
        ssize_t count =
            write ? pwrite(fd, at, size, (off_t)offset) : pread(fd, at, size, (off_t)offset);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return false;
        at += count;
        offset += (uint64_t)count;
        size -= (size_t)count;
    }
    return true;
}

static bool read_all(int fd, void *data, size_t size, uint64_t offset)
{
    return move_all(fd, false, data, size, offset);
}

static bool write_all(int fd, const void *data, size_t size, uint64_t offset)
{
    return move_all(fd, true, (void *)(uintptr_t)data, size, offset);
}

/* ---- open ---- */

/* What is wrong with the header that is there; NULL = nothing. */
static const char *header_fault(const eng_tier_file *file, const tier_header *header,
                                const eng_stamp *stamp)
{
    if (header->format != TIER_FORMAT)
        return "of another format";
    if (memcmp(&header->stamp, stamp, sizeof(*stamp)) != 0)
        return "of another model, numerics, weights version or cache layout";
    if (header->page_bytes != file->page_bytes || header->slot_count != file->slot_count)
        return "of another size";
    if (header->sum != header_sum(file, header))
        return "its header is damaged";
    return NULL;
}

static sl_status begin_anew(eng_tier_file *file, const eng_tier_options *options, sl_err *err)
{
    union {
        tier_header header;
        uint8_t block[ENG_TIER_BLOCK];
    } first;
    memset(&first, 0, sizeof(first));
    sl_random_bytes(file->key, sizeof(file->key));
    first.header.magic = TIER_MAGIC;
    first.header.format = TIER_FORMAT;
    first.header.stamp = *options->stamp;
    first.header.page_bytes = file->page_bytes;
    first.header.slot_count = file->slot_count;
    memcpy(first.header.key, file->key, sizeof(file->key));
    first.header.sum = header_sum(file, &first.header);
    file->begun_anew = true;
    if (!write_all(file->fd, &first, sizeof(first), 0))
        return sl_fail_errno(err, SL_IO, "cannot write %s", options->path);
    return sl_ok();
}

/* What the whole file system could never hold is a mistyped size; what others take of it now may
 * become free. Some network file systems do not say how large they are. */
static sl_status check_room(const eng_tier_file *file, const eng_tier_options *options, sl_err *err)
{
    struct statvfs info;
    if (fstatvfs(file->fd, &info) != 0 || info.f_blocks == 0)
        return sl_ok();
    uint64_t bytes = (uint64_t)info.f_blocks * info.f_frsize;
    if (options->bytes <= bytes)
        return sl_ok();
    return sl_fail(err, SL_INVALID, "%llu bytes: the file system of %s has %llu",
                   (unsigned long long)options->bytes, options->path, (unsigned long long)bytes);
}

/* What a crash at the very beginning leaves: the size is set before the header is written. Disk
 * images begin with zeros too: they have another size, and are somebody's. */
static bool is_unbegun(const eng_tier_file *file, off_t bytes, off_t size)
{
    static const uint8_t ZEROS[ENG_TIER_BLOCK];
    uint8_t block[ENG_TIER_BLOCK];
    return bytes == 0 || (bytes == size && read_all(file->fd, block, sizeof(block), 0) &&
                          memcmp(block, ZEROS, sizeof(block)) == 0);
}

static sl_status prepare(eng_tier_file *file, const eng_tier_options *options, sl_err *err)
{
    struct stat info;
    tier_header header = {0};
    if (fstat(file->fd, &info) != 0)
        return sl_fail_errno(err, SL_IO, "cannot look at %s", options->path);
    if (!S_ISREG(info.st_mode))
        return sl_fail(err, SL_INVALID, "%s is not a regular file", options->path);
    if (flock(file->fd, LOCK_EX | LOCK_NB) != 0)
        return sl_fail_errno(err, SL_CONFLICT, "%s is in use by another process", options->path);
    SL_TRY(check_room(file, options, err));
    off_t size = (off_t)(ENG_TIER_BLOCK + file->slot_count * file->slot_bytes);
    bool unbegun = is_unbegun(file, info.st_size, size);
    bool there = read_all(file->fd, &header, sizeof(header), 0);
    /* Our own files are begun with a header: a file without one is somebody's data. */
    if (!unbegun && !(there && header.magic == TIER_MAGIC))
        return sl_fail(err, SL_INVALID,
                       "%s exists and is not a cache file: name another file or remove it",
                       options->path);
    const char *fault = unbegun ? "" : header_fault(file, &header, options->stamp);
    /* From zero when it begins anew: the slots of its earlier life are gone, not damaged. */
    if ((fault && ftruncate(file->fd, 0) != 0) || ftruncate(file->fd, size) != 0)
        return sl_fail_errno(err, SL_IO, "cannot set the size of %s", options->path);
    if (!fault) {
        memcpy(file->key, header.key, sizeof(file->key));
        return sl_ok();
    }
    snprintf(file->why, sizeof(file->why), "%s", fault);
    return begin_anew(file, options, err);
}

sl_status eng_tier_file_open(const eng_tier_options *options, eng_tier_file *out_file, sl_err *err)
{
    eng_tier_file file = {
        .fd = -1,
        .sum_key = options->sum_key,
        .page_bytes = options->page_bytes,
        .slot_bytes = ENG_TIER_BLOCK + round_up(options->page_bytes),
    };
    uint64_t slots = options->bytes / file.slot_bytes;
    if (slots > 0 && ENG_TIER_BLOCK + slots * file.slot_bytes > options->bytes)
        slots--;
    if (slots == 0)
        return sl_fail(err, SL_INVALID, "%llu bytes: one page needs %llu",
                       (unsigned long long)options->bytes,
                       (unsigned long long)(ENG_TIER_BLOCK + file.slot_bytes));
    file.slot_count = slots < ENG_NO_PAGE ? (uint32_t)slots : ENG_NO_PAGE - 1;
    file.fd = open(options->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file.fd < 0)
        return sl_fail_errno(err, SL_IO, "cannot open %s", options->path);
    sl_status status = prepare(&file, options, err);
    if (!sl_is_ok(status)) {
        close(file.fd);
        return status;
    }
    *out_file = file;
    return status;
}

void eng_tier_file_close(eng_tier_file *file)
{
    if (file->fd >= 0)
        close(file->fd);
    file->fd = -1;
}

/* ---- slots ---- */

eng_tier_found eng_tier_file_scan(const eng_tier_file *file, uint32_t slot,
                                  eng_tier_record *out_record)
{
    eng_tier_record record;
    if (!read_all(file->fd, &record, sizeof(record), slot_offset(file, slot)))
        return ENG_TIER_DAMAGED;
    if (record.number == 0)
        return ENG_TIER_EMPTY;
    if (record.record_sum != record_sum(file, slot, &record))
        return ENG_TIER_DAMAGED;
    *out_record = record;
    return ENG_TIER_FOUND;
}

bool eng_tier_file_write(const eng_tier_file *file, uint32_t slot, uint8_t *buffer)
{
    eng_tier_record *record = (eng_tier_record *)(void *)buffer;
    record->page_sum = page_sum(file, record->chain, eng_tier_slot_page(buffer));
    record->record_sum = record_sum(file, slot, record);
    return !sl_fault("tier.write") &&
           write_all(file->fd, buffer, (size_t)file->slot_bytes, slot_offset(file, slot));
}

eng_tier_read eng_tier_file_read(const eng_tier_file *file, uint32_t slot, eng_chain chain,
                                 const uint32_t tokens[ENG_PAGE_TOKENS], uint8_t *buffer)
{
    const eng_tier_record *record = (const eng_tier_record *)(const void *)buffer;
    if (sl_fault("tier.read") ||
        !read_all(file->fd, buffer, (size_t)file->slot_bytes, slot_offset(file, slot)))
        return ENG_TIER_READ_FAILED;
    bool right = record->record_sum == record_sum(file, slot, record) &&
                 eng_chain_equal(record->chain, chain) &&
                 memcmp(record->tokens, tokens, sizeof(record->tokens)) == 0 &&
                 record->page_sum == page_sum(file, chain, eng_tier_slot_page(buffer));
    return right ? ENG_TIER_READ_OK : ENG_TIER_READ_DIFFERENT;
}
