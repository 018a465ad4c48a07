/* In the place of engine/tier.c: a disk that answers when the world lets it, late, or not well.
 *
 * What it holds outlives the process, as a file does. The engine sees the same answers as of the
 * real tier: blocks that are there, reads that end in the order they were asked for, none in time
 * when the disk is slow. Bounds are the real one's. */
#include "tests/sim/disk.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "engine/tier.h"

#define SLOTS_MAX 24u

typedef struct slot {
    bool used;
    uint64_t number; /* of the last use */
    eng_chain chain;
    uint32_t tokens[ENG_PAGE_TOKENS];
    uint8_t *page;
} slot;

static struct { /* the files */
    bool begun;
    uint64_t key[ENG_CHAIN_KEY_WORDS];
    slot slots[SLOTS_MAX];
} disks[SIM_PROCESSES_MAX];

typedef struct read {
    eng_tier_tag tag;
    uint8_t *page; /* NULL: it could not be read */
    sl_time_ns at;
} read;

struct eng_tier {
    sim_process *process;
    slot *slots;
    uint64_t page_bytes, next_number;
    read reads[ENG_TIER_READS_MAX]; /* in the order they were asked for */
    uint32_t read_count;
    sl_time_ns busy_until;                  /* the disk does one thing after another */
    sl_time_ns writes[ENG_TIER_WRITES_MAX]; /* ends of those under way */
    void (*wake)(void *context);
    void *wake_context;
    eng_tier_stats stats;
};

static eng_tier *tiers[SIM_PROCESSES_MAX];
sim_disk_speed sim_disk;

void sim_disk_init(void)
{
    sim_disk = (sim_disk_speed){.min_ns = 50000, .max_ns = 2 * SL_MS_NS};
}

void sim_disk_fini(void)
{
    for (uint32_t i = 0; i < SIM_PROCESSES_MAX; i++)
        for (uint32_t k = 0; k < SLOTS_MAX; k++)
            sl_free(disks[i].slots[k].page);
    memset(disks, 0, sizeof(disks));
}

/* ---- life */

sl_status eng_tier_open(const eng_tier_options *options, eng_tier **out_tier, sl_err *err)
{
    uint32_t index = sim.current->index;
    eng_tier *tier = sl_alloc(1, sizeof(*tier), "sim tier");
    tier->process = sim.current;
    tier->slots = disks[index].slots;
    tier->page_bytes = options->page_bytes;
    tier->stats.pages_max = SLOTS_MAX;
    for (uint32_t i = 0; i < ENG_CHAIN_KEY_WORDS && !disks[index].begun; i++)
        disks[index].key[i] = sim_draw(UINT64_MAX);
    disks[index].begun = true;
    for (uint32_t i = 0; i < SLOTS_MAX; i++)
        if (tier->slots[i].used && tier->slots[i].number >= tier->next_number)
            tier->next_number = tier->slots[i].number + 1;
    tiers[index] = tier;
    *out_tier = tier;
    return sl_ok();
}

void eng_tier_close(eng_tier *tier)
{
    if (!tier)
        return;
    for (uint32_t i = 0; i < tier->read_count; i++)
        sl_free(tier->reads[i].page);
    tiers[tier->process->index] = NULL;
    sl_free(tier);
}

void eng_tier_set_wake(eng_tier *tier, void (*wake)(void *context), void *context)
{
    tier->wake = wake;
    tier->wake_context = context;
}

const uint64_t *eng_tier_key(const eng_tier *tier)
{
    return disks[tier->process->index].key;
}

/* ---- time */

static void on_done(void *context, uint64_t life)
{
    const sim_process *process = context;
    const eng_tier *tier = tiers[process->index];
    if (tier && process->life == life && tier->wake)
        tier->wake(tier->wake_context);
}

/* When the next thing that it is asked for is done. */
static sl_time_ns done_at(eng_tier *tier)
{
    sl_time_ns now = sim.now + sim.skew;
    tier->busy_until = (tier->busy_until > now ? tier->busy_until : now) +
                       sim_between(sim_disk.min_ns, sim_disk.max_ns);
    sim_post(tier->busy_until, on_done, tier->process, tier->process->life);
    return tier->busy_until;
}

void sim_disk_heal(void)
{
    uint64_t reads = sim_disk.reads;
    sim_disk_init();
    sim_disk.reads = reads;
    for (uint32_t i = 0; i < SIM_PROCESSES_MAX; i++) {
        eng_tier *tier = tiers[i];
        if (!tier)
            continue;
        tier->busy_until = sim.now;
        for (uint32_t k = 0; k < tier->read_count; k++)
            if (tier->reads[k].at > sim.now)
                tier->reads[k].at = sim.now;
        for (uint32_t k = 0; k < ENG_TIER_WRITES_MAX; k++)
            if (tier->writes[k] > sim.now)
                tier->writes[k] = sim.now;
        sim_post(sim.now, on_done, tier->process, tier->process->life);
    }
}

/* ---- blocks */

static slot *find(const eng_tier *tier, eng_chain chain, const uint32_t tokens[ENG_PAGE_TOKENS])
{
    for (uint32_t i = 0; i < SLOTS_MAX; i++) {
        slot *at = &tier->slots[i];
        if (at->used && eng_chain_equal(at->chain, chain) &&
            memcmp(at->tokens, tokens, sizeof(at->tokens)) == 0)
            return at;
    }
    return NULL;
}

static sl_time_ns *free_write(eng_tier *tier)
{
    for (uint32_t i = 0; i < ENG_TIER_WRITES_MAX; i++)
        if (tier->writes[i] <= sim.now + sim.skew)
            return &tier->writes[i];
    return NULL;
}

bool eng_tier_can_take(eng_tier *tier)
{
    return free_write(tier) != NULL;
}

void eng_tier_put(eng_tier *tier, eng_chain chain, const uint32_t tokens[ENG_PAGE_TOKENS],
                  const uint8_t *page)
{
    if (find(tier, chain, tokens))
        return;
    slot *to = &tier->slots[0];
    for (uint32_t i = 1; i < SLOTS_MAX && to->used; i++)
        if (!tier->slots[i].used || tier->slots[i].number < to->number)
            to = &tier->slots[i];
    sl_time_ns *write = free_write(tier);
    sl_assert(write);
    *write = done_at(tier);
    if (sim_chance(sim_disk.fail_ppm))
        return; /* the disk is full */
    if (!to->page)
        to->page = sl_alloc(1, tier->page_bytes, "sim disk");
    to->used = true;
    to->number = tier->next_number++;
    to->chain = chain;
    memcpy(to->tokens, tokens, sizeof(to->tokens));
    memcpy(to->page, page, tier->page_bytes);
}

bool eng_tier_touch(eng_tier *tier, eng_chain chain, const uint32_t tokens[ENG_PAGE_TOKENS])
{
    slot *at = find(tier, chain, tokens);
    if (at)
        at->number = tier->next_number++;
    return at != NULL;
}

eng_tier_answer eng_tier_get(eng_tier *tier, eng_chain chain,
                             const uint32_t tokens[ENG_PAGE_TOKENS], eng_tier_tag tag)
{
    const slot *at = find(tier, chain, tokens);
    if (!at)
        return ENG_TIER_GONE;
    if (tier->read_count == ENG_TIER_READS_MAX)
        return ENG_TIER_BUSY;
    read *asked = &tier->reads[tier->read_count++];
    *asked = (read){.tag = tag, .at = done_at(tier)};
    if (sim_chance(sim_disk.fail_ppm))
        return ENG_TIER_ASKED;
    asked->page = sl_alloc(1, tier->page_bytes, "sim disk read");
    memcpy(asked->page, at->page, tier->page_bytes);
    return ENG_TIER_ASKED;
}

bool eng_tier_poll(eng_tier *tier, eng_tier_arrival *out_arrival)
{
    if (tier->read_count == 0 || tier->reads[0].at > sim.now + sim.skew)
        return false;
    *out_arrival = (eng_tier_arrival){.tag = tier->reads[0].tag, .page = tier->reads[0].page};
    return true;
}

void eng_tier_done(eng_tier *tier, const eng_tier_arrival *arrival)
{
    sl_assert(tier->read_count > 0 && tier->reads[0].page == arrival->page);
    tier->stats.hits += arrival->page != NULL;
    sim_disk.reads += arrival->page != NULL;
    sl_free(tier->reads[0].page);
    memmove(&tier->reads[0], &tier->reads[1], --tier->read_count * sizeof(tier->reads[0]));
}

void eng_tier_note_miss(eng_tier *tier)
{
    tier->stats.misses++;
}

void eng_tier_clear(eng_tier *tier)
{
    for (uint32_t i = 0; i < SLOTS_MAX; i++)
        tier->slots[i].used = false;
}

uint32_t eng_tier_slot_count(const eng_tier *tier)
{
    return SLOTS_MAX;
}

void eng_tier_take_ledger(const eng_tier *tier, eng_ledger *ledger)
{
    ledger->slots_free = 0;
    for (uint32_t i = 0; i < SLOTS_MAX; i++) {
        ledger->slots[i] = tier->slots[i].used;
        ledger->slots_free += !tier->slots[i].used;
    }
    ledger->moves = tier->read_count;
    for (uint32_t i = 0; i < ENG_TIER_WRITES_MAX; i++)
        ledger->moves += tier->writes[i] > sim.now + sim.skew;
}

void eng_tier_stats_get(const eng_tier *tier, eng_tier_stats *out_stats)
{
    *out_stats = tier->stats;
}
