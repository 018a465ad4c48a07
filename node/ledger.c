/* The ledger of a node's pages, as the Node service tells it: totals, holders, then pages and
 * bindings in parts, as fast as the reader takes them.
 *
 * The engine thread copies its part between two turns (eng_worker_ask); the holders are listed
 * before the control thread hears of anything later. Slots are given back only on the engine's
 * event, so whoever owned a page at that moment is listed. One reader at a time owns the copy.
 * Thread: control loop. */
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "engine/ledger.h"
#include "node/internal.h"
#include "proto/sluice/v1/node.pb-c.h"

#define HOLDERS_MAX  (DEC_SEQUENCES_MAX + PRE_JOBS_MAX)
#define PART_ITEMS   1024u /* runs or bindings in one part */
#define PART_HOLDERS 32u

_Static_assert(DEC_OWNER_FIRST + DEC_SEQUENCES_MAX <= PRE_OWNER_FIRST, "owners do not overlap");
_Static_assert((int)ENG_PAGE_STATE_FREE == SLUICE__V1__LEDGER_STATE__LEDGER_STATE_FREE &&
                   (int)ENG_PAGE_STATE_PRIVATE == SLUICE__V1__LEDGER_STATE__LEDGER_STATE_PRIVATE &&
                   (int)ENG_PAGE_STATE_SEALED == SLUICE__V1__LEDGER_STATE__LEDGER_STATE_SEALED &&
                   (int)ENG_PAGE_STATE_KEPT == SLUICE__V1__LEDGER_STATE__LEDGER_STATE_KEPT,
               "the wire's states are the engine's");
/* The first parts find room in the call's queue whatever the reader does. */
_Static_assert(HOLDERS_MAX / PART_HOLDERS + 2 <= RPC_WRITE_MESSAGES_MAX, "holders fit");

struct nod_ledger {
    nod_host *host;
    rpc_server_call *call;                /* NULL: the reader is gone */
    eng_ledger *copy;                     /* NULL: nobody reads */
    bool asked;                           /* the engine thread has the copy */
    uint32_t page, slot, sequence, block; /* what is told already lies before */
    /* the part being made */
    Sluice__V1__LedgerPart part;
    Sluice__V1__LedgerRun runs[PART_ITEMS];
    Sluice__V1__LedgerRun *run_pointers[PART_ITEMS];
    Sluice__V1__LedgerBinding bindings[PART_ITEMS];
    Sluice__V1__LedgerBinding *binding_pointers[PART_ITEMS];
};

nod_ledger *nod_ledger_create(nod_host *host)
{
    nod_ledger *ledger = sl_alloc(1, sizeof(*ledger), "node ledger");
    ledger->host = host;
    for (uint32_t i = 0; i < PART_ITEMS; i++) {
        ledger->run_pointers[i] = &ledger->runs[i];
        ledger->binding_pointers[i] = &ledger->bindings[i];
    }
    return ledger;
}

void nod_ledger_destroy(nod_ledger *ledger)
{
    if (!ledger)
        return;
    eng_ledger_destroy(ledger->copy);
    sl_free(ledger);
}

static void end(nod_ledger *ledger, sl_code code, const char *text)
{
    if (ledger->call)
        rpc_server_call_finish(ledger->call, code, text);
    ledger->call = NULL;
    eng_ledger_destroy(ledger->copy);
    ledger->copy = NULL;
}

/* ---- totals and holders ---- */

static bool write(nod_ledger *ledger, const Sluice__V1__LedgerPart *part)
{
    return sl_is_ok(rpc_server_call_write(ledger->call, &part->base));
}

static bool write_totals(nod_ledger *ledger)
{
    const nod_host *host = ledger->host;
    const eng_ledger *copy = ledger->copy;
    kvt_stats stats;
    kvt_stats_get(host->kvt, &stats);
    Sluice__V1__LedgerTotals totals = SLUICE__V1__LEDGER_TOTALS__INIT;
    totals.node = (char *)host->options->name;
    totals.role = (char *)nod_role_name(host->role);
    totals.incarnation = host->incarnation;
    totals.state = (char *)nod_state_name(host->state);
    totals.pages = copy->page_count;
    totals.pages_free = copy->free_count;
    totals.pages_kept = copy->kept_count;
    totals.pages_promised = copy->promised;
    totals.slots = copy->slot_count;
    totals.slots_free = copy->slots_free;
    totals.moves = copy->moves;
    totals.transit = copy->transit_count;
    totals.transit_free = copy->transit_free;
    totals.sends_open = stats.sends_open;
    totals.recvs_open = stats.recvs_open;
    totals.recvs_quarantined = stats.recvs_quarantined;
    Sluice__V1__LedgerPart part = SLUICE__V1__LEDGER_PART__INIT;
    part.totals = &totals;
    return write(ledger, &part);
}

/* What the engine's sequences of this owner have beside pages. */
static void add_engine_part(const eng_ledger *copy, Sluice__V1__LedgerHolder *holder)
{
    for (uint32_t i = 0; i < copy->sequence_count; i++) {
        if (copy->sequences[i].owner != holder->id)
            continue;
        holder->pages_promised += copy->sequences[i].promised;
        holder->pages_transit += copy->sequences[i].transit;
    }
}

/* Holders on their way into a part. Their texts are the services', and stay while these list. */
typedef struct batch {
    nod_ledger *ledger;
    Sluice__V1__LedgerHolder holders[PART_HOLDERS], *pointers[PART_HOLDERS];
    Sluice__V1__LedgerTransfer transfers[PART_HOLDERS];
    size_t count;
    bool written; /* so far */
} batch;

static void batch_write(batch *b)
{
    Sluice__V1__LedgerPart part = SLUICE__V1__LEDGER_PART__INIT;
    part.n_holders = b->count;
    part.holders = b->pointers;
    if (b->count > 0)
        b->written = b->written && write(b->ledger, &part);
    b->count = 0;
}

static void batch_add(void *context, const Sluice__V1__LedgerHolder *listed)
{
    batch *b = context;
    if (b->count == PART_HOLDERS)
        batch_write(b);
    Sluice__V1__LedgerHolder *holder = &b->holders[b->count];
    *holder = *listed;
    add_engine_part(b->ledger->copy, holder);
    if (listed->transfer) {
        b->transfers[b->count] = *listed->transfer;
        holder->transfer = &b->transfers[b->count];
    }
    b->pointers[b->count++] = holder;
}

static bool write_holders(nod_ledger *ledger)
{
    const nod_host *host = ledger->host;
    batch b = {.ledger = ledger, .written = true};
    dec_service_holders(host->decode, batch_add, &b);
    pre_service_holders(host->prefill, batch_add, &b);
    batch_write(&b);
    return b.written;
}

/* ---- pages and bindings ---- */

static void add_run(nod_ledger *ledger, const Sluice__V1__LedgerRun *run)
{
    ledger->runs[ledger->part.n_runs++] = *run;
}

static void add_pages(nod_ledger *ledger)
{
    const eng_ledger *copy = ledger->copy;
    while (ledger->page < copy->page_count && ledger->part.n_runs < PART_ITEMS) {
        const eng_ledger_page *page = &copy->pages[ledger->page];
        Sluice__V1__LedgerRun run = SLUICE__V1__LEDGER_RUN__INIT;
        run.first = ledger->page;
        run.state = (Sluice__V1__LedgerState)page->state;
        run.shares = page->ref_count;
        for (; ledger->page < copy->page_count; ledger->page++, run.count++)
            if (copy->pages[ledger->page].state != page->state ||
                copy->pages[ledger->page].ref_count != page->ref_count)
                break;
        add_run(ledger, &run);
    }
}

static void add_slots(nod_ledger *ledger)
{
    const eng_ledger *copy = ledger->copy;
    while (ledger->slot < copy->slot_count && ledger->part.n_runs < PART_ITEMS) {
        bool used = copy->slots[ledger->slot];
        Sluice__V1__LedgerRun run = SLUICE__V1__LEDGER_RUN__INIT;
        run.tier = SLUICE__V1__LEDGER_TIER__LEDGER_TIER_FILE;
        run.first = ledger->slot;
        run.state = used ? SLUICE__V1__LEDGER_STATE__LEDGER_STATE_STORED
                         : SLUICE__V1__LEDGER_STATE__LEDGER_STATE_FREE;
        while (ledger->slot < copy->slot_count && copy->slots[ledger->slot] == used) {
            ledger->slot++;
            run.count++;
        }
        add_run(ledger, &run);
    }
}

static void add_bindings(nod_ledger *ledger)
{
    const eng_ledger *copy = ledger->copy;
    while (ledger->sequence < copy->sequence_count && ledger->part.n_bindings < PART_ITEMS) {
        const eng_ledger_sequence *sequence = &copy->sequences[ledger->sequence];
        const uint32_t *bound = copy->bound + sequence->first;
        if (ledger->block == sequence->count) {
            ledger->sequence++;
            ledger->block = 0;
            continue;
        }
        Sluice__V1__LedgerBinding binding = SLUICE__V1__LEDGER_BINDING__INIT;
        binding.holder = sequence->owner;
        binding.block = ledger->block;
        binding.page = bound[ledger->block];
        while (ledger->block < sequence->count &&
               bound[ledger->block] == binding.page + binding.count) {
            ledger->block++;
            binding.count++;
        }
        ledger->bindings[ledger->part.n_bindings++] = binding;
    }
}

/* Makes the next part where the last one was taken; false: there is no more. */
static bool make_part(nod_ledger *ledger)
{
    if (ledger->part.n_runs + ledger->part.n_bindings > 0)
        return true; /* it found no room last time */
    add_pages(ledger);
    add_slots(ledger);
    add_bindings(ledger);
    return ledger->part.n_runs + ledger->part.n_bindings > 0;
}

static void pump(nod_ledger *ledger)
{
    while (make_part(ledger)) {
        sl_status status = rpc_server_call_write(ledger->call, &ledger->part.base);
        if (status.code == SL_FULL)
            return; /* on_writable goes on */
        if (!sl_is_ok(status)) {
            end(ledger, status.code, "the ledger cannot be told");
            return;
        }
        ledger->part.n_runs = ledger->part.n_bindings = 0;
    }
    end(ledger, SL_OK, NULL);
}

/* ---- the call ---- */

static void take(void *context)
{
    nod_ledger *ledger = context;
    eng_ledger_take(ledger->host->engine, ledger->copy);
}

static void on_taken(void *context)
{
    nod_ledger *ledger = context;
    ledger->asked = false;
    if (!ledger->call) {
        end(ledger, SL_OK, NULL);
        return;
    }
    if (write_totals(ledger) && write_holders(ledger))
        pump(ledger);
    else
        end(ledger, SL_FULL, "the ledger's holders find no room in the stream");
}

static void on_writable(void *context, rpc_server_call *call)
{
    nod_ledger *ledger = context;
    if (call == ledger->call && !ledger->asked)
        pump(ledger);
}

static void on_closed(void *context, rpc_server_call *call, bool cancelled)
{
    nod_ledger *ledger = context;
    if (call != ledger->call)
        return;
    ledger->call = NULL;
    if (!ledger->asked)
        end(ledger, SL_OK, NULL);
}

static const rpc_server_call_events EVENTS = {.on_writable = on_writable, .on_closed = on_closed};

void nod_ledger_on_call(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    nod_ledger *ledger = context;
    if (ledger->copy) {
        rpc_server_call_finish(call, SL_FULL, "the ledger is being told to someone else");
        return;
    }
    ledger->copy = eng_ledger_create(ledger->host->engine);
    ledger->call = call;
    ledger->page = ledger->slot = ledger->sequence = ledger->block = 0;
    sluice__v1__ledger_part__init(&ledger->part);
    ledger->part.runs = ledger->run_pointers;
    ledger->part.bindings = ledger->binding_pointers;
    rpc_server_call_set(call, &EVENTS, ledger);
    ledger->asked = eng_worker_ask(ledger->host->worker, take, on_taken, ledger);
    if (!ledger->asked)
        end(ledger, SL_UNAVAILABLE, "the engine is not running");
}
