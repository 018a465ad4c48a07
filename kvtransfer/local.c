/* process_vm_readv: needs the same user, the same process namespace, and a kernel that lets it. */
#include "kvtransfer/local.h"

#include <sys/uio.h>
#include <unistd.h>

#include "base/rng.h"

/* The data, then the word; returns the bytes of data read, < 0: none. */
static ssize_t read_once(const kvt_local *local, const kvt_local_piece *pieces, uint32_t count,
                         uint64_t *out_word)
{
    struct iovec into[KVT_WIRE_READS_MAX + 1], from[KVT_WIRE_READS_MAX + 1];
    for (uint32_t i = 0; i < count; i++) {
        into[i] = (struct iovec){pieces[i].dest, pieces[i].bytes};
        from[i] = (struct iovec){(void *)(uintptr_t)pieces[i].address, pieces[i].bytes};
    }
    into[count] = (struct iovec){out_word, sizeof *out_word};
    from[count] = (struct iovec){(void *)(uintptr_t)local->word_at, sizeof *out_word};
    return process_vm_readv((pid_t)local->pid, into, count + 1, from, count + 1, 0);
}

bool kvt_local_proven(const kvt_local *local)
{
    uint64_t word = 0;
    read_once(local, NULL, 0, &word);
    return local->challenge != 0 && word == local->challenge;
}

/* How many at the front are wholly among `got` bytes. */
static uint32_t pieces_in(const kvt_local_piece *pieces, uint32_t count, ssize_t got)
{
    uint64_t left = got < 0 ? 0 : (uint64_t)got;
    uint32_t whole = 0;
    while (whole < count && left >= pieces[whole].bytes)
        left -= pieces[whole++].bytes;
    return whole;
}

void kvt_local_read(const kvt_local *local, kvt_local_piece *pieces, uint32_t count)
{
    while (count > 0) {
        uint64_t word = 0;
        ssize_t got = read_once(local, pieces, count, &word);
        /* Cut short by memory that is not there, the call has no word: asked for on its own, after
         * the data all the same. */
        bool proven =
            (local->challenge != 0 && word == local->challenge) || kvt_local_proven(local);
        uint32_t whole = proven ? pieces_in(pieces, count, got) : 0;
        for (uint32_t i = 0; i < count; i++)
            pieces[i].code = !proven ? SL_UNAVAILABLE : i < whole ? SL_OK : SL_INVALID;
        if (!proven || whole == count)
            return;
        pieces += whole + 1; /* the others may be of transfers that did nothing wrong */
        count -= whole + 1;
    }
}

bool kvt_local_hear(kvt_agreement *agreement, bool sends, const kvt_local_message *message,
                    kvt_local_step *out_say)
{
    if (message->step == KVT_LOCAL_ASK && !sends && agreement->memory.challenge == 0) {
        agreement->memory = (kvt_local){message->pid, message->word_at, sl_random_u64() | 1};
        *out_say = KVT_LOCAL_CHALLENGE;
        return true;
    }
    if (message->step == KVT_LOCAL_CHALLENGE && sends && agreement->word == 0) {
        agreement->word = message->challenge;
        *out_say = KVT_LOCAL_READY;
        return true;
    }
    if (message->step == KVT_LOCAL_READY && !sends && kvt_local_proven(&agreement->memory)) {
        agreement->agreed = true;
        *out_say = KVT_LOCAL_GO;
        return true;
    }
    if (message->step == KVT_LOCAL_GO && sends && agreement->word != 0)
        agreement->agreed = true;
    return false;
}

void kvt_local_withdraw(kvt_agreement *agreement)
{
    agreement->agreed = false;
    /* D sees it before whatever is then written into the pages. */
    __atomic_store_n(&agreement->word, 0, __ATOMIC_SEQ_CST);
}

kvt_local_message kvt_local_message_of(const kvt_agreement *agreement, kvt_local_step step)
{
    return (kvt_local_message){.step = step,
                               .pid = (uint32_t)getpid(),
                               .word_at = (uint64_t)(uintptr_t)&agreement->word,
                               .challenge = agreement->memory.challenge};
}
