/* The ledger as sluicectl judges it: what holds is not told, each thing that does not hold is. */
#include "tests/unit/test.h"

#include "cli/ledger.h"

static sl_err err;

typedef struct kit {
    ctl_ledger ledger;
    ctl_violations found;
} kit;

static void add_totals(ctl_ledger *ledger, const char *node, uint32_t pages, uint32_t free_count,
                       uint32_t kept)
{
    Sluice__V1__LedgerTotals totals = SLUICE__V1__LEDGER_TOTALS__INIT;
    totals.node = (char *)node;
    totals.role = (char *)"decode";
    totals.pages = pages;
    totals.pages_free = free_count;
    totals.pages_kept = kept;
    totals.slots = 4;
    totals.slots_free = 3;
    Sluice__V1__LedgerPart part = SLUICE__V1__LEDGER_PART__INIT;
    part.totals = &totals;
    assert_ok(ctl_ledger_add(ledger, &part, &err), &err);
}

static sl_status add_run(ctl_ledger *ledger, Sluice__V1__LedgerTier tier, uint32_t first,
                         uint32_t count, Sluice__V1__LedgerState state, uint32_t shares)
{
    Sluice__V1__LedgerRun run = SLUICE__V1__LEDGER_RUN__INIT, *pointer = &run;
    run.tier = tier;
    run.first = first;
    run.count = count;
    run.state = state;
    run.shares = shares;
    Sluice__V1__LedgerPart part = SLUICE__V1__LEDGER_PART__INIT;
    part.n_runs = 1;
    part.runs = &pointer;
    return ctl_ledger_add(ledger, &part, &err);
}

#define MEMORY  SLUICE__V1__LEDGER_TIER__LEDGER_TIER_MEMORY
#define FILED   SLUICE__V1__LEDGER_TIER__LEDGER_TIER_FILE
#define S(name) SLUICE__V1__LEDGER_STATE__LEDGER_STATE_##name

static sl_status add_binding(ctl_ledger *ledger, uint32_t holder, uint32_t page, uint32_t count)
{
    Sluice__V1__LedgerBinding binding = SLUICE__V1__LEDGER_BINDING__INIT, *pointer = &binding;
    binding.holder = holder;
    binding.page = page;
    binding.count = count;
    Sluice__V1__LedgerPart part = SLUICE__V1__LEDGER_PART__INIT;
    part.n_bindings = 1;
    part.bindings = &pointer;
    return ctl_ledger_add(ledger, &part, &err);
}

typedef struct holder_options {
    uint32_t id;
    const char *request;
    const char *router;
    bool job;
    bool transfer;
    const char *peer; /* of a sender */
    uint32_t blocks, pieces;
} holder_options;

static sl_status add_holder(ctl_ledger *ledger, const holder_options *o)
{
    Sluice__V1__LedgerTransfer transfer = SLUICE__V1__LEDGER_TRANSFER__INIT;
    Sluice__V1__LedgerHolder holder = SLUICE__V1__LEDGER_HOLDER__INIT, *pointer = &holder;
    holder.id = o->id;
    holder.kind = (char *)(o->job ? "job" : "sequence");
    holder.request_id = (char *)o->request;
    holder.epoch = 1;
    holder.state = (char *)"running";
    holder.router = (char *)(o->router ? o->router : "");
    transfer.nonce_high = 7;
    transfer.receives = !o->job;
    transfer.peer = (char *)(o->peer ? o->peer : "");
    transfer.block_count = o->blocks;
    transfer.pieces = o->pieces;
    if (o->transfer)
        holder.transfer = &transfer;
    Sluice__V1__LedgerPart part = SLUICE__V1__LEDGER_PART__INIT;
    part.n_holders = 1;
    part.holders = &pointer;
    return ctl_ledger_add(ledger, &part, &err);
}

#define add_ok(call) assert_ok(call, &err)

/* 10 pages: 2 private of holder 1, 2 sealed of 1 and 2, 1 kept, 5 free. */
static void fill(kit *k)
{
    memset(k, 0, sizeof(*k));
    add_totals(&k->ledger, "d", 10, 5, 1);
    add_ok(add_holder(&k->ledger, &(holder_options){.id = 1, .request = "a", .router = "r"}));
    add_ok(add_holder(&k->ledger, &(holder_options){.id = 2, .request = "b", .router = "r"}));
    add_ok(add_run(&k->ledger, MEMORY, 0, 2, S(PRIVATE), 1));
    add_ok(add_run(&k->ledger, MEMORY, 2, 2, S(SEALED), 2));
    add_ok(add_run(&k->ledger, MEMORY, 4, 1, S(KEPT), 0));
    add_ok(add_run(&k->ledger, MEMORY, 5, 5, S(FREE), 0));
    add_ok(add_run(&k->ledger, FILED, 0, 1, S(STORED), 0));
    add_ok(add_run(&k->ledger, FILED, 1, 3, S(FREE), 0));
    add_ok(add_binding(&k->ledger, 1, 0, 4));
    add_ok(add_binding(&k->ledger, 2, 2, 2));
}

static void done(kit *k)
{
    ctl_ledger_fini(&k->ledger);
    ctl_violations_fini(&k->found);
}

static bool has(const ctl_violations *list, const char *name, const char *text)
{
    for (uint32_t i = 0; i < list->count; i++)
        if (strcmp(list->items[i].name, name) == 0 && strstr(list->items[i].text, text))
            return true;
    return false;
}

/* The kit's ledger has exactly this violation. */
static void only(kit *k, const char *name, const char *text)
{
    ctl_ledger_check(&k->ledger, false, &k->found);
    assert_true(has(&k->found, name, text));
    assert_int_equal(k->found.count, 1);
    done(k);
}

TEST(what_holds_is_not_told)
{
    kit k;
    fill(&k);
    assert_int_equal(k.ledger.holders[0].pages, 4);
    ctl_ledger_check(&k.ledger, false, &k.found);
    assert_int_equal(k.found.count, 0);
    done(&k);
}

TEST(rest_owns_nothing)
{
    kit k;
    fill(&k);
    ctl_ledger_check(&k.ledger, true, &k.found);
    assert_true(has(&k.found, "not-at-rest", "request a epoch 1 is running and has 4 pages"));
    assert_true(has(&k.found, "not-at-rest", "4 pages are owned"));
    assert_int_equal(k.found.count, 3);
    done(&k);
}

TEST(each_page_has_its_owners)
{
    kit k;
    fill(&k);
    add_ok(add_binding(&k.ledger, 2, 0, 1));
    k.ledger.pages[0].shares = 2;
    only(&k, "private-page-owners", "page 0 is written to, and has 2 owners");
    fill(&k);
    add_ok(add_binding(&k.ledger, 2, 4, 1));
    k.ledger.pages[4].shares = 1;
    only(&k, "free-page-bound", "page 4");
    fill(&k);
    k.ledger.pages[2].shares = 3;
    only(&k, "page-shares", "page 2 is counted 3 times, and bound 2 times");
    fill(&k);
    k.ledger.pages[3].bound = k.ledger.pages[3].shares = 0;
    only(&k, "page-without-owner", "page 3");
    fill(&k);
    add_ok(add_binding(&k.ledger, 9, 2, 1));
    k.ledger.pages[2].shares = 3;
    only(&k, "page-without-owner", "1 pages are bound for no known request");
}

TEST(sums_are_the_capacity)
{
    kit k;
    fill(&k);
    k.ledger.free_count = 4;
    only(&k, "sum-differs", "5 free pages by the list, 4");
    fill(&k);
    k.ledger.kept_count = 2;
    only(&k, "sum-differs", "1 kept pages");
    fill(&k);
    k.ledger.promised = 3;
    only(&k, "sum-differs", "0 promised pages by the list, 3");
    fill(&k);
    k.ledger.transit = 2;
    only(&k, "sum-differs", "0 transit pages in use by the list, 2");
    fill(&k);
    k.ledger.slots_free = 4;
    only(&k, "sum-differs", "3 free pages of the second tier by the list, 4");
    fill(&k);
    k.ledger.slots[0] = 0;
    only(&k, "page-untold", "1 of 4 pages of the second tier");
    fill(&k);
    k.ledger.pages[4].told = false;
    k.ledger.kept_count = 0;
    only(&k, "page-untold", "1 of 10 pages");
}

TEST(transfers_have_owners)
{
    kit k;
    fill(&k);
    k.ledger.recvs_open = 1;
    only(&k, "transfer-without-owner", "a transfer is open");
    fill(&k);
    add_ok(add_holder(&k.ledger, &(holder_options){.id = 3, .request = "a"}));
    only(&k, "request-twice", "request a epoch 1 is there twice");
}

TEST(what_is_no_ledger_is_refused)
{
    kit k = {0};
    assert_code(add_binding(&k.ledger, 1, 0, 1), SL_INVALID);
    assert_text_contains(err.text, "does not begin with its totals");
    fill(&k);
    assert_code(add_run(&k.ledger, MEMORY, 3, 1, S(FREE), 0), SL_INVALID);
    assert_text_contains(err.text, "page 3 is told twice");
    assert_code(add_run(&k.ledger, MEMORY, 9, 2, S(FREE), 0), SL_INVALID);
    assert_code(add_run(&k.ledger, MEMORY, 1, UINT32_MAX, S(FREE), 0), SL_INVALID);
    assert_code(add_run(&k.ledger, FILED, 4, 1, S(FREE), 0), SL_INVALID);
    assert_code(add_run(&k.ledger, FILED, 0, 1, S(FREE), 0), SL_INVALID);
    assert_code(add_binding(&k.ledger, 1, 10, 1), SL_INVALID);
    assert_code(add_binding(&k.ledger, 1, 0, 0), SL_INVALID);
    assert_code(add_holder(&k.ledger, &(holder_options){.id = 1, .request = "c"}), SL_INVALID);
    assert_code(add_holder(&k.ledger, &(holder_options){.id = 0, .request = "c"}), SL_INVALID);
    done(&k);
    Sluice__V1__LedgerTotals totals = SLUICE__V1__LEDGER_TOTALS__INIT;
    totals.pages = CTL_PAGES_MAX + 1;
    Sluice__V1__LedgerPart part = SLUICE__V1__LEDGER_PART__INIT;
    part.totals = &totals;
    assert_code(ctl_ledger_add(&k.ledger, &part, &err), SL_TOO_LARGE);
    done(&k);
}

/* ---- across nodes ---- */

/* P sends a transfer to D, which receives it. */
typedef struct pair {
    ctl_ledger nodes[2]; /* d, p */
    ctl_violations found;
} pair;

static void open_pair(pair *p, uint32_t published, uint32_t fetched)
{
    memset(p, 0, sizeof(*p));
    add_totals(&p->nodes[0], "d", 0, 0, 0);
    add_totals(&p->nodes[1], "p", 0, 0, 0);
    add_ok(add_holder(&p->nodes[0], &(holder_options){.id = 1,
                                                      .request = "a",
                                                      .router = "r",
                                                      .transfer = true,
                                                      .blocks = 4,
                                                      .pieces = fetched}));
    add_ok(add_holder(&p->nodes[1], &(holder_options){.id = 1,
                                                      .request = "a",
                                                      .job = true,
                                                      .transfer = true,
                                                      .peer = "d",
                                                      .blocks = 4,
                                                      .pieces = published}));
}

static void judge_pair(pair *p, const char *name, const char *text)
{
    static const char *const ROUTERS[] = {"q", "r"};
    ctl_cluster_check(p->nodes, 2, ROUTERS, 2, &p->found);
    if (name) {
        assert_true(has(&p->found, name, text));
        assert_true(p->found.items[0].moving);
    }
    assert_int_equal(p->found.count, name ? 1 : 0);
    ctl_ledger_fini(&p->nodes[0]);
    ctl_ledger_fini(&p->nodes[1]);
    ctl_violations_fini(&p->found);
}

TEST(two_ends_agree)
{
    pair p;
    open_pair(&p, 5, 5);
    judge_pair(&p, NULL, NULL);
    open_pair(&p, 5, 6);
    judge_pair(&p, "fetched-unpublished", "d has pieces that p did not publish");
    open_pair(&p, 5, 5);
    p.nodes[1].holders[0].block_count = 3;
    judge_pair(&p, "transfer-differs", "p sends blocks 0 to 3, d takes 0 to 4");
    open_pair(&p, 5, 5);
    p.nodes[0].holders[0].nonce_low = 1;
    judge_pair(&p, "transfer-half-open", "p sends, and d knows nothing of it");
    open_pair(&p, 5, 5);
    snprintf(p.nodes[1].holders[0].peer, CTL_TEXT_MAX, "gone");
    judge_pair(&p, NULL, NULL);
}

TEST(requests_have_one_place_and_a_router)
{
    pair p;
    open_pair(&p, 5, 5);
    p.nodes[1].holders[0].sequence = true;
    p.nodes[1].holders[0].transfer = false;
    snprintf(p.nodes[1].holders[0].router, CTL_TEXT_MAX, "r");
    judge_pair(&p, "request-twice", "request a is on d and on p");
    open_pair(&p, 5, 5);
    snprintf(p.nodes[0].holders[0].router, CTL_TEXT_MAX, "s");
    judge_pair(&p, "router-unknown", "router s");
    open_pair(&p, 5, 5);
    p.nodes[1].holders[0].receives = true;
    judge_pair(&p, "transfer-claimed-twice", "d and p both receive it");
}

TEST(what_moves_must_stay)
{
    kit first, second;
    fill(&first);
    fill(&second);
    first.ledger.recvs_open = second.ledger.recvs_open = second.ledger.sends_open = 1;
    second.ledger.kept_count = 3;
    ctl_ledger_check(&first.ledger, false, &first.found);
    ctl_ledger_check(&second.ledger, false, &second.found);
    assert_int_equal(second.found.count, 2);
    ctl_violations none = {0};
    ctl_violations_keep(&second.found, &first.found);
    assert_int_equal(second.found.count, 2);
    ctl_violations_keep(&second.found, &none);
    assert_int_equal(second.found.count, 1);
    assert_string_equal(second.found.items[0].name, "sum-differs");
    done(&first);
    done(&second);
}

TEST(the_list_is_bounded)
{
    kit k = {0};
    add_totals(&k.ledger, "d", 3000, 0, 3000);
    add_ok(add_run(&k.ledger, MEMORY, 0, 3000, S(KEPT), 1));
    add_ok(add_run(&k.ledger, FILED, 0, 1, S(STORED), 0));
    add_ok(add_run(&k.ledger, FILED, 1, 3, S(FREE), 0));
    ctl_ledger_check(&k.ledger, false, &k.found);
    assert_int_equal(k.found.count, CTL_VIOLATIONS_MAX);
    assert_int_equal(k.found.more, 2000);
    done(&k);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(what_holds_is_not_told),
    cmocka_unit_test(rest_owns_nothing),
    cmocka_unit_test(each_page_has_its_owners),
    cmocka_unit_test(sums_are_the_capacity),
    cmocka_unit_test(transfers_have_owners),
    cmocka_unit_test(what_is_no_ledger_is_refused),
    cmocka_unit_test(two_ends_agree),
    cmocka_unit_test(requests_have_one_place_and_a_router),
    cmocka_unit_test(what_moves_must_stay),
    cmocka_unit_test(the_list_is_bounded),
};
TEST_MAIN(tests)
