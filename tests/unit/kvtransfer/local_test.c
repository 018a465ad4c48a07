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

static void other_start(void)
{
    for (uint32_t i = 0; i < BYTES; i++)
        here.data[i] = (uint8_t)(i * 7 + i / 251);
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

TEST(reads_exactly)
{
    static uint8_t into[BYTES + 1];
    kvt_local local = right();
    into[BYTES] = 99;
    assert_true(kvt_local_proven(&local));
    assert_int_equal(kvt_local_read(&local, (uint64_t)(uintptr_t)here.data, into, BYTES), SL_OK);
    for (uint32_t i = 0; i < BYTES; i++)
        assert_int_equal(into[i], (uint8_t)(i * 7 + i / 251));
    assert_int_equal(into[BYTES], 99);
}

TEST(another_process_is_refused)
{
    uint8_t into[8];
    kvt_local local = right();
    local.challenge++;
    assert_false(kvt_local_proven(&local));
    assert_int_equal(kvt_local_read(&local, (uint64_t)(uintptr_t)here.data, into, sizeof into),
                     SL_UNAVAILABLE);
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
    assert_int_equal(kvt_local_read(&local, 16, into, page), SL_INVALID);
    assert_int_equal(kvt_local_read(&local, UINT64_MAX - 100, into, page), SL_INVALID);
    local.word_at = 16; /* what was agreed on is gone, and it is nobody's fault */
    assert_int_equal(kvt_local_read(&local, (uint64_t)(uintptr_t)here.data, into, 8),
                     SL_UNAVAILABLE);
    sl_free(into);
}

TEST(dead_process)
{
    uint8_t into[8];
    kvt_local local = right();
    other_stop();
    assert_false(kvt_local_proven(&local));
    assert_int_equal(kvt_local_read(&local, (uint64_t)(uintptr_t)here.data, into, sizeof into),
                     SL_UNAVAILABLE);
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
