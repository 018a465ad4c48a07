/* process_vm_readv: needs the same user, the same process namespace, and a kernel that lets it. */
#include "kvtransfer/local.h"

#include <sys/uio.h>

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
