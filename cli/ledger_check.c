/* What must hold of a cluster's pages, and what does not: see ledger.h.
 *
 * A node's ledger is of one moment, so whatever is wrong in it is wrong. Nodes are asked one after
 * the other: what they say of each other counts only if it stays. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/ledger.h"

/* ---- the list ---- */

static void add(ctl_violations *list, const char *name, bool moving, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static void add(ctl_violations *list, const char *name, bool moving, const char *format, ...)
{
    char text[1024];
    va_list arguments;
    if (list->count == CTL_VIOLATIONS_MAX) {
        list->more++;
        return;
    }
    if (!list->items)
        list->items = sl_alloc(CTL_VIOLATIONS_MAX, sizeof(*list->items), "violations");
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    list->items[list->count++] =
        (ctl_violation){.name = name, .moving = moving, .text = sl_strdup(text, "violations")};
}

void ctl_violations_fini(ctl_violations *violations)
{
    for (uint32_t i = 0; i < violations->count; i++)
        sl_free(violations->items[i].text);
    sl_free(violations->items);
    *violations = (ctl_violations){0};
}

static bool has(const ctl_violations *list, const ctl_violation *wanted)
{
    for (uint32_t i = 0; i < list->count; i++)
        if (strcmp(list->items[i].name, wanted->name) == 0 &&
            strcmp(list->items[i].text, wanted->text) == 0)
            return true;
    return false;
}

void ctl_violations_keep(ctl_violations *violations, const ctl_violations *earlier)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < violations->count; i++) {
        ctl_violation *item = &violations->items[i];
        if (item->moving && !has(earlier, item))
            sl_free(item->text);
        else
            violations->items[kept++] = *item;
    }
    violations->count = kept;
}

/* ---- one node ---- */

typedef struct counts {
    uint32_t states[SLUICE__V1__LEDGER_STATE__LEDGER_STATE_KEPT + 1];
    uint32_t untold;
} counts;

static void check_page(const ctl_ledger *l, uint32_t index, ctl_violations *list)
{
    const ctl_page *page = &l->pages[index];
    switch ((Sluice__V1__LedgerState)page->state) {
    case SLUICE__V1__LEDGER_STATE__LEDGER_STATE_FREE:
    case SLUICE__V1__LEDGER_STATE__LEDGER_STATE_KEPT:
        if (page->bound > 0)
            add(list, "free-page-bound", false, "%s: page %u is free, but %u blocks lie in it",
                l->node, index, page->bound);
        break;
    case SLUICE__V1__LEDGER_STATE__LEDGER_STATE_PRIVATE:
        if (page->bound != 1)
            add(list, "private-page-owners", false, "%s: page %u is written to, and has %u owners",
                l->node, index, page->bound);
        break;
    default:
        if (page->bound == 0)
            add(list, "page-without-owner", false, "%s: page %u is in use, and nobody has it",
                l->node, index);
        break;
    }
    if (page->shares != page->bound)
        add(list, "page-shares", false, "%s: page %u is counted %u times, and bound %u times",
            l->node, index, page->shares, page->bound);
}

static void check_sum(const ctl_ledger *l, const char *what, uint32_t counted, uint32_t told,
                      ctl_violations *list)
{
    if (counted != told)
        add(list, "sum-differs", false, "%s: %u %s by the list, %u by the node's count", l->node,
            counted, what, told);
}

static void check_pages(const ctl_ledger *l, ctl_violations *list)
{
    counts c = {0};
    for (uint32_t i = 0; i < l->page_count; i++) {
        if (!l->pages[i].told) {
            c.untold++;
            continue;
        }
        c.states[l->pages[i].state]++;
        check_page(l, i, list);
    }
    if (c.untold > 0)
        add(list, "page-untold", false, "%s: %u of %u pages are not in the list", l->node, c.untold,
            l->page_count);
    check_sum(l, "free pages", c.states[SLUICE__V1__LEDGER_STATE__LEDGER_STATE_FREE], l->free_count,
              list);
    check_sum(l, "kept pages", c.states[SLUICE__V1__LEDGER_STATE__LEDGER_STATE_KEPT], l->kept_count,
              list);
    if (l->strays > 0)
        add(list, "page-without-owner", false, "%s: %u pages are bound for no known request",
            l->node, l->strays);
}

static void check_slots(const ctl_ledger *l, ctl_violations *list)
{
    uint32_t free_count = 0, untold = 0;
    for (uint32_t i = 0; i < l->slot_count; i++) {
        free_count += l->slots[i] == 1;
        untold += l->slots[i] == 0;
    }
    if (untold > 0)
        add(list, "page-untold", false, "%s: %u of %u pages of the second tier are not in the list",
            l->node, untold, l->slot_count);
    check_sum(l, "free pages of the second tier", free_count, l->slots_free, list);
}

static void check_holders(const ctl_ledger *l, ctl_violations *list)
{
    uint32_t promised = 0, transit = 0, sends = 0, recvs = 0;
    for (uint32_t i = 0; i < l->holder_count; i++) {
        const ctl_holder *a = &l->holders[i];
        promised += a->promised;
        transit += a->transit;
        sends += a->transfer && !a->receives;
        recvs += a->transfer && a->receives;
        for (uint32_t k = 0; k < i; k++) {
            const ctl_holder *b = &l->holders[k];
            if (a->sequence == b->sequence && a->epoch == b->epoch &&
                strcmp(a->request_id, b->request_id) == 0)
                add(list, "request-twice", false, "%s: request %s epoch %u is there twice", l->node,
                    a->request_id, a->epoch);
        }
    }
    check_sum(l, "promised pages", promised, l->promised, list);
    check_sum(l, "transit pages in use", transit, l->transit - l->transit_free, list);
    if (l->recvs_open > recvs || l->sends_open > sends)
        add(list, "transfer-without-owner", true, "%s: a transfer is open that no request knows of",
            l->node);
}

static void check_rest(const ctl_ledger *l, ctl_violations *list)
{
    for (uint32_t i = 0; i < l->holder_count; i++) {
        const ctl_holder *holder = &l->holders[i];
        add(list, "not-at-rest", false, "%s: request %s epoch %u is %s and has %u pages", l->node,
            holder->request_id, holder->epoch, holder->state, holder->pages);
    }
    uint32_t owned = l->page_count - l->free_count - l->kept_count;
    if (owned > 0)
        add(list, "not-at-rest", false, "%s: %u pages are owned", l->node, owned);
    if (l->promised > 0)
        add(list, "not-at-rest", false, "%s: %u pages are promised", l->node, l->promised);
    if (l->transit != l->transit_free)
        add(list, "not-at-rest", false, "%s: transit pages are owned", l->node);
    if (l->sends_open + l->recvs_open > 0)
        add(list, "not-at-rest", true, "%s: transfers are open", l->node);
    if (l->quarantined > 0)
        add(list, "not-at-rest", true, "%s: pages are in quarantine", l->node);
    if (l->moves > 0)
        add(list, "not-at-rest", true, "%s: the second tier reads or writes", l->node);
}

void ctl_ledger_check(const ctl_ledger *ledger, bool at_rest, ctl_violations *violations)
{
    check_pages(ledger, violations);
    check_slots(ledger, violations);
    check_holders(ledger, violations);
    if (at_rest)
        check_rest(ledger, violations);
}

/* ---- across nodes ---- */

typedef struct place {
    const ctl_ledger *ledger;
    const ctl_holder *holder;
} place;

static const ctl_ledger *find_node(const ctl_ledger *ledgers, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(ledgers[i].node, name) == 0)
            return &ledgers[i];
    return NULL;
}

static bool same_nonce(const ctl_holder *a, const ctl_holder *b)
{
    return a->transfer && b->transfer && a->nonce_high == b->nonce_high &&
           a->nonce_low == b->nonce_low;
}

/* The two ends of one transfer: P's published pieces, D's fetches. */
static void check_ends(place send, place recv, ctl_violations *list)
{
    const ctl_holder *p = send.holder, *d = recv.holder;
    if (strcmp(p->request_id, d->request_id) != 0 || p->first_block != d->first_block ||
        p->block_count != d->block_count)
        add(list, "transfer-differs", true,
            "request %s: %s sends blocks %u to %u, %s takes %u to %u of %s", p->request_id,
            send.ledger->node, p->first_block, p->first_block + p->block_count, recv.ledger->node,
            d->first_block, d->first_block + d->block_count, d->request_id);
    if (d->pieces > p->pieces)
        add(list, "fetched-unpublished", true, "request %s: %s has pieces that %s did not publish",
            d->request_id, recv.ledger->node, send.ledger->node);
}

static void check_sender(const ctl_ledger *ledgers, size_t count, place send, ctl_violations *list)
{
    const ctl_ledger *peer = find_node(ledgers, count, send.holder->peer);
    if (!peer)
        return; /* gone, or not asked: P's deadline ends it */
    for (uint32_t i = 0; i < peer->holder_count; i++) {
        place recv = {peer, &peer->holders[i]};
        if (!recv.holder->receives || !same_nonce(send.holder, recv.holder))
            continue;
        check_ends(send, recv, list);
        return;
    }
    add(list, "transfer-half-open", true,
        "request %s epoch %u: %s sends, and %s knows nothing of it", send.holder->request_id,
        send.holder->epoch, send.ledger->node, peer->node);
}

static void check_pair(place a, place b, ctl_violations *list)
{
    if (same_nonce(a.holder, b.holder) && a.holder->receives == b.holder->receives)
        add(list, "transfer-claimed-twice", true, "request %s: %s and %s both %s it",
            a.holder->request_id, a.ledger->node, b.ledger->node,
            a.holder->receives ? "receive" : "send");
    if (a.holder->sequence && b.holder->sequence && a.holder->router[0] && b.holder->router[0] &&
        strcmp(a.holder->request_id, b.holder->request_id) == 0)
        add(list, "request-twice", true, "request %s is on %s and on %s", a.holder->request_id,
            a.ledger->node, b.ledger->node);
}

static void check_router(place at, const char *const *routers, size_t router_count,
                         ctl_violations *list)
{
    if (!at.holder->sequence || !at.holder->router[0])
        return;
    for (size_t i = 0; i < router_count; i++)
        if (strcmp(routers[i], at.holder->router) == 0)
            return;
    add(list, "router-unknown", true, "%s: request %s is of router %s, which is no member",
        at.ledger->node, at.holder->request_id, at.holder->router);
}

void ctl_cluster_check(const ctl_ledger *ledgers, size_t count, const char *const *routers,
                       size_t router_count, ctl_violations *violations)
{
    for (size_t i = 0; i < count; i++) {
        for (uint32_t k = 0; k < ledgers[i].holder_count; k++) {
            place a = {&ledgers[i], &ledgers[i].holders[k]};
            check_router(a, routers, router_count, violations);
            if (a.holder->transfer && !a.holder->receives)
                check_sender(ledgers, count, a, violations);
            for (size_t m = i + 1; m < count; m++)
                for (uint32_t n = 0; n < ledgers[m].holder_count; n++)
                    check_pair(a, (place){&ledgers[m], &ledgers[m].holders[n]}, violations);
        }
    }
}
