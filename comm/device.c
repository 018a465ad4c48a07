/* Layers with rows in device memory: windows, counts, moves, deadlines, over a device backend.
 *
 * Owns the communicator and all device memory of it. Never waits without looking at the deadline,
 * the group and the communicator. Thread: the group's; stats: any. */
#include "comm/device.h"

#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "comm/group.h"
#include "comm/wire.h"

#define SPIN_NS     (5 * SL_MS_NS) /* how long a wait looks without sleeping */
#define LOOK_EVERY  16u /* looks at the event for one at the group and the communicator */
#define SLEEP_MS    1   /* the device wakes nobody: between two looks */
#define FAILED_TEXT "its devices lost each other"

/* What the ranks tell each other before there is a communicator. */
typedef struct greeting {
    uint32_t library_version;
    uint8_t id[COM_DEVICE_ID_BYTES];
} greeting;

typedef enum device_state {
    DEVICE_STATE_IDLE,
    DEVICE_STATE_POSTED, /* counts are on their way */
    DEVICE_STATE_PARTS,  /* rows are there, outputs are awaited */
    DEVICE_STATE_FAILED, /* for good; there is no communicator */
} device_state;

struct com_device {
    com_group *group;
    com_group_view view;
    const com_device_api *api;
    com_stream stream;
    com_link link;
    com_event event;
    device_state state;
    uint32_t rank, rank_count, index, size; /* index, size: in the communicator */
    uint32_t peers[COM_RANKS_MAX];          /* rank -> index */
    uint64_t memory_bytes;
    uint8_t *memory; /* one piece, cut into: */
    uint8_t *in, *out, *outputs, *returns;
    uint32_t *firsts, *turns, *sources, *faults;
    uint8_t *slot_ranks, *choices;
    uint64_t *regions;
    com_device_count *counts;      /* [2][rank_count]: own for each, each one's */
    com_device_count *host_counts; /* the same, pinned */
    com_part parts[COM_RANKS_MAX]; /* of the layer */
    uint32_t sent[COM_RANKS_MAX];  /* entries whose outputs come back */
    uint32_t layer, sequence;
    _Atomic uint64_t layers, rows_sent, rows_received, dispatch_bytes, combine_bytes, wait;
};

static void count(_Atomic uint64_t *counter, uint64_t more)
{
    uint64_t now = atomic_load_explicit(counter, memory_order_relaxed);
    atomic_store_explicit(counter, now + more, memory_order_relaxed);
}

static bool is_member(const com_device *device, uint32_t rank)
{
    return (device->view.mask >> rank & 1) != 0;
}

/* ---- failing */

/* Ends the communicator, and the group with it, so that the others need no deadline. */
static sl_status device_fail(com_device *device, sl_code code, const char *text, sl_err *err)
{
    device->state = DEVICE_STATE_FAILED;
    if (device->link)
        device->api->link_abort(device->link);
    device->link = NULL;
    com_abort(device->group, FAILED_TEXT);
    (void)sl_is_ok(com_group_look(device->group, NULL)); /* tells them */
    return sl_fail(err, code, "instance %s: %s", device->view.instance, text);
}

static sl_status check(com_device *device, int code, const char *what, sl_err *err)
{
    static const sl_code codes[] = {
        [COM_DEVICE_OK] = SL_OK,
        [COM_DEVICE_INVALID] = SL_INVALID,
        [COM_DEVICE_UNSUPPORTED] = SL_UNSUPPORTED,
        [COM_DEVICE_FAILED] = SL_IO,
        [COM_DEVICE_NO_MEMORY] = SL_NO_MEMORY,
        [COM_DEVICE_LOST] = SL_UNAVAILABLE,
    };
    char text[SL_ERR_TEXT_MAX];
    if (code == COM_DEVICE_OK)
        return sl_ok();
    snprintf(text, sizeof(text), "%s: %s: %.300s", device->api->name, what,
             device->api->last_error());
    sl_assert(code > 0 && (size_t)code < sizeof(codes) / sizeof(codes[0]));
    return device_fail(device, codes[code], text, err);
}

/* ---- waiting */

typedef struct device_wait {
    com_event event; /* NULL: for the communicator's state */
    sl_time_ns deadline;
    const volatile bool *stop;
    const char *what;
} device_wait;

/* Whether somebody says that there is nothing to wait for any more. */
static sl_status device_look(com_device *device, const device_wait *wait, bool *out_done,
                             sl_err *err)
{
    uint32_t done = 0;
    char text[SL_ERR_TEXT_MAX];
    SL_TRY(check(device, device->api->link_state(device->link, &done), wait->what, err));
    if (!wait->event && done) {
        *out_done = true;
        return sl_ok();
    }
    sl_err words;
    sl_status group = com_group_look(device->group, &words);
    if (!sl_is_ok(group)) {
        (void)device_fail(device, group.code, "", NULL);
        return sl_fail(err, group.code, "%s", words.text);
    }
    if (wait->stop && *wait->stop)
        return device_fail(device, SL_CANCELLED, "told to stop", err);
    if (sl_now_ns() < wait->deadline)
        return sl_ok();
    snprintf(text, sizeof(text), "%s did not end in time (%s)", wait->what, device->api->name);
    return device_fail(device, SL_DEADLINE, text, err);
}

static sl_status device_await(com_device *device, const device_wait *wait, sl_err *err)
{
    sl_time_ns spin_until = sl_now_ns() + SPIN_NS;
    struct pollfd at = {.fd = com_fd(device->group), .events = POLLIN};
    bool done = false;
    for (uint32_t looks = 0; !done; looks++) {
        uint32_t there = 0;
        if (wait->event) {
            SL_TRY(check(device, device->api->event_done(wait->event, &there), wait->what, err));
            if (there)
                return sl_ok();
        }
        if (wait->event && looks % LOOK_EVERY != 0 && sl_now_ns() < spin_until)
            continue;
        SL_TRY(device_look(device, wait, &done, err));
        if (done || sl_now_ns() < spin_until)
            (void)sched_yield(); /* ranks may share cores */
        else if (com_arm(device->group))
            (void)poll(&at, 1, SLEEP_MS);
    }
    return sl_ok();
}

/* Until all that is on the stream is done. */
static sl_status stream_await(com_device *device, const char *what, sl_err *err)
{
    sl_time_ns begun = sl_now_ns();
    const device_wait wait = {device->event, begun + device->view.wait_ns, NULL, what};
    SL_TRY(check(device, device->api->event_record(device->event, device->stream), what, err));
    SL_TRY(device_await(device, &wait, err));
    count(&device->wait, sl_now_ns() - begun);
    return sl_ok();
}

/* ---- moves */

typedef struct move_list {
    com_device_move moves[4 * COM_RANKS_MAX];
    uint32_t count;
} move_list;

static void move_add(move_list *list, uint32_t peer, bool receive, const void *memory,
                     uint64_t bytes)
{
    if (bytes == 0)
        return;
    sl_assert(list->count < sizeof(list->moves) / sizeof(list->moves[0]));
    list->moves[list->count++] = (com_device_move){(void *)memory, bytes, peer, receive};
}

/* On the stream when it returns. */
static sl_status moves_run(com_device *device, const move_list *list, const char *what, sl_err *err)
{
    const device_wait wait = {NULL, sl_now_ns() + device->view.wait_ns, NULL, what};
    if (list->count == 0)
        return sl_ok();
    SL_TRY(check(device,
                 device->api->exchange(device->link, list->moves, list->count, device->stream),
                 what, err));
    return device_await(device, &wait, err);
}

/* Everybody's count to everybody, this rank too: a link of one rank works like any other. */
static sl_status counts_exchange(com_device *device, sl_err *err)
{
    move_list list = {.count = 0};
    size_t bytes = sizeof(com_device_count);
    for (uint32_t r = 0; r < device->rank_count; r++) {
        if (!is_member(device, r))
            continue;
        move_add(&list, device->peers[r], false, device->counts + r, bytes);
        move_add(&list, device->peers[r], true, device->counts + device->rank_count + r, bytes);
    }
    SL_TRY(moves_run(device, &list, "counts", err));
    return check(device,
                 device->api->copy(device->host_counts, device->counts,
                                   2 * device->rank_count * bytes, device->stream),
                 "counts", err);
}

/* ---- a layer */

static sl_status failed_check(const com_device *device, sl_err *err)
{
    if (device->state != DEVICE_STATE_FAILED)
        return sl_ok();
    return sl_fail(err, SL_UNAVAILABLE, "instance %s: %s", device->view.instance, FAILED_TEXT);
}

static sl_status state_enter(com_device *device, device_state from, sl_err *err)
{
    SL_TRY(failed_check(device, err));
    sl_assert(device->state == from);
    return sl_ok();
}

sl_status com_device_dispatch_post(com_device *device, const com_rows *rows, uint32_t *out_places,
                                   sl_err *err)
{
    const com_layout *layout = device->view.layout;
    size_t experts = (size_t)rows->layer * layout->expert_count;
    SL_TRY(state_enter(device, DEVICE_STATE_IDLE, err));
    sl_assert(rows->row_count <= layout->rows_max && rows->layer < layout->layer_count);
    const com_device_rows_params params = {
        .rows = rows->rows,
        .scales = rows->scales,
        .experts = rows->experts,
        .firsts = device->firsts + experts,
        .slot_ranks = device->slot_ranks,
        .turns = device->turns + experts,
        .choices = device->choices,
        .counts = device->counts,
        .sources = device->sources,
        .regions = device->regions,
        .out = device->out,
        .out_places = out_places,
        .epoch = device->view.epoch,
        .sequence = ++device->sequence,
        .layer = rows->layer,
        .row_count = rows->row_count,
        .chosen = layout->chosen,
        .expert_count = layout->expert_count,
        .rank_count = device->rank_count,
        .row_bytes = layout->row_bytes,
        .scale_bytes = layout->scale_bytes,
    };
    device->layer = rows->layer;
    SL_TRY(check(device, device->api->count(&params, device->stream), "dispatch", err));
    SL_TRY(counts_exchange(device, err));
    SL_TRY(
        check(device, device->api->event_record(device->event, device->stream), "dispatch", err));
    /* While the counts travel to the host. */
    SL_TRY(check(device, device->api->pack(&params, device->stream), "dispatch", err));
    device->state = DEVICE_STATE_POSTED;
    return sl_ok();
}

/* Experts that a row can have on one rank. */
static uint32_t here_max(const com_layout *layout)
{
    return layout->slot_count < layout->chosen ? layout->slot_count : layout->chosen;
}

/* What a rank cannot have said. */
static const char *count_fault(const com_device *device, const com_device_count *said)
{
    const com_layout *layout = device->view.layout;
    if (said->epoch != device->view.epoch)
        return "it is of another epoch";
    if (said->sequence != device->sequence || said->layer != device->layer)
        return "it is in another layer";
    if (said->rows > layout->rows_max || said->entries < said->rows ||
        said->entries > said->rows * here_max(layout) || said->reserved[0] != 0 ||
        said->reserved[1] != 0)
        return "it sends more than there can be";
    return NULL;
}

static sl_status counts_check(com_device *device, sl_err *err)
{
    const com_device_count *own = device->host_counts, *theirs = own + device->rank_count;
    uint64_t entries = 0;
    for (uint32_t r = 0; r < device->rank_count; r++) {
        char text[SL_ERR_TEXT_MAX];
        const char *fault = NULL;
        if (!is_member(device, r))
            continue;
        fault = count_fault(device, theirs + r);
        if (!fault)
            fault = count_fault(device, own + r);
        if (!fault && r == device->rank && memcmp(own + r, theirs + r, sizeof(*own)) != 0)
            fault = "its words come back changed";
        entries += own[r].entries;
        if (!fault &&
            entries > (uint64_t)device->view.layout->rows_max * device->view.layout->chosen)
            fault = "more entries than rows have";
        if (!fault)
            continue;
        snprintf(text, sizeof(text), "rank %u: %s", r, fault);
        return device_fail(device, SL_CORRUPT, text, err);
    }
    return sl_ok();
}

static uint64_t region_of(const com_device *device, const com_device_count *of)
{
    return com_device_region(of->rows, of->entries, device->view.layout->row_bytes,
                             device->view.layout->scale_bytes);
}

static com_part part_at(const com_device *device, const com_device_count *of, const uint8_t *at)
{
    const com_layout *layout = device->view.layout;
    const uint8_t *scales = at + (uint64_t)of->rows * layout->row_bytes;
    const uint8_t *counts = scales + (uint64_t)of->rows * layout->scale_bytes;
    return (com_part){
        .row_count = of->rows,
        .entry_count = of->entries,
        .rows = at,
        .scales = scales,
        .counts = (const uint16_t *)counts,
        .experts = (const uint16_t *)(counts + of->rows * sizeof(uint16_t)),
    };
}

sl_status com_device_dispatch_wait(com_device *device, com_part *out_parts, sl_err *err)
{
    const com_layout *layout = device->view.layout;
    sl_time_ns begun = sl_now_ns();
    const device_wait wait = {device->event, begun + device->view.wait_ns, NULL, "a dispatch"};
    move_list list = {.count = 0};
    SL_TRY(state_enter(device, DEVICE_STATE_POSTED, err));
    SL_TRY(device_await(device, &wait, err));
    count(&device->wait, sl_now_ns() - begun);
    SL_TRY(counts_check(device, err));
    uint8_t *in = device->in, *out = device->out;
    for (uint32_t r = 0; r < device->rank_count; r++) {
        const com_device_count *to = device->host_counts + r, *from = to + device->rank_count;
        device->parts[r] = (com_part){0};
        device->sent[r] = 0;
        if (!is_member(device, r))
            continue;
        device->sent[r] = to->entries;
        device->parts[r] = part_at(device, from, r == device->rank ? out : in);
        if (r != device->rank) {
            uint64_t bytes = com_wire_dispatch_bytes(layout, to->rows, to->entries);
            move_add(&list, device->peers[r], false, out, bytes);
            move_add(&list, device->peers[r], true, in,
                     com_wire_dispatch_bytes(layout, from->rows, from->entries));
            in += region_of(device, from);
            count(&device->rows_sent, to->rows);
            count(&device->rows_received, from->rows);
            count(&device->dispatch_bytes, bytes);
        }
        out += region_of(device, to);
    }
    SL_TRY(moves_run(device, &list, "a dispatch", err));
    memcpy(out_parts, device->parts, device->rank_count * sizeof(*out_parts));
    device->state = DEVICE_STATE_PARTS;
    return sl_ok();
}

/* Outputs to where their rows came from, and the fault word to everybody. */
static void combine_moves(com_device *device, const uint32_t *fault, move_list *out_list)
{
    uint64_t bytes = device->view.layout->output_bytes, back = 0;
    const uint8_t *outputs = device->outputs;
    out_list->count = 0;
    for (uint32_t r = 0; r < device->rank_count; r++) {
        if (is_member(device, r)) {
            move_add(out_list, device->peers[r], false, fault, sizeof(*fault));
            move_add(out_list, device->peers[r], true, device->faults + r, sizeof(*fault));
        }
        if (is_member(device, r) && r != device->rank) {
            uint64_t to = device->parts[r].entry_count * bytes;
            move_add(out_list, device->peers[r], false, outputs, to);
            move_add(out_list, device->peers[r], true, device->returns + back * bytes,
                     device->sent[r] * bytes);
            outputs += to;
            count(&device->combine_bytes, to);
        }
        back += device->sent[r];
    }
}

sl_status com_device_combine(com_device *device, const void *outputs, const uint32_t *places,
                             const uint32_t *fault, sl_err *err)
{
    uint64_t bytes = device->view.layout->output_bytes, own = 0;
    move_list list;
    SL_TRY(state_enter(device, DEVICE_STATE_PARTS, err));
    com_device_outputs_params params = {
        .outputs = outputs,
        .places = places,
        .out = device->outputs,
        .output_bytes = (uint32_t)bytes,
        .own_count = device->parts[device->rank].entry_count,
    };
    for (uint32_t r = 0; r < device->rank_count; r++) {
        own += r < device->rank ? device->sent[r] : 0;
        params.own_first += r < device->rank ? device->parts[r].entry_count : 0;
        params.entry_count += device->parts[r].entry_count;
    }
    params.own = device->returns + own * bytes;
    SL_TRY(check(device, device->api->gather(&params, device->stream), "a combine", err));
    combine_moves(device, fault, &list);
    SL_TRY(moves_run(device, &list, "a combine", err));
    count(&device->layers, 1);
    device->state = DEVICE_STATE_IDLE;
    return sl_ok();
}

sl_status com_device_wait(com_device *device, sl_err *err)
{
    SL_TRY(failed_check(device, err));
    sl_assert(device->state != DEVICE_STATE_POSTED); /* the event is the dispatch's */
    return stream_await(device, "the device", err);
}

const void *com_device_returns(const com_device *device)
{
    return device->returns;
}

const uint32_t *com_device_faults(const com_device *device)
{
    return device->faults;
}

uint64_t com_device_memory_bytes(const com_device *device)
{
    return device->memory_bytes;
}

void com_device_stats_get(const com_device *device, com_stats *out_stats)
{
    *out_stats = (com_stats){
        .layers = atomic_load_explicit(&device->layers, memory_order_relaxed),
        .rows_sent = atomic_load_explicit(&device->rows_sent, memory_order_relaxed),
        .rows_received = atomic_load_explicit(&device->rows_received, memory_order_relaxed),
        .dispatch_bytes = atomic_load_explicit(&device->dispatch_bytes, memory_order_relaxed),
        .combine_bytes = atomic_load_explicit(&device->combine_bytes, memory_order_relaxed),
        .wait_ns = atomic_load_explicit(&device->wait, memory_order_relaxed),
    };
}

/* ---- open, close */

static sl_status layout_check(com_device *device, sl_err *err)
{
    const com_layout *layout = device->view.layout;
    if (layout->row_bytes % 16 == 0 && layout->scale_bytes % 4 == 0 &&
        layout->output_bytes % 16 == 0)
        return sl_ok();
    return device_fail(device, SL_INVALID,
                       "rows and outputs on a device are multiples of 16 bytes, scales of 4", err);
}

/* The lowest rank makes the id; versions must agree before anybody uses it. */
static sl_status id_agree(com_device *device, uint8_t *out_id, sl_err *err)
{
    greeting own = {device->api->library_version(), {0}};
    char text[SL_ERR_TEXT_MAX];
    if (device->index == 0)
        SL_TRY(check(device, device->api->id_create(own.id), "an id", err));
    greeting *all = sl_alloc(device->rank_count, sizeof(*all), "comm device greetings");
    sl_status status = com_gather(device->group, &own, sizeof(own), all, err);
    uint32_t first = (uint32_t)__builtin_ctzll(device->view.mask), other = COM_RANKS_MAX;
    for (uint32_t r = 0; r < device->rank_count && sl_is_ok(status); r++)
        if (is_member(device, r) && all[r].library_version != own.library_version)
            other = r;
    if (other < COM_RANKS_MAX) {
        snprintf(text, sizeof(text), "rank %u has %s %u, this one %u", other, device->api->name,
                 all[other].library_version, own.library_version);
        /* Everybody finds that. Who failed before others have read would be all they hear of. */
        (void)sl_is_ok(com_gather(device->group, NULL, 0, NULL, NULL));
        status = device_fail(device, SL_INCOMPATIBLE, text, err);
    }
    memcpy(out_id, all[first].id, COM_DEVICE_ID_BYTES);
    sl_free(all);
    return status;
}

static sl_status link_open(com_device *device, const device_wait *wait, sl_err *err)
{
    uint8_t id[COM_DEVICE_ID_BYTES];
    SL_TRY(id_agree(device, id, err));
    SL_TRY(check(device, device->api->link_create(id, device->index, device->size, &device->link),
                 "a communicator", err));
    return device_await(device, wait, err);
}

static uint64_t aligned(uint64_t bytes)
{
    return (bytes + COM_DEVICE_ALIGN - 1) / COM_DEVICE_ALIGN * COM_DEVICE_ALIGN;
}

typedef struct device_sizes {
    uint64_t in, out, outputs, returns;
    uint64_t firsts, slot_ranks, turns; /* of tables that the group has too */
} device_sizes;

static device_sizes sizes_of(const com_device *device)
{
    const com_layout *layout = device->view.layout;
    uint64_t experts = (uint64_t)layout->layer_count * layout->expert_count;
    uint32_t others = device->size - 1;
    uint32_t spread = device->size < layout->chosen ? device->size : layout->chosen;
    uint32_t here = here_max(layout);
    uint32_t rows = layout->rows_max, entries = rows * layout->chosen;
    uint64_t region = com_device_region(rows, rows * here, layout->row_bytes, layout->scale_bytes);
    return (device_sizes){
        .in = others * region,
        .out = com_device_region(rows * spread, entries, layout->row_bytes, layout->scale_bytes) +
               device->size * (uint64_t)COM_DEVICE_ALIGN,
        .outputs = (uint64_t)others * rows * here * layout->output_bytes,
        .returns = (uint64_t)entries * layout->output_bytes,
        .firsts = (experts + 1) * sizeof(uint32_t),
        .slot_ranks = device->view.firsts[experts],
        .turns = experts * sizeof(uint32_t),
    };
}

/* One piece of memory, cut twice: to know its size, and to know the places in it. */
static uint64_t memory_cut(com_device *device, const device_sizes *sizes)
{
    const com_layout *layout = device->view.layout;
    uint64_t ranks = device->rank_count, entries = (uint64_t)layout->rows_max * layout->chosen;
    const struct {
        void *at;
        uint64_t bytes;
    } cuts[] = {
        {&device->in, sizes->in},
        {&device->out, sizes->out},
        {&device->outputs, sizes->outputs},
        {&device->returns, sizes->returns},
        {&device->firsts, sizes->firsts},
        {&device->slot_ranks, sizes->slot_ranks},
        {&device->turns, sizes->turns},
        {&device->choices, entries},
        {&device->sources, ranks * layout->rows_max * sizeof(uint32_t)},
        {&device->regions, ranks * sizeof(uint64_t)},
        {&device->counts, 2 * ranks * sizeof(com_device_count)},
        {&device->faults, ranks * sizeof(uint32_t)},
    };
    uint64_t at = 0;
    for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
        uint8_t *place = device->memory ? device->memory + at : NULL;
        memcpy(cuts[i].at, &place, sizeof(place));
        at += aligned(cuts[i].bytes);
    }
    return at;
}

static sl_status memory_open(com_device *device, sl_err *err)
{
    const com_device_api *api = device->api;
    device_sizes sizes = sizes_of(device);
    uint64_t counts = 2 * device->rank_count * sizeof(com_device_count);
    void *memory;
    device->memory_bytes = memory_cut(device, &sizes);
    SL_TRY(check(device, api->memory_create(device->memory_bytes, &memory), "windows", err));
    device->memory = memory;
    (void)memory_cut(device, &sizes);
    SL_TRY(check(device, api->host_create(counts, &memory), "windows", err));
    device->host_counts = memory;
    memset(memory, 0, counts);
    const struct {
        void *to;
        const void *from;
        uint64_t bytes;
    } tables[] = {
        {device->firsts, device->view.firsts, sizes.firsts},
        {device->slot_ranks, device->view.slot_ranks, sizes.slot_ranks},
        {device->turns, device->view.turns, sizes.turns},
        {device->counts, device->host_counts, counts},
    };
    for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++)
        SL_TRY(check(device,
                     api->copy(tables[i].to, tables[i].from, tables[i].bytes, device->stream),
                     "tables", err));
    return sl_ok();
}

static sl_status device_start(com_device *device, const com_device_options *options,
                              const device_wait *wait, sl_err *err)
{
    SL_TRY(layout_check(device, err));
    SL_TRY(check(device, device->api->device_open(options->device), "a device", err));
    SL_TRY(check(device, device->api->event_create(&device->event), "a device", err));
    SL_TRY(memory_open(device, err));
    SL_TRY(link_open(device, wait, err));
    /* Once around, so that connections are made now and not in the first layer. */
    SL_TRY(counts_exchange(device, err));
    SL_TRY(stream_await(device, "a first exchange", err));
    return com_gather(device->group, NULL, 0, NULL, err);
}

sl_status com_device_open(const com_device_options *options, sl_time_ns deadline,
                          const volatile bool *stop, com_device **out_device, sl_err *err)
{
    com_device *device = sl_alloc(1, sizeof(*device), "comm device");
    device->group = options->group;
    device->api = options->api;
    device->stream = options->stream;
    com_group_view_get(options->group, &device->view);
    device->rank = com_group_rank(options->group);
    device->rank_count = com_group_size(options->group);
    for (uint32_t r = 0; r < device->rank_count; r++) {
        device->index = r == device->rank ? device->size : device->index;
        device->peers[r] = device->size;
        device->size += is_member(device, r);
    }
    const device_wait wait = {NULL, deadline, stop, "a communicator"};
    sl_status status = device_start(device, options, &wait, err);
    if (!sl_is_ok(status)) {
        if (device->state != DEVICE_STATE_FAILED)
            (void)device_fail(device, status.code, "", NULL);
        com_device_close(device);
        return status;
    }
    *out_device = device;
    return sl_ok();
}

/* A proper end takes all ranks. */
static void link_close(com_device *device)
{
    const device_wait wait = {NULL, sl_now_ns() + device->view.wait_ns, NULL, "the end"};
    if (!sl_is_ok(check(device, device->api->link_finish(device->link), wait.what, NULL)) ||
        !sl_is_ok(device_await(device, &wait, NULL)))
        return; /* aborted */
    device->api->link_destroy(device->link);
    device->link = NULL;
}

void com_device_close(com_device *device)
{
    if (!device)
        return;
    if (device->link)
        link_close(device);
    if (device->event)
        device->api->event_destroy(device->event);
    if (device->host_counts)
        device->api->host_destroy(device->host_counts);
    if (device->memory)
        device->api->memory_destroy(device->memory);
    sl_free(device);
}
