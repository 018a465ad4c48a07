/* `sluicectl check`: do the nodes answer and fit together, and with --ledger, who owns their pages.
 *
 * Nodes are asked one after the other, those that receive first. What they say of each other may be
 * out of date, so the question is asked again, and only what stays is told. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/commands.h"
#include "cli/ledger.h"

#define ROUNDS_MAX 8u
#define ROUND_MS   400u

typedef struct check {
    ctl_session *session;
    bool at_rest;
    ctl_ledger *ledgers; /* [count]: of those that answered */
    size_t count;
    sl_buf unanswered; /* lines */
    uint32_t unanswered_count;
    ctl_violations violations;
} check;

static void check_fini(check *c)
{
    for (size_t i = 0; i < c->count; i++)
        ctl_ledger_fini(&c->ledgers[i]);
    sl_free(c->ledgers);
    sl_buf_fini(&c->unanswered);
    ctl_violations_fini(&c->violations);
}

/* ---- one round ---- */

static sl_status on_part(void *context, const ProtobufCMessage *message, sl_err *err)
{
    return ctl_ledger_add(context, (const Sluice__V1__LedgerPart *)message, err);
}

static void ask(check *c, const clu_member_info *member)
{
    static const Sluice__V1__LedgerRequest REQUEST = SLUICE__V1__LEDGER_REQUEST__INIT;
    ctl_ledger *ledger = &c->ledgers[c->count];
    sl_err err;
    sl_status status = ctl_session_read(c->session, member, &rpc_method_node_get_ledger,
                                        &REQUEST.base, on_part, ledger, &err);
    if (sl_is_ok(status) && ledger->begun) {
        c->count++;
        return;
    }
    ctl_ledger_fini(ledger);
    sl_buf_printf(&c->unanswered, "%s\n",
                  sl_is_ok(status) ? "a ledger without totals came" : err.text);
    c->unanswered_count++;
}

/* Receivers first: what they have was published when the senders are asked. */
static void ask_all(check *c)
{
    static const char *const ORDER[] = {"decode", "hybrid", "prefill"};
    size_t members = ctl_session_count(c->session);
    c->ledgers = sl_alloc(members, sizeof(*c->ledgers), "sluicectl ledgers");
    sl_buf_init(&c->unanswered, 0);
    for (size_t role = 0; role < sizeof(ORDER) / sizeof(ORDER[0]); role++)
        for (size_t i = 0; i < members; i++)
            if (strcmp(ctl_session_member(c->session, i)->role, ORDER[role]) == 0)
                ask(c, ctl_session_member(c->session, i));
}

static void judge(check *c)
{
    size_t members = ctl_session_count(c->session), routers = 0;
    const char **names = sl_alloc(members, sizeof(*names), "sluicectl routers");
    for (size_t i = 0; i < members; i++)
        if (!ctl_member_is_node(ctl_session_member(c->session, i)))
            names[routers++] = ctl_session_member(c->session, i)->name;
    for (size_t i = 0; i < c->count; i++)
        ctl_ledger_check(&c->ledgers[i], c->at_rest, &c->violations);
    ctl_cluster_check(c->ledgers, c->count, names, routers, &c->violations);
    sl_free(names);
}

static bool any_moving(const ctl_violations *violations)
{
    for (uint32_t i = 0; i < violations->count; i++)
        if (violations->items[i].moving)
            return true;
    return false;
}

/* Several rounds, as long as something is in doubt. What is certain ends it. */
static check run(ctl_session *session)
{
    check now = {.session = session, .at_rest = ctl_session_options(session)->at_rest};
    ask_all(&now);
    judge(&now);
    for (uint32_t round = 1; round < ROUNDS_MAX && any_moving(&now.violations); round++) {
        check next = {.session = session, .at_rest = now.at_rest};
        ctl_session_pass(session, ROUND_MS);
        ask_all(&next);
        judge(&next);
        ctl_violations_keep(&next.violations, &now.violations);
        check_fini(&now);
        now = next;
    }
    return now;
}

/* ---- output ---- */

typedef struct sums {
    uint64_t pages, free, kept, owned, promised, slots, stored, requests, transfers;
} sums;

static sums sum_of(const ctl_ledger *ledger)
{
    sums s = {.pages = ledger->page_count,
              .free = ledger->free_count,
              .kept = ledger->kept_count,
              .promised = ledger->promised,
              .slots = ledger->slot_count,
              .stored = (uint64_t)ledger->slot_count - ledger->slots_free,
              .requests = ledger->holder_count,
              .transfers = (uint64_t)ledger->sends_open + ledger->recvs_open};
    s.owned = s.pages - s.free - s.kept;
    return s;
}

static void add_sums(sums *total, const sums *s)
{
    total->pages += s->pages;
    total->free += s->free;
    total->kept += s->kept;
    total->owned += s->owned;
    total->promised += s->promised;
    total->slots += s->slots;
    total->stored += s->stored;
    total->requests += s->requests;
    total->transfers += s->transfers;
}

static void print_sums(sl_buf *out, const char *name, const sums *s)
{
    sl_buf_printf(out, "%-20s %9llu %9llu %9llu %9llu %9llu %9llu/%-9llu %8llu %9llu\n", name,
                  (unsigned long long)s->pages, (unsigned long long)s->free,
                  (unsigned long long)s->kept, (unsigned long long)s->owned,
                  (unsigned long long)s->promised, (unsigned long long)s->stored,
                  (unsigned long long)s->slots, (unsigned long long)s->requests,
                  (unsigned long long)s->transfers);
}

static void print_holders(sl_buf *out, const ctl_ledger *ledger)
{
    for (uint32_t i = 0; i < ledger->holder_count; i++) {
        const ctl_holder *holder = &ledger->holders[i];
        sl_buf_printf(out, "  %s epoch %u, %s: %u pages, %u promised", holder->request_id,
                      holder->epoch, holder->state, holder->pages, holder->promised);
        if (holder->transfer)
            sl_buf_printf(out, ", %s blocks %u to %u", holder->receives ? "receives" : "sends",
                          holder->first_block, holder->first_block + holder->block_count);
        if (holder->deadline_ms > 0)
            sl_buf_printf(out, ", ends in %.1f s at the latest", holder->deadline_ms / 1e3);
        sl_buf_putc(out, '\n');
    }
}

static void print_table(const check *c)
{
    sl_buf out;
    sums total = {0};
    sl_buf_init(&out, 0);
    sl_buf_printf(&out, "%-20s %9s %9s %9s %9s %9s %19s %8s %9s\n", "NODE", "PAGES", "FREE", "KEPT",
                  "OWNED", "PROMISED", "STORED/SLOTS", "REQUESTS", "TRANSFERS");
    for (size_t i = 0; i < c->count; i++) {
        sums s = sum_of(&c->ledgers[i]);
        add_sums(&total, &s);
        print_sums(&out, c->ledgers[i].node, &s);
        print_holders(&out, &c->ledgers[i]);
    }
    print_sums(&out, "all", &total);
    for (uint32_t i = 0; i < c->violations.count; i++)
        sl_buf_printf(&out, "VIOLATION %s: %s\n", c->violations.items[i].name,
                      c->violations.items[i].text);
    if (c->violations.more > 0)
        sl_buf_printf(&out, "and %llu more\n", (unsigned long long)c->violations.more);
    ctl_print(&out);
}

static void write_sums(sl_buf *out, const sums *s)
{
    ctl_json_number(out, "pages", s->pages);
    ctl_json_number(out, "free", s->free);
    ctl_json_number(out, "kept", s->kept);
    ctl_json_number(out, "owned", s->owned);
    ctl_json_number(out, "promised", s->promised);
    ctl_json_number(out, "slots", s->slots);
    ctl_json_number(out, "stored", s->stored);
    ctl_json_number(out, "transfers", s->transfers);
}

static void write_holder(sl_buf *out, const ctl_holder *holder)
{
    ctl_json_open(out, NULL, '{');
    ctl_json_text(out, "request", holder->request_id);
    ctl_json_text(out, "kind", holder->sequence ? "sequence" : "job");
    ctl_json_number(out, "epoch", holder->epoch);
    ctl_json_text(out, "state", holder->state);
    ctl_json_text(out, "router", holder->router);
    ctl_json_number(out, "deadline_ms", holder->deadline_ms);
    ctl_json_number(out, "pages", holder->pages);
    ctl_json_number(out, "promised", holder->promised);
    if (holder->transfer) {
        ctl_json_text(out, "transfer", holder->receives ? "receives" : "sends");
        ctl_json_number(out, "first_block", holder->first_block);
        ctl_json_number(out, "block_count", holder->block_count);
        ctl_json_number(out, "pieces", holder->pieces);
    }
    sl_buf_putc(out, '}');
}

static void write_ledger(sl_buf *out, const ctl_ledger *ledger, sums *total)
{
    sums s = sum_of(ledger);
    add_sums(total, &s);
    ctl_json_open(out, NULL, '{');
    ctl_json_text(out, "node", ledger->node);
    ctl_json_text(out, "role", ledger->role);
    ctl_json_text(out, "state", ledger->state);
    write_sums(out, &s);
    ctl_json_open(out, "requests", '[');
    for (uint32_t i = 0; i < ledger->holder_count; i++)
        write_holder(out, &ledger->holders[i]);
    sl_buf_puts(out, "]}");
}

static void print_json(const check *c)
{
    sl_buf out;
    sums total = {0};
    sl_buf_init(&out, 0);
    ctl_json_open(&out, NULL, '{');
    ctl_json_open(&out, "nodes", '[');
    for (size_t i = 0; i < c->count; i++)
        write_ledger(&out, &c->ledgers[i], &total);
    sl_buf_putc(&out, ']');
    ctl_json_open(&out, "all", '{');
    write_sums(&out, &total);
    ctl_json_number(&out, "requests", total.requests);
    sl_buf_putc(&out, '}');
    ctl_json_number(&out, "unanswered", c->unanswered_count);
    ctl_json_open(&out, "violations", '[');
    for (uint32_t i = 0; i < c->violations.count; i++) {
        ctl_json_open(&out, NULL, '{');
        ctl_json_text(&out, "name", c->violations.items[i].name);
        ctl_json_text(&out, "text", c->violations.items[i].text);
        sl_buf_putc(&out, '}');
    }
    sl_buf_putc(&out, ']');
    ctl_json_bool(&out, "ok", c->violations.count + c->unanswered_count == 0);
    sl_buf_puts(&out, "}\n");
    ctl_print(&out);
}

static int check_ledger(ctl_session *session)
{
    check c = run(session);
    if (ctl_session_options(session)->json)
        print_json(&c);
    else
        print_table(&c);
    if (c.unanswered_count > 0)
        fprintf(stderr, "sluicectl: not all of the ledger could be read:\n%s", c.unanswered.data);
    bool fine = c.violations.count + c.unanswered_count == 0;
    check_fini(&c);
    return fine ? CTL_EXIT_OK : CTL_EXIT_FAILURE;
}

/* ---- without --ledger ---- */

/* What is wrong with the members, a line each. */
static uint32_t find_faults(ctl_session *session, const ctl_call *calls, sl_buf *out)
{
    const clu_member_info *first = NULL;
    uint32_t faults = 0;
    for (size_t i = 0; i < ctl_session_count(session); i++) {
        const clu_member_info *member = ctl_session_member(session, i);
        if (!ctl_member_is_node(member))
            continue;
        if (!calls[i].reply) {
            sl_buf_printf(out, "%s\n", calls[i].err.text);
            faults++;
        }
        first = first ? first : member;
        if (memcmp(&first->stamp, &member->stamp, sizeof(member->stamp)) != 0) {
            sl_buf_printf(out, "%s and %s exchange no pages: they have ", first->name,
                          member->name);
            clu_stamp_tell_difference(&first->stamp, &member->stamp, out);
            sl_buf_puts(out, "\n");
            faults++;
        }
    }
    return faults;
}

static int check_members(ctl_session *session)
{
    size_t count = ctl_session_count(session);
    ctl_call *calls = ctl_ask_all_statuses(session);
    sl_buf faults;
    sl_buf_init(&faults, 0);
    uint32_t fault_count = find_faults(session, calls, &faults);
    if (ctl_session_options(session)->json)
        printf("{\"members\":%zu,\"faults\":%u,\"ok\":%s}\n", count, fault_count,
               fault_count ? "false" : "true");
    else if (fault_count == 0)
        printf("all of %zu members are fine\n", count);
    if (fault_count > 0)
        fprintf(stderr, "sluicectl: %s", faults.data);
    ctl_calls_free(session, calls);
    sl_buf_fini(&faults);
    return fault_count ? CTL_EXIT_FAILURE : CTL_EXIT_OK;
}

int ctl_check(ctl_session *session, const char *const *words)
{
    return ctl_session_options(session)->ledger ? check_ledger(session) : check_members(session);
}
