/* The second cache tier: see tier.h. The table of slots (by chain, by age) and the I/O thread.
 *
 * Slots, buckets and buffers: the engine thread. The file: the I/O thread once it runs. Counters
 * are atomic. Allocates at open only. */
#include "engine/tier.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/ring.h"

#define QUEUE_MAX 64u
#define BUFFERS   (ENG_TIER_WRITES_MAX + ENG_TIER_READS_MAX)
_Static_assert(BUFFERS + 1 <= QUEUE_MAX, "nothing is ever refused");

typedef struct tier_slot {
    bool used;
    uint32_t next; /* in its bucket */
    uint32_t older, younger;
    uint64_t number; /* of the write; 0: none yet */
    eng_chain chain;
    uint32_t tokens[ENG_PAGE_TOKENS];
} tier_slot;

typedef enum tier_kind { TIER_WRITE, TIER_READ, TIER_END } tier_kind;

typedef struct tier_request {
    tier_kind kind;
    uint32_t slot;
    uint32_t buffer;
    uint64_t number;
    eng_tier_tag tag;                 /* READ */
    eng_chain chain;                  /* READ */
    uint32_t tokens[ENG_PAGE_TOKENS]; /* READ */
} tier_request;

typedef struct tier_done {
    uint32_t slot;
    uint32_t buffer;
    uint64_t number;
    eng_tier_tag tag; /* of a read */
    bool ok;
} tier_done;

struct eng_tier {
    eng_tier_file file;
    tier_slot *slots; /* [slot_count] */
    uint32_t *free_slots;
    uint32_t free_count;
    uint32_t bucket_count;
    uint32_t *buckets;
    uint32_t oldest, youngest;
    uint64_t next_number;
    uint8_t *memory; /* [BUFFERS][slot_bytes]: for writes, then for reads */
    uint32_t write_buffers[ENG_TIER_WRITES_MAX], read_buffers[ENG_TIER_READS_MAX]; /* free ones */
    uint32_t write_buffer_count, read_buffer_count;
    sl_mailbox *requests;
    sl_ring *written, *read;   /* what the I/O thread has done */
    pthread_mutex_t wake_lock; /* who set it may end while the I/O thread goes on */
    void (*wake)(void *context);
    void *wake_context;
    pthread_t thread;
    bool running;
    _Atomic uint64_t pages, hits, misses, written_bytes, read_bytes, corrupt, failed;
    uint32_t kept_at_start, dropped_at_start;
};

static void add(_Atomic uint64_t *counter, uint64_t amount)
{
    atomic_fetch_add_explicit(counter, amount, memory_order_relaxed);
}

/* ---- the table ---- */

static uint32_t *bucket_of(const eng_tier *tier, eng_chain chain)
{
    return &tier->buckets[chain.low & (tier->bucket_count - 1)];
}

static uint32_t slot_find(const eng_tier *tier, eng_chain chain,
                          const uint32_t tokens[ENG_PAGE_TOKENS])
{
    uint32_t slot = *bucket_of(tier, chain);
    for (; slot != ENG_NO_PAGE; slot = tier->slots[slot].next) {
        const tier_slot *entry = &tier->slots[slot];
        if (eng_chain_equal(entry->chain, chain) &&
            memcmp(entry->tokens, tokens, sizeof(entry->tokens)) == 0)
            return slot;
    }
    return ENG_NO_PAGE;
}

static void age_push(eng_tier *tier, uint32_t slot)
{
    tier_slot *entry = &tier->slots[slot];
    entry->older = tier->youngest;
    entry->younger = ENG_NO_PAGE;
    if (tier->youngest != ENG_NO_PAGE)
        tier->slots[tier->youngest].younger = slot;
    else
        tier->oldest = slot;
    tier->youngest = slot;
}

static void age_remove(eng_tier *tier, uint32_t slot)
{
    tier_slot *entry = &tier->slots[slot];
    if (entry->older != ENG_NO_PAGE)
        tier->slots[entry->older].younger = entry->younger;
    else
        tier->oldest = entry->younger;
    if (entry->younger != ENG_NO_PAGE)
        tier->slots[entry->younger].older = entry->older;
    else
        tier->youngest = entry->older;
}

static void slot_use(eng_tier *tier, uint32_t slot, eng_chain chain,
                     const uint32_t tokens[ENG_PAGE_TOKENS], uint64_t number)
{
    tier_slot *entry = &tier->slots[slot];
    uint32_t *bucket = bucket_of(tier, chain);
    *entry = (tier_slot){.used = true, .next = *bucket, .number = number, .chain = chain};
    memcpy(entry->tokens, tokens, sizeof(entry->tokens));
    *bucket = slot;
    age_push(tier, slot);
    add(&tier->pages, 1);
}

static void slot_free(eng_tier *tier, uint32_t slot)
{
    tier_slot *entry = &tier->slots[slot];
    uint32_t *at = bucket_of(tier, entry->chain);
    while (*at != slot) {
        sl_assert(*at != ENG_NO_PAGE);
        at = &tier->slots[*at].next;
    }
    *at = entry->next;
    age_remove(tier, slot);
    entry->used = false;
    tier->free_slots[tier->free_count++] = slot;
    atomic_fetch_sub_explicit(&tier->pages, 1, memory_order_relaxed);
}

/* A bad block goes, unless its slot was given away meanwhile. */
static void slot_drop(eng_tier *tier, uint32_t slot, uint64_t number)
{
    if (tier->slots[slot].used && tier->slots[slot].number == number)
        slot_free(tier, slot);
}

static uint8_t *buffer_at(const eng_tier *tier, uint32_t buffer)
{
    return tier->memory + buffer * tier->file.slot_bytes;
}

/* ---- the I/O thread ---- */

static void tell(eng_tier *tier)
{
    pthread_mutex_lock(&tier->wake_lock);
    if (tier->wake)
        tier->wake(tier->wake_context);
    pthread_mutex_unlock(&tier->wake_lock);
}

static void io_write(eng_tier *tier, const tier_request *request)
{
    bool ok = eng_tier_file_write(&tier->file, request->slot, buffer_at(tier, request->buffer));
    add(ok ? &tier->written_bytes : &tier->failed, ok ? tier->file.page_bytes : 1);
    tier_done done = {
        .slot = request->slot, .buffer = request->buffer, .number = request->number, .ok = ok};
    bool pushed = sl_ring_push(tier->written, &done);
    sl_assert(pushed);
    tell(tier);
}

static void io_read(eng_tier *tier, const tier_request *request)
{
    eng_tier_read result = eng_tier_file_read(&tier->file, request->slot, request->chain,
                                              request->tokens, buffer_at(tier, request->buffer));
    if (result == ENG_TIER_READ_OK) {
        add(&tier->hits, 1);
        add(&tier->read_bytes, tier->file.page_bytes);
    } else {
        add(result == ENG_TIER_READ_FAILED ? &tier->failed : &tier->corrupt, 1);
    }
    tier_done done = {.slot = request->slot,
                      .buffer = request->buffer,
                      .number = request->number,
                      .tag = request->tag,
                      .ok = result == ENG_TIER_READ_OK};
    bool pushed = sl_ring_push(tier->read, &done);
    sl_assert(pushed);
    tell(tier);
}

static void *io_main(void *argument)
{
    eng_tier *tier = argument;
    tier_request request;
    for (;;) {
        sl_mailbox_clear(tier->requests);
        while (sl_mailbox_pop(tier->requests, &request)) {
            if (request.kind == TIER_END)
                return NULL;
            if (request.kind == TIER_WRITE)
                io_write(tier, &request);
            else
                io_read(tier, &request);
        }
        sl_mailbox_wait(tier->requests, SL_NEVER);
    }
}

/* ---- open and close ---- */

typedef struct found {
    uint64_t number;
    uint32_t slot;
} found;

static int by_number(const void *a, const void *b)
{
    const found *x = a, *y = b;
    return x->number < y->number ? -1 : x->number > y->number;
}

/* What the file holds, the oldest first. A block twice (the process died between two writes): the
 * younger one counts. */
static void scan(eng_tier *tier)
{
    uint32_t slot_count = tier->file.slot_count, count = 0;
    found *order = sl_alloc(slot_count, sizeof(*order), "tier scan");
    eng_tier_record record;
    for (uint32_t slot = 0; slot < slot_count && !tier->file.begun_anew; slot++) {
        eng_tier_found what = eng_tier_file_scan(&tier->file, slot, &record);
        if (what == ENG_TIER_FOUND)
            order[count++] = (found){record.number, slot};
        tier->dropped_at_start += what == ENG_TIER_DAMAGED;
    }
    qsort(order, count, sizeof(*order), by_number);
    bool *taken = sl_alloc(slot_count, sizeof(*taken), "tier scan");
    for (uint32_t i = 0; i < count; i++) {
        uint32_t slot = order[i].slot;
        if (eng_tier_file_scan(&tier->file, slot, &record) != ENG_TIER_FOUND)
            continue;
        uint32_t twin = slot_find(tier, record.chain, record.tokens);
        if (twin != ENG_NO_PAGE) {
            slot_free(tier, twin);
            taken[twin] = false;
        }
        slot_use(tier, slot, record.chain, record.tokens, record.number);
        taken[slot] = true;
        tier->next_number = record.number + 1;
    }
    tier->free_count = 0;
    for (uint32_t slot = slot_count; slot-- > 0;)
        if (!taken[slot])
            tier->free_slots[tier->free_count++] = slot;
    tier->kept_at_start = slot_count - tier->free_count;
    sl_free(taken);
    sl_free(order);
}

static sl_status start(eng_tier *tier, sl_err *err)
{
    void *memory = NULL;
    SL_TRY(sl_alloc_pages((size_t)(BUFFERS * tier->file.slot_bytes), &memory, err));
    tier->memory = memory;
    for (uint32_t i = 0; i < ENG_TIER_WRITES_MAX; i++)
        tier->write_buffers[tier->write_buffer_count++] = i;
    for (uint32_t i = 0; i < ENG_TIER_READS_MAX; i++)
        tier->read_buffers[tier->read_buffer_count++] = ENG_TIER_WRITES_MAX + i;
    tier->written = sl_ring_create(sizeof(tier_done), QUEUE_MAX);
    tier->read = sl_ring_create(sizeof(tier_done), QUEUE_MAX);
    SL_TRY(sl_mailbox_create(sizeof(tier_request), QUEUE_MAX, &tier->requests, err));
    int error = pthread_create(&tier->thread, NULL, io_main, tier);
    if (error != 0)
        return sl_fail(err, SL_INTERNAL, "cannot start the tier's thread (error %d)", error);
    tier->running = true;
    return sl_ok();
}

sl_status eng_tier_open(const eng_tier_options *options, eng_tier **out_tier, sl_err *err)
{
    eng_tier *tier = sl_alloc(1, sizeof(*tier), "tier");
    tier->file.fd = -1;
    pthread_mutex_init(&tier->wake_lock, NULL);
    sl_status status = eng_tier_file_open(options, &tier->file, err);
    if (!sl_is_ok(status)) {
        eng_tier_close(tier);
        return status;
    }
    uint32_t slot_count = tier->file.slot_count;
    tier->bucket_count = 16;
    while (tier->bucket_count < slot_count && tier->bucket_count < 1u << 30)
        tier->bucket_count *= 2;
    tier->slots = sl_alloc(slot_count, sizeof(*tier->slots), "tier slots");
    tier->free_slots = sl_alloc(slot_count, sizeof(*tier->free_slots), "tier slots");
    tier->buckets = sl_alloc(tier->bucket_count, sizeof(*tier->buckets), "tier buckets");
    for (uint32_t i = 0; i < tier->bucket_count; i++)
        tier->buckets[i] = ENG_NO_PAGE;
    tier->oldest = tier->youngest = ENG_NO_PAGE;
    tier->next_number = 1;
    scan(tier);
    status = start(tier, err);
    if (!sl_is_ok(status)) {
        eng_tier_close(tier);
        return status;
    }
    *out_tier = tier;
    return status;
}

void eng_tier_close(eng_tier *tier)
{
    if (!tier)
        return;
    if (tier->running) {
        tier_request end = {.kind = TIER_END};
        bool pushed = sl_mailbox_push(tier->requests, &end);
        sl_assert(pushed);
        pthread_join(tier->thread, NULL);
    }
    sl_mailbox_destroy(tier->requests);
    sl_ring_destroy(tier->written);
    sl_ring_destroy(tier->read);
    if (tier->memory)
        sl_free_pages(tier->memory, (size_t)(BUFFERS * tier->file.slot_bytes));
    sl_free(tier->slots);
    sl_free(tier->free_slots);
    sl_free(tier->buckets);
    eng_tier_file_close(&tier->file);
    pthread_mutex_destroy(&tier->wake_lock);
    sl_free(tier);
}

void eng_tier_set_wake(eng_tier *tier, void (*wake)(void *context), void *context)
{
    pthread_mutex_lock(&tier->wake_lock);
    tier->wake = wake;
    tier->wake_context = context;
    pthread_mutex_unlock(&tier->wake_lock);
}

const uint64_t *eng_tier_key(const eng_tier *tier)
{
    return tier->file.key;
}

/* ---- engine thread ---- */

static void take_written(eng_tier *tier)
{
    tier_done done;
    while (sl_ring_pop(tier->written, &done)) {
        tier->write_buffers[tier->write_buffer_count++] = done.buffer;
        if (!done.ok)
            slot_drop(tier, done.slot, done.number);
    }
}

static void request(eng_tier *tier, const tier_request *item)
{
    bool pushed = sl_mailbox_push(tier->requests, item);
    sl_assert(pushed); /* buffers and reads are bounded below the queue's size */
}

bool eng_tier_touch(eng_tier *tier, eng_chain chain, const uint32_t tokens[ENG_PAGE_TOKENS])
{
    uint32_t slot = slot_find(tier, chain, tokens);
    if (slot == ENG_NO_PAGE)
        return false;
    age_remove(tier, slot);
    age_push(tier, slot);
    return true;
}

bool eng_tier_can_take(eng_tier *tier)
{
    take_written(tier);
    return tier->write_buffer_count > 0;
}

void eng_tier_put(eng_tier *tier, eng_chain chain, const uint32_t tokens[ENG_PAGE_TOKENS],
                  const uint8_t *page)
{
    sl_assert(tier->write_buffer_count > 0);
    if (eng_tier_touch(tier, chain, tokens))
        return;
    if (tier->free_count == 0)
        slot_free(tier, tier->oldest);
    uint32_t slot = tier->free_slots[--tier->free_count];
    uint32_t buffer = tier->write_buffers[--tier->write_buffer_count];
    uint64_t number = tier->next_number++;
    slot_use(tier, slot, chain, tokens, number);
    uint8_t *memory = buffer_at(tier, buffer);
    eng_tier_record *record = (eng_tier_record *)(void *)memory;
    record->number = number;
    record->chain = chain;
    memcpy(record->tokens, tokens, sizeof(record->tokens));
    memcpy(eng_tier_slot_page(memory), page, (size_t)tier->file.page_bytes);
    request(tier,
            &(tier_request){.kind = TIER_WRITE, .slot = slot, .buffer = buffer, .number = number});
}

eng_tier_answer eng_tier_get(eng_tier *tier, eng_chain chain,
                             const uint32_t tokens[ENG_PAGE_TOKENS], eng_tier_tag tag)
{
    uint32_t slot = slot_find(tier, chain, tokens);
    if (slot == ENG_NO_PAGE)
        return ENG_TIER_GONE;
    if (tier->read_buffer_count == 0)
        return ENG_TIER_BUSY;
    tier_request item = {.kind = TIER_READ,
                         .slot = slot,
                         .buffer = tier->read_buffers[--tier->read_buffer_count],
                         .number = tier->slots[slot].number,
                         .tag = tag,
                         .chain = chain};
    memcpy(item.tokens, tokens, sizeof(item.tokens));
    request(tier, &item);
    return ENG_TIER_ASKED;
}

bool eng_tier_poll(eng_tier *tier, eng_tier_arrival *out_arrival)
{
    tier_done done;
    take_written(tier);
    if (!sl_ring_pop(tier->read, &done))
        return false;
    if (!done.ok)
        slot_drop(tier, done.slot, done.number);
    *out_arrival = (eng_tier_arrival){
        .tag = done.tag,
        .page = done.ok ? eng_tier_slot_page(buffer_at(tier, done.buffer)) : NULL,
        .buffer = done.buffer,
    };
    return true;
}

void eng_tier_done(eng_tier *tier, const eng_tier_arrival *arrival)
{
    tier->read_buffers[tier->read_buffer_count++] = arrival->buffer;
}

void eng_tier_note_miss(eng_tier *tier)
{
    add(&tier->misses, 1);
}

void eng_tier_clear(eng_tier *tier)
{
    while (tier->oldest != ENG_NO_PAGE)
        slot_free(tier, tier->oldest);
}

uint32_t eng_tier_slot_count(const eng_tier *tier)
{
    return tier->file.slot_count;
}

void eng_tier_take_ledger(const eng_tier *tier, eng_ledger *ledger)
{
    for (uint32_t slot = 0; slot < tier->file.slot_count; slot++)
        ledger->slots[slot] = tier->slots[slot].used;
    ledger->slots_free = tier->free_count;
    ledger->moves = BUFFERS - tier->write_buffer_count - tier->read_buffer_count;
}

void eng_tier_stats_get(const eng_tier *tier, eng_tier_stats *out_stats)
{
    *out_stats = (eng_tier_stats){
        .pages = atomic_load_explicit(&tier->pages, memory_order_relaxed),
        .pages_max = tier->file.slot_count,
        .pages_at_start = tier->kept_at_start,
        .dropped_at_start = tier->dropped_at_start,
        .begun_anew = tier->file.begun_anew ? tier->file.why : NULL,
        .hits = atomic_load_explicit(&tier->hits, memory_order_relaxed),
        .misses = atomic_load_explicit(&tier->misses, memory_order_relaxed),
        .bytes_written = atomic_load_explicit(&tier->written_bytes, memory_order_relaxed),
        .bytes_read = atomic_load_explicit(&tier->read_bytes, memory_order_relaxed),
        .corrupt = atomic_load_explicit(&tier->corrupt, memory_order_relaxed),
        .failed = atomic_load_explicit(&tier->failed, memory_order_relaxed),
    };
}
