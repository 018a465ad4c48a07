/* Reading another process's memory: what is read, and everything that stands in the way. */
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kvtransfer/local.h"
#include "tests/unit/test.h"

enum { BYTES = 100000 };

typedef struct other { /* a child with the same addresses, which waits to be killed */
    pid_t pid;
    uint64_t word;
    uint8_t data[BYTES];
} other;

static other here;

static uint8_t right_byte(uint32_t i)
{
    return (uint8_t)(i * 7 + i / 251);
}

static void other_start(void)
{
    for (uint32_t i = 0; i < BYTES; i++)
        here.data[i] = right_byte(i);
    here.word = 0x1122334455667788ull;
    here.pid = fork();
    assert_true(here.pid >= 0);
    if (here.pid == 0) {
        for (;;)
            pause();
    }
    here.word = 0; /* the child's stays */
    memset(here.data, 0, sizeof here.data);
}

static void other_stop(void)
{
    kill(here.pid, SIGKILL);
    waitpid(here.pid, NULL, 0);
}

static kvt_local right(void)
{
    kvt_local local = {(uint32_t)here.pid, (uint64_t)(uintptr_t)&here.word, 0x1122334455667788ull};
    return local;
}

static sl_code read_one(const kvt_local *local, uint64_t address, void *into, uint64_t bytes)
{
    kvt_local_piece piece = {address, bytes, into, SL_IO};
    kvt_local_read(local, &piece, 1);
    return piece.code;
}

static uint64_t there(uint32_t offset)
{
    return (uint64_t)(uintptr_t)here.data + offset;
}

TEST(reads_exactly)
{
    static uint8_t into[BYTES + 1];
    kvt_local local = right();
    into[BYTES] = 99;
    assert_true(kvt_local_proven(&local));
    assert_int_equal(read_one(&local, there(0), into, BYTES), SL_OK);
    for (uint32_t i = 0; i < BYTES; i++)
        assert_int_equal(into[i], right_byte(i));
    assert_int_equal(into[BYTES], 99);
}

/* One that is not there costs none of the others. */
TEST(several_are_judged_one_by_one)
{
    static uint8_t into[KVT_WIRE_READS_MAX][64];
    kvt_local_piece pieces[KVT_WIRE_READS_MAX];
    kvt_local local = right();
    for (uint32_t i = 0; i < KVT_WIRE_READS_MAX; i++)
        pieces[i] = (kvt_local_piece){there(i * 100), 64, into[i], SL_IO};
    pieces[0].address = pieces[5].address = pieces[6].address = 16;
    pieces[KVT_WIRE_READS_MAX - 1].address = 16;
    kvt_local_read(&local, pieces, KVT_WIRE_READS_MAX);
    for (uint32_t i = 0; i < KVT_WIRE_READS_MAX; i++) {
        assert_int_equal(pieces[i].code, pieces[i].address == 16 ? SL_INVALID : SL_OK);
        for (uint32_t j = 0; j < 64 && pieces[i].code == SL_OK; j++)
            assert_int_equal(into[i][j], right_byte(i * 100 + j));
    }
    local.challenge++;
    kvt_local_read(&local, pieces, KVT_WIRE_READS_MAX);
    for (uint32_t i = 0; i < KVT_WIRE_READS_MAX; i++)
        assert_int_equal(pieces[i].code, SL_UNAVAILABLE);
    kvt_local_read(&local, NULL, 0);
}

/* The word counts as it is when the data has been read. The peer is this process here, and the
 * second piece is read onto its word. */
TEST(the_word_is_read_behind_the_data)
{
    uint64_t zero = 0, into = 0;
    kvt_agreement own = {.agreed = true, .word = 77};
    kvt_local local = {(uint32_t)getpid(), (uint64_t)(uintptr_t)&own.word, 77};
    kvt_local_piece pieces[2] = {{(uint64_t)(uintptr_t)&zero, 8, &into, SL_IO},
                                 {(uint64_t)(uintptr_t)&zero, 8, &own.word, SL_IO}};
    kvt_local_read(&local, pieces, 1);
    assert_int_equal(pieces[0].code, SL_OK);
    kvt_local_read(&local, pieces, 2);
    assert_int_equal(pieces[0].code, SL_UNAVAILABLE);
    assert_int_equal(pieces[1].code, SL_UNAVAILABLE);
}

TEST(what_is_withdrawn_is_refused)
{
    uint64_t data = 5, into = 0;
    kvt_agreement own = {.agreed = true, .word = 77};
    kvt_local local = {(uint32_t)getpid(), (uint64_t)(uintptr_t)&own.word, 77};
    assert_int_equal(read_one(&local, (uint64_t)(uintptr_t)&data, &into, 8), SL_OK);
    kvt_local_withdraw(&own);
    assert_false(own.agreed);
    assert_int_equal(read_one(&local, (uint64_t)(uintptr_t)&data, &into, 8), SL_UNAVAILABLE);
}

TEST(another_process_is_refused)
{
    uint8_t into[8];
    kvt_local local = right();
    local.challenge++;
    assert_false(kvt_local_proven(&local));
    assert_int_equal(read_one(&local, there(0), into, sizeof into), SL_UNAVAILABLE);
    local = right();
    local.pid = (uint32_t)getpid(); /* the word has another value here */
    assert_false(kvt_local_proven(&local));
    local = right();
    local.word_at = 8;
    assert_false(kvt_local_proven(&local));
    local = right();
    local.challenge = 0; /* nothing was ever agreed: not even a word of zero is right */
    local.pid = (uint32_t)getpid();
    assert_false(kvt_local_proven(&local));
}

TEST(memory_that_is_not_there)
{
    kvt_local local = right();
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *into = sl_alloc(1, 4 * page, "into");
    assert_int_equal(read_one(&local, 16, into, page), SL_INVALID);
    assert_int_equal(read_one(&local, UINT64_MAX - 100, into, page), SL_INVALID);
    local.word_at = 16; /* what was agreed on is gone, and it is nobody's fault */
    assert_int_equal(read_one(&local, there(0), into, 8), SL_UNAVAILABLE);
    sl_free(into);
}

TEST(dead_process)
{
    uint8_t into[8];
    kvt_local local = right();
    other_stop();
    assert_false(kvt_local_proven(&local));
    assert_int_equal(read_one(&local, there(0), into, sizeof into), SL_UNAVAILABLE);
}

/* Both ends in this process: what one says is heard by the other, until nobody answers. */
static uint32_t talk(kvt_agreement *sender, kvt_agreement *reader, kvt_local_step first)
{
    kvt_local_step say = first;
    uint32_t said = 1;
    bool to_sender = first == KVT_LOCAL_CHALLENGE || first == KVT_LOCAL_GO;
    for (;; to_sender = !to_sender, said++) {
        kvt_local_message message = kvt_local_message_of(to_sender ? reader : sender, say);
        if (!kvt_local_hear(to_sender ? sender : reader, to_sender, &message, &say))
            return said;
    }
}

TEST(agreed_in_four_words)
{
    static kvt_agreement sender, reader;
    assert_int_equal(talk(&sender, &reader, KVT_LOCAL_ASK), 4);
    assert_true(sender.agreed && reader.agreed);
    assert_true(sender.word != 0 && sender.word == reader.memory.challenge);
    assert_int_equal(talk(&sender, &reader, KVT_LOCAL_ASK), 1); /* once */
    sender.word++;
    assert_false(kvt_local_proven(&reader.memory));
}

TEST(not_agreed_out_of_turn)
{
    static kvt_agreement sender, reader;
    assert_int_equal(talk(&sender, &reader, KVT_LOCAL_READY), 1);
    assert_int_equal(talk(&sender, &reader, KVT_LOCAL_GO), 1);
    assert_false(sender.agreed || reader.agreed);
    kvt_local_step say;
    kvt_local_message ask = kvt_local_message_of(&sender, KVT_LOCAL_ASK);
    assert_true(kvt_local_hear(&reader, false, &ask, &say));
    kvt_local_message ready = kvt_local_message_of(&sender, KVT_LOCAL_READY); /* it is not */
    assert_false(kvt_local_hear(&reader, false, &ready, &say));
    assert_false(reader.agreed);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(reads_exactly),
    cmocka_unit_test(several_are_judged_one_by_one),
    cmocka_unit_test(the_word_is_read_behind_the_data),
    cmocka_unit_test(what_is_withdrawn_is_refused),
    cmocka_unit_test(another_process_is_refused),
    cmocka_unit_test(memory_that_is_not_there),
    cmocka_unit_test(agreed_in_four_words),
    cmocka_unit_test(not_agreed_out_of_turn),
    cmocka_unit_test(dead_process),
};

int main(void)
{
    other_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
