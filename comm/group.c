/* The group: phases, windows, checks, deadlines, over any transport.
 *
 * Owns the windows and the state of each other rank. A phase posts one message to every rank and
 * then waits for theirs; as nobody is more than one phase ahead, each rank has two slots for what
 * arrived, by the phase's parity. Thread: one at a time; stats, abort and failed: any. */
#include "comm/comm.h"

#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"
#include "comm/carrier.h"
#include "comm/group.h"
#include "comm/transport.h"

#define SPINS_MAX    64u /* fruitless looks before a wait sleeps: ranks may share cores */
#define SLEEP_MAX_MS 50u /* how late a wait may see the abort word */
#define FAILED_TEXT  256u
#define HASH_KEY_0   0x657870657274706cull /* arbitrary, fixed: part of the protocol */
#define HASH_KEY_1   0x72616e6b73746570ull

typedef struct slot {
    bool arriving, full;
    com_wire wire;
} slot;

typedef struct peer {
    bool hello_in, hello_out;
    slot slots[2];
    uint8_t *in;       /* dispatch and gather */
    uint8_t *out;      /* the same, on its way */
    uint8_t *outputs;  /* outputs of its rows, on their way */
    uint32_t expected; /* entries whose outputs come back */
    com_part part;     /* of the layer */
} peer;

struct com_group {
    char instance[COM_NAME_MAX];
    char contact[COM_CONTACT_MAX];
    uint32_t rank, count;
    uint64_t wait_ns;
    const com_backend *ops;
    com_transport *transport;
    uint64_t epoch, instance_hash, layout_hash;
    com_layout layout;
    uint64_t mask;     /* the ranks of it */
    uint64_t *holders; /* [layer_count][expert_count] ranks that have an expert, as bits */
    uint32_t *firsts;  /* [layer_count * expert_count + 1] where its slots begin in: */
    uint8_t *slot_ranks;
    uint32_t *turns;  /* [layer_count][expert_count] which slot is next */
    uint8_t *choices; /* [rows_max][chosen] of a dispatch: the rank of each entry */
    uint32_t layer;   /* of the dispatch that is under way */
    uint64_t window_bytes, return_bytes;
    void *windows; /* one mapping for all peers */
    uint64_t windows_bytes;
    uint8_t *returns;
    peer peers[COM_RANKS_MAX];
    com_header own_header;
    uint32_t phase; /* the open one, or the next */
    bool open;
    com_kind kind;        /* of the open phase */
    uint32_t sending;     /* not yet told com_group_sent */
    com_carrier *carrier; /* NULL: none */
    bool connecting;
    bool told; /* the others, that it failed */
    sl_code code;
    uint64_t lost; /* ranks that were found gone or silent */
    char text[FAILED_TEXT];
    _Atomic bool failed;              /* publishes code and text */
    _Atomic(const char *) abort_text; /* the abort word */
    _Atomic uint64_t runs, layers, rows_sent, rows_received, dispatch_bytes, combine_bytes, wait;
};

static void count(_Atomic uint64_t *counter, uint64_t more)
{
    uint64_t now = atomic_load_explicit(counter, memory_order_relaxed);
    atomic_store_explicit(counter, now + more, memory_order_relaxed);
}

static bool is_failed(const com_group *group)
{
    return atomic_load_explicit(&group->failed, memory_order_relaxed);
}

/* One of those that it is connected to, or is to be. */
static bool is_peer(const com_group *group, uint32_t rank)
{
    return rank < group->count && rank != group->rank && (group->mask >> rank & 1) != 0;
}

/* ---- sending */

static com_wire wire_of(const com_group *group, com_kind kind)
{
    return (com_wire){
        .kind = kind,
        .rank = group->rank,
        .phase = group->phase,
        .epoch = group->epoch,
        .instance = group->instance_hash,
        .layout = group->layout_hash,
        .formation = group->layout.formation,
    };
}

static void send_to(com_group *group, uint32_t rank, const com_wire *wire, const void *data)
{
    uint8_t head[COM_WIRE_SIZE];
    com_wire_pack(wire, head);
    group->sending++;
    group->ops->send(group->transport, rank, head, data, wire->bytes);
}

/* ---- failing */

static void group_fail(com_group *group, sl_code code, const char *text)
{
    if (is_failed(group))
        return;
    group->code = code;
    snprintf(group->text, sizeof(group->text), "%s", text);
    atomic_store_explicit(&group->failed, true, memory_order_release);
}

/* Once, and never in a callback of the transport's progress. */
static void group_tell(com_group *group)
{
    if (group->told || group->connecting)
        return;
    group->told = true;
    com_wire wire = wire_of(group, COM_KIND_ABORT);
    wire.wish = (uint32_t)group->code;
    for (uint32_t r = 0; r < group->count; r++)
        if (is_peer(group, r))
            send_to(group, r, &wire, NULL);
    for (uint32_t i = 0; i < SPINS_MAX; i++)
        (void)group->ops->progress(group->transport);
}

static sl_status group_status(com_group *group, sl_err *err)
{
    const char *text = atomic_load_explicit(&group->abort_text, memory_order_acquire);
    if (text)
        group_fail(group, SL_CANCELLED, text);
    if (!is_failed(group))
        return sl_ok();
    group_tell(group);
    return sl_fail(err, group->code, "instance %s: %s", group->instance, group->text);
}

void com_abort(com_group *group, const char *text)
{
    const char *none = NULL;
    (void)atomic_compare_exchange_strong(&group->abort_text, &none, text);
}

const char *com_group_failed(const com_group *group)
{
    return atomic_load_explicit(&group->failed, memory_order_acquire) ? group->text : NULL;
}

void com_group_broken(com_group *group, uint32_t rank, const char *text)
{
    char words[FAILED_TEXT];
    if (is_failed(group))
        return; /* links end for other reasons then */
    if (rank < COM_RANKS_MAX) {
        group->lost |= UINT64_C(1) << rank;
        snprintf(words, sizeof(words), "rank %u is gone: %s", rank, text);
    } else
        snprintf(words, sizeof(words), "%s", text);
    group_fail(group, SL_UNAVAILABLE, words);
}

static void peer_fault(com_group *group, uint32_t rank, const char *what)
{
    char words[FAILED_TEXT];
    snprintf(words, sizeof(words), "rank %u: %.200s", rank, what);
    group_fail(group, SL_CORRUPT, words);
}

/* ---- receiving */

bool com_group_hello(com_group *group, const com_wire *wire)
{
    char words[FAILED_TEXT];
    if (!group->connecting || !is_peer(group, wire->rank))
        return false;
    if (wire->instance != group->instance_hash || wire->epoch != group->epoch) {
        snprintf(words, sizeof(words), "rank %u knows other ranks than this one", wire->rank);
        group_fail(group, SL_CONFLICT, words);
        return false;
    }
    if (wire->layout != group->layout_hash) {
        snprintf(words, sizeof(words), "rank %u has another model, placement or number of rows",
                 wire->rank);
        group_fail(group, SL_INCOMPATIBLE, words);
        return false;
    }
    group->peers[wire->rank].hello_in = true;
    return true;
}

/* Whether the message is one that its sender may send now. */
static const char *arrive_fault(const com_group *group, const com_wire *wire, const slot *at)
{
    const peer *from = &group->peers[wire->rank];
    uint32_t ahead = wire->phase - group->phase;
    if (!from->hello_in || wire->epoch != group->epoch)
        return "a message from before its hello";
    if (wire->formation != group->layout.formation)
        return "a message of another formation";
    if (ahead > 1 || at->full || at->arriving)
        return "a message out of turn";
    if (wire->kind == COM_KIND_COMBINE && wire->bytes > (group->returns ? group->return_bytes : 0))
        return "more outputs than there are rows";
    uint64_t window = group->window_bytes / (wire->kind == COM_KIND_GATHER ? 2 : 1);
    if (wire->kind != COM_KIND_COMBINE && wire->bytes > window)
        return "a message larger than its window";
    return NULL;
}

/* Two gathers may follow each other: half a window each. */
static uint8_t *gather_window(const com_group *group, uint32_t rank, uint32_t phase)
{
    return group->peers[rank].in + (phase % 2) * (group->window_bytes / 2);
}

void *com_group_arrive(com_group *group, const com_wire *wire)
{
    if (is_failed(group) || !is_peer(group, wire->rank) || wire->kind == COM_KIND_HELLO)
        return NULL;
    if (wire->kind == COM_KIND_ABORT) {
        char words[FAILED_TEXT];
        snprintf(words, sizeof(words), "rank %u gave up (%s)", wire->rank,
                 sl_code_name((sl_code)wire->wish));
        group_fail(group, SL_UNAVAILABLE, words);
        return NULL;
    }
    peer *from = &group->peers[wire->rank];
    slot *at = &from->slots[wire->phase % 2];
    const char *fault = arrive_fault(group, wire, at);
    if (fault) {
        peer_fault(group, wire->rank, fault);
        return NULL;
    }
    at->arriving = true;
    at->wire = *wire;
    if (wire->kind == COM_KIND_COMBINE)
        return group->returns + wire->rank * group->return_bytes;
    return wire->kind == COM_KIND_GATHER ? gather_window(group, wire->rank, wire->phase) : from->in;
}

void com_group_arrived(com_group *group, const com_wire *wire)
{
    slot *at = &group->peers[wire->rank].slots[wire->phase % 2];
    if (is_failed(group) || !at->arriving)
        return;
    at->arriving = false;
    at->full = true;
}

void com_group_sent(com_group *group)
{
    sl_assert(group->sending > 0);
    group->sending--;
}

/* ---- waiting */

typedef bool (*done_fn)(com_group *group);

static void group_sleep(com_group *group, sl_time_ns now, sl_time_ns deadline)
{
    if (!group->ops->arm(group->transport))
        return;
    uint64_t left_ms = (deadline - now) / SL_MS_NS + 1;
    struct pollfd at = {.fd = group->ops->fd(group->transport), .events = POLLIN};
    (void)poll(&at, 1, (int)(left_ms < SLEEP_MAX_MS ? left_ms : SLEEP_MAX_MS));
}

/* Words, and who is lost. */
static void say_missing(com_group *group, char *out_text, size_t size)
{
    int at = snprintf(out_text, size, "no answer within %.1f s from rank",
                      (double)group->wait_ns / (double)SL_S_NS);
    for (uint32_t r = 0; r < group->count && at > 0 && (size_t)at < size; r++) {
        const peer *of = &group->peers[r];
        bool there = group->connecting ? of->hello_in : of->slots[group->phase % 2].full;
        if (!is_peer(group, r) || there)
            continue;
        group->lost |= UINT64_C(1) << r;
        at += snprintf(out_text + at, size - (size_t)at, " %u", r);
    }
}

static sl_status group_wait(com_group *group, done_fn done, sl_time_ns deadline,
                            const volatile bool *stop, sl_err *err)
{
    uint32_t spins = 0;
    while (!is_failed(group) && !done(group)) {
        SL_TRY(group_status(group, err));
        if (stop && *stop)
            return sl_fail(err, SL_CANCELLED, "told to stop");
        if (group->ops->progress(group->transport)) {
            spins = 0;
            continue;
        }
        if (++spins < SPINS_MAX)
            continue;
        sl_time_ns now = sl_now_ns();
        if (now >= deadline) {
            char words[FAILED_TEXT];
            say_missing(group, words, sizeof(words));
            group_fail(group, SL_DEADLINE, words);
            break;
        }
        group_sleep(group, now, deadline);
    }
    return group_status(group, err);
}

static bool phase_done(com_group *group)
{
    if (group->sending > 0)
        return false;
    for (uint32_t r = 0; r < group->count; r++)
        if (is_peer(group, r) && !group->peers[r].slots[group->phase % 2].full)
            return false;
    return true;
}

/* ---- phases */

static void phase_open(com_group *group, com_kind kind)
{
    sl_assert(!group->open);
    group->open = true;
    group->kind = kind;
}

static const com_wire *phase_wire(const com_group *group, uint32_t rank)
{
    return &group->peers[rank].slots[group->phase % 2].wire;
}

/* Everybody's message is there, and of this kind. */
static sl_status phase_wait(com_group *group, com_kind kind, sl_err *err)
{
    com_carrier_take_back(group->carrier);
    sl_assert(group->open && group->kind == kind);
    sl_time_ns begun = sl_now_ns();
    SL_TRY(group_wait(group, phase_done, begun + group->wait_ns, NULL, err));
    count(&group->wait, sl_now_ns() - begun);
    for (uint32_t r = 0; r < group->count; r++)
        if (is_peer(group, r) && phase_wire(group, r)->kind != kind)
            peer_fault(group, r, "it is elsewhere in the step");
    return group_status(group, err);
}

static void phase_close(com_group *group)
{
    for (uint32_t r = 0; r < group->count; r++)
        group->peers[r].slots[group->phase % 2].full = false;
    group->phase++;
    group->open = false;
}

/* ---- carried by another thread */

static bool carry_progress(void *context)
{
    const com_group *group = context;
    return group->ops->progress(group->transport);
}

static bool carry_done(void *context)
{
    com_group *group = context;
    return is_failed(group) || atomic_load_explicit(&group->abort_text, memory_order_relaxed) ||
           phase_done(group);
}

static bool carry_arm(void *context)
{
    const com_group *group = context;
    return group->ops->arm(group->transport);
}

static int carry_fd(void *context)
{
    const com_group *group = context;
    return group->ops->fd(group->transport);
}

static sl_status carrier_create(com_group *group, sl_err *err)
{
    static const com_carrier_ops OPS = {carry_progress, carry_done, carry_arm, carry_fd};
    return com_carrier_create(&OPS, group, &group->carrier, err);
}

void com_group_carry(com_group *group)
{
    sl_assert(group->open);
    com_carrier_give(group->carrier);
}

/* ---- gather */

static sl_status gather_part(com_group *group, const uint8_t *data, uint64_t at, uint64_t bytes,
                             uint64_t stride, uint8_t *out_all, sl_err *err)
{
    SL_TRY(group_status(group, err));
    com_wire wire = wire_of(group, COM_KIND_GATHER);
    wire.bytes = bytes;
    phase_open(group, COM_KIND_GATHER);
    for (uint32_t r = 0; r < group->count; r++)
        if (is_peer(group, r))
            send_to(group, r, &wire, bytes > 0 ? data + at : NULL);
    SL_TRY(phase_wait(group, COM_KIND_GATHER, err));
    for (uint32_t r = 0; r < group->count; r++) {
        if (is_peer(group, r) && phase_wire(group, r)->bytes != bytes)
            peer_fault(group, r, "it gathers another number of bytes");
        else if (bytes > 0 && (r == group->rank || is_peer(group, r)))
            memcpy(out_all + r * stride + at,
                   r == group->rank ? data + at : gather_window(group, r, group->phase), bytes);
    }
    phase_close(group);
    return group_status(group, err);
}

sl_status com_gather(com_group *group, const void *data, uint64_t bytes, void *out_all, sl_err *err)
{
    uint64_t at = 0, most = group->window_bytes / 2;
    do {
        uint64_t part = bytes - at < most ? bytes - at : most;
        SL_TRY(gather_part(group, data, at, part, bytes, out_all, err));
        at += part;
    } while (at < bytes);
    return sl_ok();
}

/* ---- runs */

sl_status com_header_post(com_group *group, const com_header *header, sl_err *err)
{
    SL_TRY(group_status(group, err));
    com_wire wire = wire_of(group, COM_KIND_HEADER);
    wire.wish = header->wish;
    wire.rows = header->rows;
    wire.rank_mask = header->rank_mask;
    wire.ready = header->ready;
    wire.reload = header->reload;
    group->own_header = *header;
    phase_open(group, COM_KIND_HEADER);
    for (uint32_t r = 0; r < group->count; r++)
        if (is_peer(group, r))
            send_to(group, r, &wire, NULL);
    count(&group->runs, 1);
    return sl_ok();
}

sl_status com_header_wait(com_group *group, com_header *out_headers, sl_err *err)
{
    SL_TRY(phase_wait(group, COM_KIND_HEADER, err));
    for (uint32_t r = 0; r < group->count; r++) {
        const com_wire *wire = phase_wire(group, r);
        out_headers[r] = (com_header){0};
        if (r == group->rank)
            out_headers[r] = group->own_header;
        if (!is_peer(group, r))
            continue;
        out_headers[r] =
            (com_header){wire->wish, wire->rows, wire->rank_mask, wire->ready, wire->reload};
        if (wire->rank_mask != group->own_header.rank_mask)
            peer_fault(group, r, "it steps with other ranks");
    }
    phase_close(group);
    return group_status(group, err);
}

sl_status com_group_look(com_group *group, sl_err *err)
{
    for (uint32_t i = 0; i < SPINS_MAX && group->ops->progress(group->transport); i++)
        ;
    return group_status(group, err);
}

bool com_header_pending(com_group *group)
{
    if (!sl_is_ok(group_status(group, NULL)))
        return true;
    sl_assert(!group->open);
    if (!sl_is_ok(com_group_look(group, NULL)))
        return true;
    for (uint32_t r = 0; r < group->count; r++)
        if (is_peer(group, r) && group->peers[r].slots[group->phase % 2].full)
            return true;
    return false;
}

int com_fd(const com_group *group)
{
    return group->ops->fd(group->transport);
}

bool com_arm(com_group *group)
{
    return group->ops->arm(group->transport);
}

/* ---- a layer */

/* Which rank computes each entry: the slots of an expert take turns. */
static void choose(com_group *group, const com_rows *rows)
{
    size_t layer = (size_t)rows->layer * group->layout.expert_count;
    for (size_t i = 0; i < (size_t)rows->row_count * group->layout.chosen; i++) {
        size_t expert = layer + rows->experts[i];
        uint32_t first = group->firsts[expert], slots = group->firsts[expert + 1] - first;
        group->choices[i] = group->slot_ranks[first + group->turns[expert]++ % slots];
    }
}

/* The experts of row `row` on `rank`, to `experts`; where their outputs will be, to places. */
static uint32_t row_list(const com_group *group, const com_rows *rows, uint32_t row, uint32_t rank,
                         uint32_t entries, uint16_t *experts, uint32_t *out_places)
{
    uint32_t chosen = group->layout.chosen, found = 0;
    uint32_t base = rank * (uint32_t)(group->return_bytes / group->layout.output_bytes);
    for (uint32_t i = 0; i < chosen; i++) {
        uint32_t expert = rows->experts[(size_t)row * chosen + i];
        if (group->choices[(size_t)row * chosen + i] != rank)
            continue;
        if (experts)
            experts[found] = (uint16_t)expert;
        out_places[(size_t)row * chosen + i] =
            rank == group->rank ? COM_LOCAL : base + entries + found;
        found++;
    }
    return found;
}

/* Sections one after another; the lists' place depends on the rows, so those are counted first. */
static com_wire pack(com_group *group, const com_rows *rows, uint32_t rank, uint32_t *out_places)
{
    const com_layout *layout = &group->layout;
    uint8_t *out = group->peers[rank].out;
    uint32_t count_rows = 0, entries = 0;
    for (uint32_t row = 0; row < rows->row_count; row++) {
        uint32_t found = row_list(group, rows, row, rank, entries, NULL, out_places);
        entries += found;
        count_rows += found > 0;
    }
    uint8_t *to_row = out, *to_scale = out + (size_t)count_rows * layout->row_bytes;
    uint16_t *to_count = (uint16_t *)(to_scale + (size_t)count_rows * layout->scale_bytes);
    uint16_t *to_expert = to_count + count_rows;
    uint32_t at = 0;
    for (uint32_t row = 0; row < rows->row_count && count_rows > 0; row++) {
        uint32_t found = row_list(group, rows, row, rank, at, to_expert, out_places);
        if (found == 0)
            continue;
        memcpy(to_row, (const uint8_t *)rows->rows + (size_t)row * layout->row_bytes,
               layout->row_bytes);
        if (layout->scale_bytes > 0)
            memcpy(to_scale, (const uint8_t *)rows->scales + (size_t)row * layout->scale_bytes,
                   layout->scale_bytes);
        *to_count++ = (uint16_t)found;
        to_row += layout->row_bytes;
        to_scale += layout->scale_bytes;
        to_expert += found;
        at += found;
    }
    com_wire wire = wire_of(group, COM_KIND_DISPATCH);
    wire.wish = rows->layer;
    wire.rows = count_rows;
    wire.entries = entries;
    wire.bytes = com_wire_dispatch_bytes(layout, count_rows, entries);
    return wire;
}

sl_status com_dispatch_post(com_group *group, const com_rows *rows, uint32_t *out_places,
                            sl_err *err)
{
    sl_assert(rows->row_count <= group->layout.rows_max && rows->layer < group->layout.layer_count);
    SL_TRY(group_status(group, err));
    phase_open(group, COM_KIND_DISPATCH);
    group->layer = rows->layer;
    choose(group, rows);
    for (uint32_t r = 0; r < group->count; r++) {
        if (r == group->rank) {
            for (uint32_t row = 0; row < rows->row_count; row++)
                (void)row_list(group, rows, row, r, 0, NULL, out_places);
            continue;
        }
        if (!is_peer(group, r))
            continue;
        com_wire wire = pack(group, rows, r, out_places);
        group->peers[r].expected = wire.entries;
        count(&group->rows_sent, wire.rows);
        count(&group->dispatch_bytes, wire.bytes);
        send_to(group, r, &wire, wire.bytes > 0 ? group->peers[r].out : NULL);
    }
    count(&group->layers, 1);
    return sl_ok();
}

sl_status com_dispatch_wait(com_group *group, com_part *out_parts, sl_err *err)
{
    SL_TRY(phase_wait(group, COM_KIND_DISPATCH, err));
    const uint64_t *holders = group->holders + (size_t)group->layer * group->layout.expert_count;
    for (uint32_t r = 0; r < group->count; r++) {
        com_part *part = &group->peers[r].part;
        sl_err words;
        *part = (com_part){0};
        if (is_peer(group, r) && phase_wire(group, r)->wish != group->layer)
            peer_fault(group, r, "it is in another layer");
        else if (is_peer(group, r) &&
                 !sl_is_ok(com_wire_part(&group->layout, holders, group->rank, phase_wire(group, r),
                                         group->peers[r].in, part, &words)))
            peer_fault(group, r, words.text);
        count(&group->rows_received, part->row_count);
        out_parts[r] = *part;
    }
    phase_close(group);
    return group_status(group, err);
}

sl_status com_combine_post(com_group *group, const void *outputs, const uint32_t *places,
                           bool faulty, sl_err *err)
{
    size_t bytes = group->layout.output_bytes;
    SL_TRY(group_status(group, err));
    phase_open(group, COM_KIND_COMBINE);
    for (uint32_t r = 0; r < group->count; r++) {
        peer *to = &group->peers[r];
        if (!is_peer(group, r))
            continue;
        com_wire wire = wire_of(group, COM_KIND_COMBINE);
        wire.wish = faulty;
        wire.entries = faulty ? 0 : to->part.entry_count;
        wire.bytes = wire.entries * bytes;
        for (uint32_t i = 0; i < wire.entries; i++)
            memcpy(to->outputs + i * bytes, (const uint8_t *)outputs + places[i] * bytes, bytes);
        places += to->part.entry_count;
        count(&group->combine_bytes, wire.bytes);
        send_to(group, r, &wire, wire.bytes > 0 ? to->outputs : NULL);
    }
    return sl_ok();
}

sl_status com_combine_wait(com_group *group, uint32_t *out_faulty, sl_err *err)
{
    uint32_t faulty = group->count;
    SL_TRY(phase_wait(group, COM_KIND_COMBINE, err));
    for (uint32_t r = 0; r < group->count; r++) {
        const com_wire *wire = phase_wire(group, r);
        if (!is_peer(group, r))
            continue;
        if (wire->wish != 0)
            faulty = faulty < r ? faulty : r;
        else if (wire->entries != group->peers[r].expected ||
                 wire->bytes != (uint64_t)wire->entries * group->layout.output_bytes)
            peer_fault(group, r, "it gives back another number of outputs");
    }
    phase_close(group);
    SL_TRY(group_status(group, err));
    *out_faulty = faulty;
    return sl_ok();
}

void com_stats_get(const com_group *group, com_stats *out_stats)
{
    *out_stats = (com_stats){
        .runs = atomic_load_explicit(&group->runs, memory_order_relaxed),
        .layers = atomic_load_explicit(&group->layers, memory_order_relaxed),
        .rows_sent = atomic_load_explicit(&group->rows_sent, memory_order_relaxed),
        .rows_received = atomic_load_explicit(&group->rows_received, memory_order_relaxed),
        .dispatch_bytes = atomic_load_explicit(&group->dispatch_bytes, memory_order_relaxed),
        .combine_bytes = atomic_load_explicit(&group->combine_bytes, memory_order_relaxed),
        .wait_ns = atomic_load_explicit(&group->wait, memory_order_relaxed),
    };
}

/* ---- open, connect, close */

static uint64_t hash(const void *data, size_t size)
{
    const uint64_t key[2] = {HASH_KEY_0, HASH_KEY_1};
    return sl_siphash(key, data, size);
}

sl_status com_group_open(const com_options *options, com_group **out_group, sl_err *err)
{
    if (options->rank_count == 0 || options->rank_count > COM_RANKS_MAX ||
        options->rank >= options->rank_count)
        return sl_fail(err, SL_INVALID, "rank %u of %u: at most %u ranks are possible",
                       options->rank, options->rank_count, COM_RANKS_MAX);
    com_group *group = sl_alloc(1, sizeof(*group), "comm group");
    snprintf(group->instance, sizeof(group->instance), "%s", options->instance);
    group->rank = options->rank;
    group->count = options->rank_count;
    group->wait_ns = options->wait_ns ? options->wait_ns : COM_WAIT_MS * SL_MS_NS;
    group->ops = options->backend;
    group->instance_hash = hash(group->instance, strlen(group->instance)) ^ options->rank_count;
    sl_status status = options->carries ? carrier_create(group, err) : sl_ok();
    if (sl_is_ok(status))
        status = group->ops->open(options, group, &group->transport, err);
    if (!sl_is_ok(status)) {
        com_carrier_destroy(group->carrier);
        sl_free(group);
        return status;
    }
    snprintf(group->contact, sizeof(group->contact), "%s#%016llx",
             group->ops->address(group->transport), (unsigned long long)sl_random_u64());
    *out_group = group;
    return sl_ok();
}

static void tables_free(com_group *group)
{
    sl_free(group->holders);
    sl_free(group->firsts);
    sl_free(group->slot_ranks);
    sl_free(group->turns);
    sl_free(group->choices);
}

static void windows_free(com_group *group)
{
    if (group->windows)
        sl_free_pages(group->windows, group->windows_bytes);
    group->windows = NULL;
}

void com_group_close(com_group *group)
{
    if (!group)
        return;
    com_carrier_destroy(group->carrier);
    group->ops->close(group->transport);
    windows_free(group);
    tables_free(group);
    sl_free(group);
}

static uint64_t aligned(uint64_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static sl_status layout_check(const com_group *group, const com_layout *layout, sl_err *err)
{
    if (layout->rows_max == 0 || layout->rows_max > COM_ROWS_MAX || layout->chosen == 0 ||
        layout->chosen > COM_CHOSEN_MAX || layout->expert_count == 0 ||
        layout->expert_count > COM_EXPERTS_MAX || layout->row_bytes % 2 != 0 ||
        layout->scale_bytes % 2 != 0 || layout->output_bytes == 0)
        return sl_fail(err, SL_INVALID, "%u rows, %u of %u experts a row: not possible",
                       layout->rows_max, layout->chosen, layout->expert_count);
    if (layout->layer_count == 0 || layout->layer_count > COM_LAYERS_MAX ||
        layout->slot_count == 0 || layout->slot_count > COM_SLOTS_MAX)
        return sl_fail(err, SL_INVALID, "%u layers of %u expert slots a rank: not possible",
                       layout->layer_count, layout->slot_count);
    uint64_t all = UINT64_MAX >> (64 - group->count);
    if ((layout->rank_mask & ~all) != 0 ||
        (layout->rank_mask != 0 && (layout->rank_mask >> group->rank & 1) == 0))
        return sl_fail(err, SL_INVALID, "ranks %llx of %u, without this one",
                       (unsigned long long)layout->rank_mask, group->count);
    return sl_ok();
}

static sl_status slots_check(const com_group *group, const com_layout *layout, sl_err *err)
{
    size_t slots = (size_t)group->count * layout->slot_count;
    for (uint32_t layer = 0; layer < layout->layer_count; layer++) {
        bool there[COM_EXPERTS_MAX] = {false};
        for (size_t i = 0; i < slots; i++) {
            uint32_t expert = layout->slots[layer * slots + i];
            uint32_t rank = (uint32_t)(i / layout->slot_count);
            if (expert == COM_NO_EXPERT)
                continue;
            if (expert >= layout->expert_count || (group->mask >> rank & 1) == 0)
                return sl_fail(err, SL_INVALID, "layer %u: expert %u of %u is placed on rank %u",
                               layer, expert, layout->expert_count, rank);
            there[expert] = true;
        }
        for (uint32_t e = 0; e < layout->expert_count; e++)
            if (!there[e])
                return sl_fail(err, SL_INVALID, "layer %u: expert %u is placed nowhere", layer, e);
    }
    return sl_ok();
}

/* Lists of each expert's slots, from slots that were checked. */
static void tables_create(com_group *group)
{
    const com_layout *layout = &group->layout;
    size_t experts = layout->expert_count, all = layout->layer_count * experts;
    size_t slots = (size_t)group->count * layout->slot_count;
    tables_free(group);
    group->holders = sl_alloc(all, sizeof(uint64_t), "comm holders");
    group->firsts = sl_alloc(all + 1, sizeof(uint32_t), "comm slots");
    group->slot_ranks = sl_alloc(layout->layer_count * slots, 1, "comm slots");
    group->turns = sl_alloc(all, sizeof(uint32_t), "comm turns");
    group->choices = sl_alloc((size_t)layout->rows_max * layout->chosen, 1, "comm choices");
    uint32_t at = 0;
    for (size_t i = 0; i < all; i++) {
        const uint16_t *of = layout->slots + i / experts * slots;
        group->firsts[i] = at;
        for (size_t j = 0; j < slots; j++) {
            if (of[j] != i % experts)
                continue;
            uint8_t rank = (uint8_t)(j / layout->slot_count);
            group->slot_ranks[at++] = rank;
            group->holders[i] |= UINT64_C(1) << rank;
        }
        group->turns[i] = group->rank; /* so that ranks do not begin with the same one */
    }
    group->firsts[all] = at;
}

/* The layout's own numbers, as they are on all ranks. */
static sl_status set_layout(com_group *group, const com_layout *layout, sl_err *err)
{
    SL_TRY(layout_check(group, layout, err));
    group->mask = layout->rank_mask ? layout->rank_mask : UINT64_MAX >> (64 - group->count);
    SL_TRY(slots_check(group, layout, err));
    group->layout = *layout;
    tables_create(group);
    group->layout.slots = NULL; /* the caller's */
    size_t slots = (size_t)layout->layer_count * group->count * layout->slot_count;
    const uint64_t numbers[] = {
        layout->rows_max,     layout->chosen,
        layout->expert_count, layout->row_bytes,
        layout->scale_bytes,  layout->output_bytes,
        layout->layer_count,  layout->slot_count,
        group->mask,          hash(layout->slots, slots * sizeof(uint16_t)),
    };
    group->layout_hash = hash(numbers, sizeof(numbers));
    uint32_t entries = layout->rows_max * layout->chosen;
    group->window_bytes = aligned(com_wire_dispatch_bytes(layout, layout->rows_max, entries));
    group->return_bytes = (uint64_t)entries * layout->output_bytes;
    return sl_ok();
}

static sl_status windows_create(com_group *group, sl_err *err)
{
    uint64_t outputs = aligned(group->return_bytes);
    uint64_t each = 2 * group->window_bytes + outputs;
    windows_free(group);
    group->windows_bytes = each * group->count;
    SL_TRY(sl_alloc_pages(group->windows_bytes, &group->windows, err));
    for (uint32_t r = 0; r < group->count; r++) {
        uint8_t *at = (uint8_t *)group->windows + r * each;
        group->peers[r] = (peer){
            .in = at,
            .out = at + group->window_bytes,
            .outputs = at + 2 * group->window_bytes,
        };
    }
    return sl_ok();
}

static void hello(com_group *group, uint32_t rank)
{
    com_wire wire = wire_of(group, COM_KIND_HELLO);
    group->peers[rank].hello_out = true;
    send_to(group, rank, &wire, NULL);
}

static bool connected(com_group *group)
{
    bool all = group->sending == 0;
    for (uint32_t r = 0; r < group->count; r++) {
        peer *of = &group->peers[r];
        if (!is_peer(group, r))
            continue;
        if (r > group->rank && of->hello_in && !of->hello_out)
            hello(group, r);
        all = all && of->hello_in && of->hello_out && group->sending == 0;
    }
    return all;
}

static sl_status set_epoch(com_group *group, const char *const *contacts, sl_err *err)
{
    group->epoch = group->layout.formation;
    for (uint32_t r = 0; r < group->count; r++) {
        if ((group->mask >> r & 1) == 0)
            continue;
        size_t size = strlen(contacts[r]);
        if (size >= COM_CONTACT_MAX || !strrchr(contacts[r], '#'))
            return sl_fail(err, SL_INVALID, "rank %u: \"%.64s\" is no contact", r, contacts[r]);
        uint64_t all[3] = {group->epoch, r, hash(contacts[r], size)};
        group->epoch = hash(all, sizeof(all));
    }
    if (strcmp(contacts[group->rank], group->contact) != 0)
        return sl_fail(err, SL_CONFLICT, "rank %u is also at %s", group->rank,
                       contacts[group->rank]);
    return sl_ok();
}

static sl_status connect_all(com_group *group, const char *const *contacts, sl_time_ns deadline,
                             const volatile bool *stop, sl_err *err)
{
    for (uint32_t r = 0; r < group->rank; r++) {
        if (!is_peer(group, r))
            continue;
        char address[COM_CONTACT_MAX];
        snprintf(address, sizeof(address), "%s", contacts[r]);
        *strrchr(address, '#') = '\0';
        SL_TRY(group->ops->connect(group->transport, r, address, err));
        hello(group, r);
    }
    SL_TRY(group_wait(group, connected, deadline, stop, err));
    /* Everybody knows that everybody is there: a start that failed elsewhere fails here too. */
    return gather_part(group, NULL, 0, 0, 0, NULL, err);
}

sl_status com_group_connect(com_group *group, const char *const *contacts, const com_layout *layout,
                            sl_time_ns deadline, const volatile bool *stop, sl_err *err)
{
    sl_assert(!group->open && !group->connecting);
    SL_TRY(set_layout(group, layout, err));
    SL_TRY(set_epoch(group, contacts, err));
    SL_TRY(windows_create(group, err));
    group->phase = 0;
    group->lost = 0;
    group->connecting = true;
    sl_status status = connect_all(group, contacts, deadline, stop, err);
    group->connecting = false;
    if (sl_is_ok(status))
        return status;
    group->ops->reset(group->transport);
    group->sending = 0;
    group->open = false;
    atomic_store_explicit(&group->failed, false, memory_order_relaxed); /* it may be tried again */
    return status;
}

const char *com_group_contact(const com_group *group)
{
    return group->contact;
}

uint32_t com_group_rank(const com_group *group)
{
    return group->rank;
}

uint32_t com_group_size(const com_group *group)
{
    return group->count;
}

uint64_t com_group_lost(const com_group *group)
{
    return group->lost;
}

uint64_t com_group_mask(const com_group *group)
{
    return group->mask;
}

void com_group_view_get(const com_group *group, com_group_view *out_view)
{
    *out_view = (com_group_view){
        .layout = &group->layout,
        .epoch = group->epoch,
        .mask = group->mask,
        .wait_ns = group->wait_ns,
        .instance = group->instance,
        .firsts = group->firsts,
        .slot_ranks = group->slot_ranks,
        .turns = group->turns,
    };
}

uint64_t com_group_return_bytes(const com_group *group)
{
    return group->return_bytes;
}

void com_group_set_returns(com_group *group, void *memory)
{
    group->returns = memory;
}
