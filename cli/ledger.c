/* A node's ledger, taken in part by part: see ledger.h. Judging it: ledger_check.c. */
#include "cli/ledger.h"

#include <stdio.h>

#include "base/alloc.h"

static sl_status begin(ctl_ledger *ledger, const Sluice__V1__LedgerTotals *totals, sl_err *err)
{
    if (ledger->begun)
        return sl_fail(err, SL_INVALID, "the ledger began twice");
    if (totals->pages > CTL_PAGES_MAX || totals->slots > CTL_PAGES_MAX)
        return sl_fail(err, SL_TOO_LARGE, "%u pages and %u slots: at most %u are looked at",
                       totals->pages, totals->slots, CTL_PAGES_MAX);
    ledger->begun = true;
    snprintf(ledger->node, sizeof(ledger->node), "%s", totals->node);
    snprintf(ledger->role, sizeof(ledger->role), "%s", totals->role);
    snprintf(ledger->state, sizeof(ledger->state), "%s", totals->state);
    ledger->page_count = totals->pages;
    ledger->slot_count = totals->slots;
    ledger->pages = sl_alloc(totals->pages, sizeof(*ledger->pages), "ledger pages");
    ledger->slots = sl_alloc(totals->slots, sizeof(*ledger->slots), "ledger slots");
    ledger->holders = sl_alloc(CTL_HOLDERS_MAX, sizeof(*ledger->holders), "ledger holders");
    ledger->free_count = totals->pages_free;
    ledger->kept_count = totals->pages_kept;
    ledger->promised = totals->pages_promised;
    ledger->slots_free = totals->slots_free;
    ledger->moves = totals->moves;
    ledger->transit = totals->transit;
    ledger->transit_free = totals->transit_free;
    ledger->sends_open = totals->sends_open;
    ledger->recvs_open = totals->recvs_open;
    ledger->quarantined = totals->recvs_quarantined;
    return sl_ok();
}

static ctl_holder *find_holder(const ctl_ledger *ledger, uint32_t id)
{
    for (uint32_t i = 0; i < ledger->holder_count; i++)
        if (ledger->holders[i].id == id)
            return &ledger->holders[i];
    return NULL;
}

static sl_status add_holder(ctl_ledger *ledger, const Sluice__V1__LedgerHolder *wire, sl_err *err)
{
    if (ledger->holder_count == CTL_HOLDERS_MAX)
        return sl_fail(err, SL_TOO_LARGE, "more than %u holders", CTL_HOLDERS_MAX);
    if (wire->id == 0 || find_holder(ledger, wire->id))
        return sl_fail(err, SL_INVALID, "holder %u twice", wire->id);
    ctl_holder *holder = &ledger->holders[ledger->holder_count++];
    holder->id = wire->id;
    holder->sequence = wire->kind[0] == 's';
    snprintf(holder->request_id, sizeof(holder->request_id), "%s", wire->request_id);
    snprintf(holder->state, sizeof(holder->state), "%s", wire->state);
    snprintf(holder->router, sizeof(holder->router), "%s", wire->router);
    holder->epoch = wire->epoch;
    holder->deadline_ms = wire->deadline_ms;
    holder->promised = wire->pages_promised;
    holder->transit = wire->pages_transit;
    const Sluice__V1__LedgerTransfer *transfer = wire->transfer;
    if (!transfer)
        return sl_ok();
    holder->transfer = true;
    holder->receives = transfer->receives;
    snprintf(holder->peer, sizeof(holder->peer), "%s", transfer->peer);
    holder->nonce_high = transfer->nonce_high;
    holder->nonce_low = transfer->nonce_low;
    holder->first_block = transfer->first_block;
    holder->block_count = transfer->block_count;
    holder->pieces = transfer->pieces;
    return sl_ok();
}

static sl_status check_range(const char *what, uint32_t first, uint32_t count, uint32_t limit,
                             sl_err *err)
{
    if (first >= limit || count == 0 || count > limit - first)
        return sl_fail(err, SL_INVALID, "%s %u and %u more: there are %u", what, first, count,
                       limit);
    return sl_ok();
}

static sl_status add_slots(ctl_ledger *ledger, const Sluice__V1__LedgerRun *run, sl_err *err)
{
    SL_TRY(check_range("slot", run->first, run->count, ledger->slot_count, err));
    bool stored = run->state == SLUICE__V1__LEDGER_STATE__LEDGER_STATE_STORED;
    for (uint32_t i = run->first; i < run->first + run->count; i++) {
        if (ledger->slots[i])
            return sl_fail(err, SL_INVALID, "slot %u is told twice", i);
        ledger->slots[i] = stored ? 2 : 1;
    }
    return sl_ok();
}

static sl_status add_run(ctl_ledger *ledger, const Sluice__V1__LedgerRun *run, sl_err *err)
{
    if (run->tier == SLUICE__V1__LEDGER_TIER__LEDGER_TIER_FILE)
        return add_slots(ledger, run, err);
    SL_TRY(check_range("page", run->first, run->count, ledger->page_count, err));
    if ((uint32_t)run->state > SLUICE__V1__LEDGER_STATE__LEDGER_STATE_KEPT)
        return sl_fail(err, SL_INVALID, "page %u: state %u", run->first, (uint32_t)run->state);
    for (uint32_t i = run->first; i < run->first + run->count; i++) {
        ctl_page *page = &ledger->pages[i];
        if (page->told)
            return sl_fail(err, SL_INVALID, "page %u is told twice", i);
        page->told = true;
        page->state = (uint8_t)run->state;
        page->shares = run->shares;
    }
    return sl_ok();
}

static sl_status add_binding(ctl_ledger *ledger, const Sluice__V1__LedgerBinding *binding,
                             sl_err *err)
{
    SL_TRY(check_range("page", binding->page, binding->count, ledger->page_count, err));
    ctl_holder *holder = find_holder(ledger, binding->holder);
    if (holder)
        holder->pages += binding->count;
    else
        ledger->strays += binding->count;
    for (uint32_t i = binding->page; i < binding->page + binding->count; i++)
        ledger->pages[i].bound++;
    return sl_ok();
}

sl_status ctl_ledger_add(ctl_ledger *ledger, const Sluice__V1__LedgerPart *part, sl_err *err)
{
    if (part->totals)
        SL_TRY(begin(ledger, part->totals, err));
    if (!ledger->begun)
        return sl_fail(err, SL_INVALID, "the ledger does not begin with its totals");
    for (size_t i = 0; i < part->n_holders; i++)
        SL_TRY(add_holder(ledger, part->holders[i], err));
    for (size_t i = 0; i < part->n_runs; i++)
        SL_TRY(add_run(ledger, part->runs[i], err));
    for (size_t i = 0; i < part->n_bindings; i++)
        SL_TRY(add_binding(ledger, part->bindings[i], err));
    return sl_ok();
}

void ctl_ledger_fini(ctl_ledger *ledger)
{
    sl_free(ledger->pages);
    sl_free(ledger->slots);
    sl_free(ledger->holders);
    *ledger = (ctl_ledger){0};
}
