/* The second cache tier: what memory gave up comes back from the file bit by bit, or not at all. */
#include "tests/unit/engine/support.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>

#include "base/clock.h"
#include "base/fault.h"
#include "engine/tier.h"

#define LENGTH    200u
#define PAGES     4u /* of the small cache */
#define PATH_SIZE 96

typedef struct tiered {
    rig r;
    eng_engine *engine;
    char path[PATH_SIZE];
    uint32_t tokens[LENGTH];
    bool holds; /* a read, until somebody waits for others */
} tiered;

static void tier_engine(tiered *t, uint64_t tier_pages)
{
    uint64_t page = eng_engine_layout(t->r.engine)->page_bytes;
    t->engine = rig_engine(
        &t->r, &(eng_options){.kv_bytes = eng_model_kv_bytes(t->r.model, (uint64_t)PAGES * 64),
                              .rows_max = 256,
                              .tier_path = t->path,
                              .tier_bytes = 8192 + tier_pages * (page + 8192)});
}

static void tiered_open(tiered *t, uint64_t tier_pages)
{
    static const char *const SITES[] = {"tier.write", "tier.read", NULL};
    sl_err err;
    assert_ok(sl_fault_init(SITES, NULL, &err), &err);
    rig_open(&t->r);
    snprintf(t->path, sizeof(t->path), "%s/tier", t->r.files.dir);
    stream_fill(1, LENGTH, t->tokens);
    t->holds = false;
    tier_engine(t, tier_pages);
}

static void tiered_close(tiered *t)
{
    eng_engine_destroy(t->engine);
    unlink(t->path);
    rig_close(&t->r);
}

static void arm(const char *spec)
{
    static const char *const SITES[] = {"tier.write", "tier.read", NULL};
    sl_err err;
    assert_ok(sl_fault_init(SITES, spec, &err), &err);
}

static eng_tier_stats stats_of(const tiered *t)
{
    eng_tier_stats stats;
    assert_true(eng_engine_tier_stats(t->engine, &stats));
    return stats;
}

/* Polls until `count` pages were written (or refused). */
static void wait_written(tiered *t, uint64_t count)
{
    uint64_t page = eng_engine_layout(t->engine)->page_bytes;
    for (;;) {
        (void)eng_engine_poll(t->engine, sl_now_ns());
        eng_engine_spill(t->engine);
        eng_tier_stats stats = stats_of(t);
        if (stats.bytes_written / page + stats.failed >= count)
            return;
        poll(NULL, 0, 1);
    }
}

static eng_sequence *open_known(tiered *t, const uint32_t *tokens, uint32_t count)
{
    const eng_prefix prefix = {tokens, count, 0};
    eng_sequence *sequence = NULL;
    sl_err err;
    assert_ok(eng_sequence_open_prefix(t->engine, LENGTH, LENGTH, &prefix, &sequence, &err), &err);
    while (!eng_sequence_ready(sequence)) {
        if (t->holds)
            raise(SIGUSR2);
        (void)eng_engine_poll(t->engine, sl_now_ns());
        poll(NULL, 0, 1);
    }
    return sequence;
}

/* Computes a stream and leaves its pages to the cache, in memory and (spilled ahead) in the file.
 */
static void keep_some(tiered *t, const uint32_t *tokens, uint32_t writes, uint8_t **out_bytes)
{
    size_t size;
    uint64_t written = stats_of(t).bytes_written / eng_engine_layout(t->engine)->page_bytes;
    eng_sequence *sequence = sequence_open(t->engine, LENGTH);
    sequence_feed(t->engine, sequence, tokens, LENGTH, 64, NULL);
    if (out_bytes)
        *out_bytes = sequence_bytes(t->engine, sequence, &size);
    eng_sequence_publish(sequence, &(eng_prefix){tokens, LENGTH, 0});
    eng_sequence_close(sequence);
    wait_written(t, written + writes);
}

static void keep(tiered *t, const uint32_t *tokens, uint8_t **out_bytes)
{
    keep_some(t, tokens, LENGTH / 64, out_bytes);
}

/* Pushes everything kept out of memory. */
static void flush_memory(tiered *t)
{
    eng_sequence *all = sequence_open(t->engine, PAGES * 64);
    assert_int_equal(eng_engine_pages_kept(t->engine), 0);
    eng_sequence_close(all);
}

static void assert_known(tiered *t, const uint32_t *tokens, const uint8_t *bytes, uint32_t blocks)
{
    size_t size;
    eng_sequence *sequence = open_known(t, tokens, LENGTH);
    assert_int_equal(eng_sequence_length(sequence), blocks * 64);
    float whole[NANO_VOCAB], logits[NANO_VOCAB];
    if (blocks > 0) {
        uint8_t *again = sequence_bytes(t->engine, sequence, &size);
        assert_memory_equal(again, bytes, size);
        sl_free(again);
    }
    /* going on gives the same bits as without a cache */
    eng_sequence *plain = sequence_open(t->r.engine, LENGTH);
    sequence_feed(t->r.engine, plain, tokens, LENGTH, 64, whole);
    sequence_feed(t->engine, sequence, tokens + blocks * 64, LENGTH - blocks * 64, 33, logits);
    assert_memory_equal(logits, whole, sizeof(whole));
    eng_sequence_close(plain);
    eng_sequence_close(sequence);
}

TEST(evicted_pages_come_back)
{
    tiered t;
    uint8_t *bytes;
    tiered_open(&t, 8);
    keep(&t, t.tokens, &bytes);
    flush_memory(&t);
    assert_known(&t, t.tokens, bytes, 3);
    eng_tier_stats stats = stats_of(&t);
    assert_int_equal(stats.hits, 3);
    assert_int_equal(stats.pages, 3);
    assert_int_equal(stats.corrupt + stats.failed, 0);
    /* now in memory again: no read */
    eng_sequence *sequence = open_known(&t, t.tokens, LENGTH);
    assert_int_equal(eng_sequence_length(sequence), 192);
    assert_int_equal(stats_of(&t).hits, 3);
    eng_sequence_close(sequence);
    /* other tokens and other spaces miss */
    t.tokens[70] ^= 1;
    flush_memory(&t);
    sequence = open_known(&t, t.tokens, LENGTH);
    assert_int_equal(eng_sequence_length(sequence), 64);
    eng_sequence_close(sequence);
    assert_int_equal(stats_of(&t).misses, 1);
    sl_free(bytes);
    tiered_close(&t);
}

TEST(a_restart_finds_them)
{
    tiered t;
    uint8_t *bytes;
    tiered_open(&t, 8);
    keep(&t, t.tokens, &bytes);
    eng_engine_destroy(t.engine);
    tier_engine(&t, 8);
    assert_int_equal(stats_of(&t).pages_at_start, 3);
    assert_null(stats_of(&t).begun_anew);
    assert_known(&t, t.tokens, bytes, 3);
    /* forgotten on all tiers */
    eng_engine_drop_kept(t.engine);
    assert_int_equal(stats_of(&t).pages, 0);
    sl_free(bytes);
    tiered_close(&t);
}

static void flip(const char *path, uint64_t offset)
{
    int fd = open(path, O_RDWR);
    uint8_t byte;
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, (off_t)offset), 1);
    byte ^= 0x10;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)offset), 1);
    close(fd);
}

/* Slots are handed out from the first one on; the deepest block is the oldest. */
TEST(torn_slots_are_dropped)
{
    tiered t;
    uint8_t *bytes;
    tiered_open(&t, 8);
    uint64_t page = eng_engine_layout(t.engine)->page_bytes;
    uint64_t slot = ENG_TIER_BLOCK + (page + ENG_TIER_BLOCK - 1) / ENG_TIER_BLOCK * ENG_TIER_BLOCK;
    keep(&t, t.tokens, &bytes);
    flush_memory(&t);
    /* a byte of the middle block's page, while it runs */
    flip(t.path, ENG_TIER_BLOCK + slot + ENG_TIER_BLOCK + page / 2);
    assert_known(&t, t.tokens, bytes, 1);
    assert_int_equal(stats_of(&t).corrupt, 1);
    assert_int_equal(stats_of(&t).pages, 2);
    keep_some(&t, t.tokens, 1, NULL); /* the dropped one is computed and kept again */
    eng_engine_destroy(t.engine);
    /* a byte of the first block's record, between two lives */
    flip(t.path, ENG_TIER_BLOCK + 2 * slot + 9);
    tier_engine(&t, 8);
    assert_int_equal(stats_of(&t).dropped_at_start, 1);
    assert_int_equal(stats_of(&t).pages_at_start, 2);
    assert_known(&t, t.tokens, bytes, 0);
    sl_free(bytes);
    tiered_close(&t);
}

TEST(a_stale_file_is_begun_anew)
{
    tiered t;
    tiered_open(&t, 8);
    keep(&t, t.tokens, NULL);
    eng_engine_destroy(t.engine);
    tier_engine(&t, 9);
    assert_string_equal(stats_of(&t).begun_anew, "of another size");
    assert_int_equal(stats_of(&t).pages, 0);
    keep(&t, t.tokens, NULL);
    eng_engine_destroy(t.engine);
    flip(t.path, 16 + 40); /* the stamp: a byte of the model hash */
    tier_engine(&t, 9);
    assert_string_equal(stats_of(&t).begun_anew,
                        "of another model, numerics, weights version or cache layout");
    keep(&t, t.tokens, NULL);
    eng_engine_destroy(t.engine);
    flip(t.path, 16 + sizeof(eng_stamp) + 7 + 16); /* the chain key */
    tier_engine(&t, 9);
    assert_string_equal(stats_of(&t).begun_anew, "its header is damaged");
    assert_int_equal(stats_of(&t).pages, 0);
    eng_engine_destroy(t.engine);
    struct stat info; /* a crash between setting the size and writing the header */
    assert_int_equal(stat(t.path, &info), 0);
    assert_int_equal(truncate(t.path, 0), 0);
    assert_int_equal(truncate(t.path, info.st_size), 0);
    tier_engine(&t, 9);
    assert_string_equal(stats_of(&t).begun_anew, "");
    tiered_close(&t);
}

TEST(what_is_not_a_cache_file_is_refused)
{
    tiered t;
    sl_err err;
    eng_engine *other = NULL;
    tiered_open(&t, 8);
    uint64_t bytes = eng_model_kv_bytes(t.r.model, 64);
    eng_options options = {.kv_bytes = bytes, .tier_path = t.path, .tier_bytes = 64 << 20};
    assert_code(eng_engine_create(t.r.model, &options, &other, &err), SL_CONFLICT);
    char path[PATH_SIZE + 8];
    snprintf(path, sizeof(path), "%s-text", t.path);
    FILE *file = fopen(path, "w");
    fputs("somebody's notes", file);
    fclose(file);
    options.tier_path = path;
    assert_code(eng_engine_create(t.r.model, &options, &other, &err), SL_INVALID);
    assert_non_null(strstr(err.text, "not a cache file"));
    unlink(path);
    file = fopen(path, "w"); /* a disk image may begin so */
    assert_int_equal(ftruncate(fileno(file), 32768), 0);
    fclose(file);
    assert_code(eng_engine_create(t.r.model, &options, &other, &err), SL_INVALID);
    assert_non_null(strstr(err.text, "not a cache file"));
    unlink(path);
    options.tier_bytes = 5000;
    assert_code(eng_engine_create(t.r.model, &options, &other, &err), SL_INVALID);
    options.tier_bytes = 1ull << 62; /* more than there is anywhere, and a table of it */
    assert_code(eng_engine_create(t.r.model, &options, &other, &err), SL_INVALID);
    assert_non_null(strstr(err.text, "the file system of"));
    unlink(path);
    options.tier_path = t.r.files.dir;
    options.tier_bytes = 64 << 20;
    assert_code(eng_engine_create(t.r.model, &options, &other, &err), SL_IO);
    options.tier_path = "/dev/null";
    assert_code(eng_engine_create(t.r.model, &options, &other, &err), SL_INVALID);
    tiered_close(&t);
}

/* A full tier gives up what was used longest ago, and the file never grows. */
TEST(a_full_tier_keeps_the_young)
{
    tiered t;
    uint32_t streams[3][LENGTH];
    struct stat before, after;
    tiered_open(&t, 6);
    assert_int_equal(stat(t.path, &before), 0);
    for (uint32_t i = 0; i < 3; i++) {
        stream_fill(10 + i, LENGTH, streams[i]);
        keep(&t, streams[i], NULL);
        flush_memory(&t);
    }
    assert_int_equal(stats_of(&t).pages, 6);
    assert_int_equal(stats_of(&t).pages_max, 6);
    for (uint32_t i = 0; i < 3; i++) {
        eng_sequence *sequence = open_known(&t, streams[i], LENGTH);
        assert_int_equal(eng_sequence_length(sequence), i == 0 ? 0 : 192);
        eng_sequence_close(sequence);
        flush_memory(&t);
    }
    assert_int_equal(stat(t.path, &after), 0);
    assert_int_equal(before.st_size, after.st_size);
    tiered_close(&t);
}

TEST(io_errors_cost_pages_only)
{
    tiered t;
    uint8_t *bytes;
    tiered_open(&t, 8);
    arm("tier.write=fail@2");
    keep(&t, t.tokens, &bytes); /* the middle block is not written */
    assert_int_equal(stats_of(&t).failed, 1);
    flush_memory(&t);
    assert_known(&t, t.tokens, bytes, 1);
    arm("tier.read=fail@1");
    flush_memory(&t);
    assert_known(&t, t.tokens, bytes, 0);
    arm(NULL);
    sl_free(bytes);
    tiered_close(&t);
}

/* Closing while reads are under way: they end somewhere else, the pages are free at once. */
TEST(a_close_does_not_wait_for_reads)
{
    tiered t;
    uint8_t *bytes;
    sl_err err;
    tiered_open(&t, 8);
    keep(&t, t.tokens, &bytes);
    flush_memory(&t);
    arm("tier.read=hold@1");
    t.holds = true;
    const eng_prefix prefix = {t.tokens, LENGTH, 0};
    eng_sequence *sequence = NULL;
    assert_ok(eng_sequence_open_prefix(t.engine, LENGTH, LENGTH, &prefix, &sequence, &err), &err);
    assert_true(eng_engine_poll(t.engine, sl_now_ns()));
    assert_false(eng_sequence_ready(sequence));
    eng_sequence_close(sequence);
    eng_page_counts counts;
    eng_engine_count_pages(t.engine, &counts);
    assert_int_equal(counts.bound, 0);
    assert_known(&t, t.tokens, bytes, 3); /* the same place, another opening */
    assert_int_equal(stats_of(&t).hits, 6);
    t.holds = false;
    arm(NULL);
    sl_free(bytes);
    tiered_close(&t);
}

/* Reads that do not come back are given up; what is missing is computed. */
TEST(patience_ends)
{
    tiered t;
    uint8_t *bytes;
    size_t size;
    sl_err err;
    tiered_open(&t, 8);
    keep(&t, t.tokens, &bytes);
    flush_memory(&t);
    arm("tier.read=hold@2");
    const eng_prefix prefix = {t.tokens, 192, 0};
    eng_sequence *sequence = NULL;
    assert_ok(eng_sequence_open_prefix(t.engine, 192, 192, &prefix, &sequence, &err), &err);
    while (stats_of(&t).hits == 0) {
        (void)eng_engine_poll(t.engine, sl_now_ns());
        poll(NULL, 0, 1);
    }
    (void)eng_engine_poll(t.engine, sl_now_ns());
    assert_false(eng_sequence_ready(sequence));
    (void)eng_engine_poll(t.engine, sl_now_ns() + 10 * SL_S_NS);
    assert_true(eng_sequence_ready(sequence));
    assert_int_equal(eng_sequence_length(sequence), 64);
    uint8_t *again = sequence_bytes(t.engine, sequence, &size);
    assert_memory_equal(again, bytes, size);
    sl_free(again);
    while (stats_of(&t).hits < 3) { /* what comes late meets nobody */
        raise(SIGUSR2);
        poll(NULL, 0, 1);
    }
    (void)eng_engine_poll(t.engine, sl_now_ns());
    assert_int_equal(eng_sequence_length(sequence), 64);
    sequence_feed(t.engine, sequence, t.tokens + 64, 128, 50, NULL);
    again = sequence_bytes(t.engine, sequence, &size);
    assert_memory_equal(again, bytes, size);
    sl_free(again);
    sl_free(bytes);
    eng_sequence_close(sequence);
    arm(NULL);
    tiered_close(&t);
}

/* The first block comes from the file, those behind it from memory; it is bad, so they go too. */
TEST(a_bad_block_costs_those_behind_it)
{
    tiered t;
    size_t size;
    sl_err err;
    tiered_open(&t, 8);
    for (uint32_t bad = 0; bad < 2; bad++) {
        eng_sequence *first = sequence_open(t.engine, 64), *all = sequence_open(t.engine, 192);
        sequence_feed(t.engine, first, t.tokens, 64, 64, NULL);
        sequence_feed(t.engine, all, t.tokens, 192, 64, NULL);
        uint8_t *bytes = sequence_bytes(t.engine, all, &size);
        eng_sequence_publish(first, &(eng_prefix){t.tokens, 64, 0});
        eng_sequence_close(first);
        eng_sequence_publish(all, &(eng_prefix){t.tokens, 192, 0});
        eng_sequence_close(all); /* its own first block is not kept: the other's, older, is */
        wait_written(&t, bad ? 6 : 3);
        eng_sequence *other = sequence_open(t.engine, 128);
        eng_sequence_close(other);
        assert_int_equal(eng_engine_pages_kept(t.engine), 2);
        uint64_t hits = stats_of(&t).hits;
        arm(bad ? "tier.read=fail" : NULL);
        eng_sequence *again = NULL;
        const eng_prefix prefix = {t.tokens, 192, 0};
        assert_ok(eng_sequence_open_prefix(t.engine, 192, 192, &prefix, &again, &err), &err);
        while (!eng_sequence_ready(again)) {
            (void)eng_engine_poll(t.engine, sl_now_ns());
            poll(NULL, 0, 1);
        }
        assert_int_equal(eng_sequence_length(again), bad ? 0 : 192);
        assert_int_equal(stats_of(&t).hits - hits, bad ? 0 : 1);
        sequence_feed(t.engine, again, t.tokens, bad ? 192 : 0, 50, NULL);
        uint8_t *now = sequence_bytes(t.engine, again, &size);
        assert_memory_equal(now, bytes, size);
        eng_sequence_close(again);
        sl_free(now);
        sl_free(bytes);
        arm(NULL);
        eng_engine_drop_kept(t.engine);
    }
    tiered_close(&t);
}

/* Of seven pages, four are those of a sequence that generates and wants three more. Of its blocks
 * another sequence has the first in memory, the second in the file, and shares the others. The
 * second is bad: now it needs pages of its own, more than are free. It must not hold the first
 * meanwhile, or neither of the two ever goes on. */
TEST(who_waits_behind_a_bad_block_holds_nothing)
{
    enum { BLOCKS = 4, MORE = 3, COUNT = BLOCKS * 64 };
    tiered t;
    uint32_t tokens[COUNT + MORE * 64];
    const eng_prefix none = {0}, prefix = {tokens, COUNT, 0};
    eng_sequence *generates = NULL, *waits = NULL;
    eng_page_counts counts;
    sl_err err;
    size_t size;
    tiered_open(&t, 8);
    eng_engine_destroy(t.engine);
    t.engine = rig_engine(
        &t.r, &(eng_options){.kv_bytes = eng_model_kv_bytes(t.r.model, COUNT + MORE * 64),
                             .rows_max = 256,
                             .overcommit_percent = 200,
                             .tier_path = t.path,
                             .tier_bytes = (uint64_t)1 << 24});
    stream_fill(3, COUNT + MORE * 64, tokens);
    eng_sequence *first = sequence_open(t.engine, 128);
    sequence_feed(t.engine, first, tokens, 128, 64, NULL);
    eng_sequence_publish(first, &prefix);
    assert_ok(eng_sequence_open_prefix(t.engine, COUNT + MORE * 64, COUNT, &none, &generates, &err),
              &err);
    sequence_feed(t.engine, generates, tokens, COUNT, 64, NULL);
    eng_sequence_publish(generates, &prefix); /* its first two blocks are known by other pages */
    eng_sequence_close(first);
    wait_written(&t, 2);
    eng_sequence_close(sequence_open(t.engine, 128)); /* memory forgets the second block */
    assert_int_equal(eng_engine_pages_kept(t.engine), 1);

    arm("tier.read=fail");
    assert_ok(eng_sequence_open_prefix(t.engine, COUNT, COUNT, &prefix, &waits, &err), &err);
    eng_engine_count_pages(t.engine, &counts);
    assert_int_equal(counts.bound, BLOCKS + 2);
    for (uint32_t bound = counts.bound; counts.bound == bound; poll(NULL, 0, 1)) {
        assert_true(eng_engine_poll(t.engine, sl_now_ns()));
        eng_engine_count_pages(t.engine, &counts);
    }
    assert_int_equal(counts.bound, BLOCKS);
    assert_false(eng_sequence_ready(waits));

    assert_ok(eng_sequence_bind(generates, COUNT + MORE * 64, &err), &err);
    sequence_feed(t.engine, generates, tokens + COUNT, MORE * 64, 64, NULL);
    assert_true(eng_engine_poll(t.engine, sl_now_ns())); /* no page is left: it waits on */
    uint8_t *bytes = sequence_bytes(t.engine, generates, &size);
    eng_sequence_close(generates);
    assert_false(eng_engine_poll(t.engine, sl_now_ns()));
    assert_true(eng_sequence_ready(waits));
    assert_int_equal(eng_sequence_length(waits), 0);
    sequence_feed(t.engine, waits, tokens, COUNT, 50, NULL);
    uint8_t *again = sequence_bytes(t.engine, waits, &size);
    assert_memory_equal(again, bytes, size);
    eng_sequence_close(waits);
    sl_free(again);
    sl_free(bytes);
    arm(NULL);
    tiered_close(&t);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(evicted_pages_come_back),
    cmocka_unit_test(a_restart_finds_them),
    cmocka_unit_test(torn_slots_are_dropped),
    cmocka_unit_test(a_stale_file_is_begun_anew),
    cmocka_unit_test(what_is_not_a_cache_file_is_refused),
    cmocka_unit_test(a_full_tier_keeps_the_young),
    cmocka_unit_test(io_errors_cost_pages_only),
    cmocka_unit_test(a_close_does_not_wait_for_reads),
    cmocka_unit_test(patience_ends),
    cmocka_unit_test(a_bad_block_costs_those_behind_it),
    cmocka_unit_test(who_waits_behind_a_bad_block_holds_nothing),
};
TEST_MAIN(TESTS)
