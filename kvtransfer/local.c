/* process_vm_readv: needs the same user, the same process namespace, and a kernel that lets it. */
#include "kvtransfer/local.h"

#include <sys/uio.h>
#include <unistd.h>

#include "base/rng.h"

static sl_code read_checked(const kvt_local *local, uint64_t address, void *dest, uint64_t bytes)
{
    uint64_t word = 0;
    struct iovec into[2] = {{&word, sizeof word}, {dest, bytes}};
    struct iovec from[2] = {{(void *)(uintptr_t)local->word_at, sizeof word},
                            {(void *)(uintptr_t)address, bytes}};
    unsigned long parts = bytes > 0 ? 2 : 1;
    if (local->challenge == 0)
        return SL_UNAVAILABLE;
    ssize_t got = process_vm_readv((pid_t)local->pid, into, parts, from, parts, 0);
    /* No word, or another: whoever agreed is gone (bad data behind it would end it short). */
    if (got < 0 || word != local->challenge)
        return SL_UNAVAILABLE;
    return (uint64_t)got == sizeof word + bytes ? SL_OK : SL_INVALID;
}

bool kvt_local_proven(const kvt_local *local)
{
    return read_checked(local, 0, NULL, 0) == SL_OK;
}

sl_code kvt_local_read(const kvt_local *local, uint64_t address, void *dest, uint64_t bytes)
{
    return read_checked(local, address, dest, bytes);
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

kvt_local_message kvt_local_message_of(const kvt_agreement *agreement, kvt_local_step step)
{
    return (kvt_local_message){.step = step,
                               .pid = (uint32_t)getpid(),
                               .word_at = (uint64_t)(uintptr_t)&agreement->word,
                               .challenge = agreement->memory.challenge};
}
