/* A node's ledger off the wire: any bytes, as parts of a stream (each after its length, two bytes),
 * taken in and judged. */
#include "base/alloc.h"
#include "base/assert.h"
#include "cli/ledger.h"
#include "rpc/message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PAGES_MAX 65536u /* the rest is only more of the same, and slow */

static bool small(const Sluice__V1__LedgerPart *part)
{
    return !part->totals || (part->totals->pages < PAGES_MAX && part->totals->slots < PAGES_MAX) ||
           part->totals->pages > CTL_PAGES_MAX || part->totals->slots > CTL_PAGES_MAX;
}

/* false: it ended there. */
static bool take(ctl_ledger *ledger, const uint8_t *data, size_t size)
{
    ProtobufCMessage *message;
    sl_err err;
    if (!sl_is_ok(
            rpc_message_unpack(&sluice__v1__ledger_part__descriptor, data, size, &message, &err)))
        return false;
    const Sluice__V1__LedgerPart *part = (const Sluice__V1__LedgerPart *)message;
    bool fine = small(part) && sl_is_ok(ctl_ledger_add(ledger, part, &err));
    rpc_message_free(message);
    return fine;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ctl_ledger ledgers[2] = {{.begun = false}};
    ctl_violations found = {0};
    for (size_t at = 0, which = 0; at + 2 <= size; which ^= 1) {
        size_t part = (size_t)data[at] | (size_t)data[at + 1] << 8;
        at += 2;
        part = part < size - at ? part : size - at;
        if (!take(&ledgers[which], data + at, part))
            break;
        at += part;
    }
    for (size_t i = 0; i < 2; i++)
        ctl_ledger_check(&ledgers[i], true, &found);
    ctl_cluster_check(ledgers, 2, NULL, 0, &found);
    ctl_violations_fini(&found);
    for (size_t i = 0; i < 2; i++)
        ctl_ledger_fini(&ledgers[i]);
    sl_assert(sl_alloc_live() == 0);
    return 0;
}
