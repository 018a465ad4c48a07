/* The file of the second cache tier: a header and equal slots of one page each. Internal to
 * engine/.
 *
 * Knows the format and does the I/O, nothing of who is kept where. Open: at start; records: the
 * tier's I/O thread. A slot holds what its record says only if the record's and the page's keyed
 * sums agree, so a torn, foreign or stale one is never served. The file is locked: one process.
 *
 * Header (4096 B): magic, format, stamp, page bytes, slot count, chain key, sum. Slot: record
 * (4096 B: number of the write, chain, tokens, sum of the page, own sum), then the page, padded to
 * 4096 B. Sums are keyed by the engine's sum key (it mixes the stamp) and by the chain key, which
 * is drawn when the file is begun: records of an earlier life of the file do not fit. */
#ifndef ENGINE_TIER_FILE_H
#define ENGINE_TIER_FILE_H

#include "engine/prefix.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ENG_TIER_BLOCK 4096u /* alignment of everything in the file */

typedef struct eng_tier_options {
    const char *path;
    uint64_t bytes; /* of the file, never more */
    const eng_stamp *stamp;
    uint64_t sum_key;
    uint64_t page_bytes;
} eng_tier_options;

typedef struct eng_tier_record {
    uint64_t number; /* of the write: order of age after a restart */
    eng_chain chain;
    uint64_t page_sum;
    uint32_t tokens[ENG_PAGE_TOKENS];
    uint64_t record_sum;
} eng_tier_record;

typedef struct eng_tier_file {
    int fd;
    uint64_t sum_key;
    uint64_t page_bytes;
    uint64_t slot_bytes;
    uint32_t slot_count;
    uint64_t key[ENG_CHAIN_KEY_WORDS];
    bool begun_anew; /* nothing in it counts */
    char why[160];   /* begun_anew: what was wrong with what was there; "" = it was empty */
} eng_tier_file;

/* Opens or creates, locks, sets the size. SL_INVALID: too small, larger than its file system, not a
 * regular file, or a file of something else; SL_CONFLICT: another process has it. */
SL_MUST_USE sl_status eng_tier_file_open(const eng_tier_options *options, eng_tier_file *out_file,
                                         sl_err *err);
void eng_tier_file_close(eng_tier_file *file);
/* Where the page lies in a buffer of slot_bytes, which is written and read whole. */
static inline uint8_t *eng_tier_slot_page(uint8_t *slot)
{
    return slot + ENG_TIER_BLOCK;
}
typedef enum eng_tier_found {
    ENG_TIER_FOUND,
    ENG_TIER_EMPTY,
    ENG_TIER_DAMAGED, /* something is there, but not a record of this file */
} eng_tier_found;

/* The record of a slot, without its page. */
eng_tier_found eng_tier_file_scan(const eng_tier_file *file, uint32_t slot,
                                  eng_tier_record *out_record);
/* Fills in the sums of the record at the start of `buffer` and writes the slot. */
SL_MUST_USE bool eng_tier_file_write(const eng_tier_file *file, uint32_t slot, uint8_t *buffer);

typedef enum eng_tier_read {
    ENG_TIER_READ_OK,
    ENG_TIER_READ_DIFFERENT, /* torn, damaged, or another block's */
    ENG_TIER_READ_FAILED,    /* the file could not be read */
} eng_tier_read;

/* Reads the slot into `buffer` and checks that it holds the block `chain`. */
eng_tier_read eng_tier_file_read(const eng_tier_file *file, uint32_t slot, eng_chain chain,
                                 const uint32_t tokens[ENG_PAGE_TOKENS], uint8_t *buffer);

#ifdef __cplusplus
}
#endif
#endif
