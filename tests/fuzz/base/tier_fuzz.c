/* Any bytes as the file of the second cache tier: it is refused or opened, what is served has the
 * sums of this engine, nothing is written beyond the size. Input: a mode byte, then the file; mode
 * 1 gives it a right header and first record before the bytes are laid over (xor). */
#include <stdlib.h>
#include <sys/mman.h>

#include "engine/tier_file.c" /* alone: kernels are not for clang */

enum { PAGE_BYTES = 512, FILE_BYTES = 5 * ENG_TIER_BLOCK };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const eng_stamp STAMP = {"n", "m", "1", "v"};
static const uint32_t TOKENS[ENG_PAGE_TOKENS] = {7};
static const eng_chain CHAIN = {3, 4};

static uint8_t *slot_buffer(void)
{
    static uint8_t buffer[2 * ENG_TIER_BLOCK] __attribute__((aligned(64)));
    return buffer;
}

/* Writes a right file with one page, then lays the input over it. */
static void lay_over(const eng_tier_options *options, int fd, const uint8_t *data, size_t size)
{
    static uint8_t bytes[FILE_BYTES];
    eng_tier_file file;
    sl_err err;
    sl_status status = eng_tier_file_open(options, &file, &err);
    sl_assert(sl_is_ok(status) && file.begun_anew);
    uint8_t *buffer = slot_buffer();
    memset(buffer, 0, 2 * ENG_TIER_BLOCK);
    eng_tier_record *record = (eng_tier_record *)(void *)buffer;
    record->number = 1;
    record->chain = CHAIN;
    memcpy(record->tokens, TOKENS, sizeof(TOKENS));
    bool written = eng_tier_file_write(&file, 0, buffer);
    sl_assert(written);
    eng_tier_file_close(&file);
    ssize_t count = pread(fd, bytes, sizeof(bytes), 0);
    sl_assert(count > 0);
    for (size_t i = 0; i < size && i < (size_t)count; i++)
        bytes[i] ^= data[i];
    count = pwrite(fd, bytes, (size_t)count, 0);
    sl_assert(count > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[40];
    eng_tier_file file;
    eng_tier_record record;
    sl_err err;
    if (size == 0)
        return 0;
    int fd = memfd_create("tier", 0);
    sl_assert(fd >= 0);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    eng_tier_options options = {path, FILE_BYTES, &STAMP, 99, PAGE_BYTES};
    if (data[0] & 1) {
        lay_over(&options, fd, data + 1, size - 1);
    } else if (size > 1) {
        ssize_t count = pwrite(fd, data + 1, size - 1, 0);
        sl_assert(count == (ssize_t)(size - 1));
    }
    if (sl_is_ok(eng_tier_file_open(&options, &file, &err))) {
        for (uint32_t slot = 0; slot < file.slot_count; slot++) {
            eng_tier_found found = eng_tier_file_scan(&file, slot, &record);
            sl_assert(found != ENG_TIER_FOUND || !file.begun_anew);
            eng_tier_read read = eng_tier_file_read(&file, slot, CHAIN, TOKENS, slot_buffer());
            /* Only the page of zeros that was really written has our sums. */
            for (size_t i = 0; read == ENG_TIER_READ_OK && i < PAGE_BYTES; i++)
                sl_assert(eng_tier_slot_page(slot_buffer())[i] == 0);
        }
        struct stat info;
        int failed = fstat(fd, &info);
        sl_assert(failed == 0 && info.st_size <= FILE_BYTES);
        eng_tier_file_close(&file);
    } else {
        sl_assert(err.code == SL_INVALID);
    }
    close(fd);
    return 0;
}
