/* The device backend in host memory. One lock over all meetings. Allocates for each piece of work:
 * it stands in for a device, not for the data plane. Thread: any; a stream is its rank's. */
#include "comm/device_fake.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"

#define MEETINGS_MAX 16u
#define MOVES_MAX    (4u * COM_DEVICE_RANKS_MAX)

typedef struct message {
    struct message *next;
    uint64_t bytes;
    uint8_t data[];
} message;

typedef struct meeting {
    uint8_t id[COM_DEVICE_ID_BYTES];
    uint32_t count, joined, finished, links;                   /* links: not yet destroyed */
    message *mail[COM_DEVICE_RANKS_MAX][COM_DEVICE_RANKS_MAX]; /* by receiver, sender; in order */
} meeting;

typedef struct link {
    meeting *at;
    uint32_t rank;
    uint32_t users; /* the handle, and work on streams */
    bool aborted, finishing;
} link;

typedef enum work_kind {
    WORK_COPY,
    WORK_EVENT,
    WORK_EXCHANGE,
    WORK_COUNT,
    WORK_PACK,
    WORK_GATHER,
} work_kind;

typedef struct event {
    struct stream *on;
    uint32_t pending; /* records that have not run */
} event;

typedef struct work {
    struct work *next;
    work_kind kind;
    com_device_move copy; /* to .memory */
    const void *from;
    event *event;
    link *link;
    bool sent;
    uint32_t at, move_count; /* moves before `at` are done */
    com_device_move moves[MOVES_MAX];
    com_device_rows_params rows;
    com_device_outputs_params outputs;
} work;

typedef struct stream {
    work *first, **last;
} stream;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static meeting *meetings[MEETINGS_MAX];

static _Thread_local const char *error_text = "";

static int fake_fail(int code, const char *text)
{
    error_text = text;
    return code;
}

static const char *fake_last_error(void)
{
    return error_text;
}

static uint32_t fake_library_version(void)
{
    return 1;
}

/* ---- the kernels' plain form */

static void plain_choose(const com_device_rows_params *p)
{
    for (size_t i = 0; i < (size_t)p->row_count * p->chosen; i++) {
        uint32_t expert = p->experts[i], first = p->firsts[expert];
        uint32_t slots = p->firsts[expert + 1] - first;
        p->choices[i] = p->slot_ranks[first + (slots > 1 ? p->turns[expert]++ % slots : 0)];
    }
}

static uint32_t plain_found(const com_device_rows_params *p, uint32_t row, uint32_t rank)
{
    uint32_t found = 0;
    for (uint32_t i = 0; i < p->chosen; i++)
        found += p->choices[(size_t)row * p->chosen + i] == rank;
    return found;
}

static void plain_count(const com_device_rows_params *p)
{
    plain_choose(p);
    for (uint32_t rank = 0; rank < p->rank_count; rank++) {
        com_device_count *out = p->counts + rank;
        *out = (com_device_count){.epoch = p->epoch, .sequence = p->sequence, .layer = p->layer};
        for (uint32_t row = 0; row < p->row_count; row++) {
            uint32_t found = plain_found(p, row, rank);
            out->entries += found;
            out->rows += found > 0;
        }
    }
}

/* The region of one rank; `base`: entries of the ranks before. */
static void plain_pack_rank(const com_device_rows_params *p, uint32_t rank, uint8_t *out,
                            uint32_t base)
{
    uint32_t rows = p->counts[rank].rows, entries = 0, at = 0;
    uint8_t *scales = out + (size_t)rows * p->row_bytes;
    uint16_t *counts = (uint16_t *)(scales + (size_t)rows * p->scale_bytes);
    uint16_t *experts = counts + rows;
    for (uint32_t row = 0; row < p->row_count; row++) {
        uint32_t found = 0;
        for (uint32_t i = 0; i < p->chosen; i++) {
            size_t entry = (size_t)row * p->chosen + i;
            if (p->choices[entry] != rank)
                continue;
            experts[entries + found] = (uint16_t)p->experts[entry];
            p->out_places[entry] = base + entries + found++;
        }
        if (found == 0)
            continue;
        memcpy(out + (size_t)at * p->row_bytes, p->rows + (size_t)row * p->row_bytes, p->row_bytes);
        if (p->scale_bytes > 0)
            memcpy(scales + (size_t)at * p->scale_bytes, p->scales + (size_t)row * p->scale_bytes,
                   p->scale_bytes);
        counts[at++] = (uint16_t)found;
        entries += found;
    }
}

static void plain_pack(const com_device_rows_params *p)
{
    uint64_t region = 0;
    uint32_t base = 0;
    for (uint32_t rank = 0; rank < p->rank_count; rank++) {
        const com_device_count *of = p->counts + rank;
        p->regions[rank] = region;
        plain_pack_rank(p, rank, p->out + region, base);
        region += com_device_region(of->rows, of->entries, p->row_bytes, p->scale_bytes);
        base += of->entries;
    }
}

static void plain_gather(const com_device_outputs_params *p)
{
    uint8_t *out = p->out, *own = p->own;
    for (uint32_t i = 0; i < p->entry_count; i++) {
        bool here = i >= p->own_first && i - p->own_first < p->own_count;
        memcpy(here ? own : out, p->outputs + (size_t)p->places[i] * p->output_bytes,
               p->output_bytes);
        own += here ? p->output_bytes : 0;
        out += here ? 0 : p->output_bytes;
    }
}

/* ---- meetings, under the lock */

static void meeting_leave(meeting *of)
{
    if (--of->links > 0)
        return;
    for (uint32_t to = 0; to < COM_DEVICE_RANKS_MAX; to++)
        for (uint32_t from = 0; from < COM_DEVICE_RANKS_MAX; from++)
            while (of->mail[to][from]) {
                message *mail = of->mail[to][from];
                of->mail[to][from] = mail->next;
                sl_free(mail);
            }
    for (uint32_t i = 0; i < MEETINGS_MAX; i++)
        if (meetings[i] == of)
            meetings[i] = NULL;
    sl_free(of);
}

static void link_drop(link *of)
{
    if (--of->users > 0)
        return;
    meeting_leave(of->at);
    sl_free(of);
}

static meeting *meeting_of(const uint8_t *id, uint32_t count)
{
    for (uint32_t i = 0; i < MEETINGS_MAX; i++)
        if (meetings[i] && memcmp(meetings[i]->id, id, COM_DEVICE_ID_BYTES) == 0)
            return meetings[i];
    for (uint32_t i = 0; i < MEETINGS_MAX; i++) {
        if (meetings[i])
            continue;
        meetings[i] = sl_alloc(1, sizeof(meeting), "comm device fake meeting");
        memcpy(meetings[i]->id, id, COM_DEVICE_ID_BYTES);
        meetings[i]->count = count;
        return meetings[i];
    }
    return NULL;
}

static void send(const link *from, const com_device_move *move)
{
    message *mail = sl_alloc(1, sizeof(*mail) + move->bytes, "comm device fake mail");
    message **end = &from->at->mail[move->peer][from->rank];
    mail->bytes = move->bytes;
    memcpy(mail->data, move->memory, move->bytes);
    while (*end)
        end = &(*end)->next;
    *end = mail;
}

static bool receive(const link *to, const com_device_move *move)
{
    message **first = &to->at->mail[to->rank][move->peer], *mail = *first;
    if (!mail)
        return false;
    sl_assert(mail->bytes == move->bytes); /* a device would hang or tear */
    memcpy(move->memory, mail->data, mail->bytes);
    *first = mail->next;
    sl_free(mail);
    return true;
}

static bool exchange_run(work *of)
{
    if (of->link->aborted)
        return true;
    for (uint32_t i = 0; i < of->move_count && !of->sent; i++)
        if (!of->moves[i].receive)
            send(of->link, &of->moves[i]);
    of->sent = true;
    for (; of->at < of->move_count; of->at++)
        if (of->moves[of->at].receive && !receive(of->link, &of->moves[of->at]))
            return false;
    return true;
}

/* ---- streams */

static work *stream_add(com_stream on, work_kind kind)
{
    stream *to = on;
    work *more = sl_alloc(1, sizeof(*more), "comm device fake work");
    more->kind = kind;
    *to->last = more;
    to->last = &more->next;
    return more;
}

static bool work_run(work *of)
{
    bool done = true;
    switch (of->kind) {
    case WORK_COPY:
        memcpy(of->copy.memory, of->from, of->copy.bytes);
        break;
    case WORK_EVENT:
        if (of->event)
            of->event->pending--;
        break;
    case WORK_EXCHANGE:
        pthread_mutex_lock(&lock);
        done = exchange_run(of);
        if (done)
            link_drop(of->link);
        pthread_mutex_unlock(&lock);
        break;
    case WORK_COUNT:
        plain_count(&of->rows);
        break;
    case WORK_PACK:
        plain_pack(&of->rows);
        break;
    case WORK_GATHER:
        plain_gather(&of->outputs);
        break;
    }
    return done;
}

static void stream_pop(stream *of)
{
    work *done = of->first;
    of->first = done->next;
    if (!of->first)
        of->last = &of->first;
    sl_free(done);
}

com_stream com_device_fake_stream_create(void)
{
    stream *of = sl_alloc(1, sizeof(*of), "comm device fake stream");
    of->last = &of->first;
    return of;
}

void com_device_fake_stream_destroy(com_stream on)
{
    stream *of = on;
    while (of->first) {
        if (of->first->kind == WORK_EXCHANGE) {
            pthread_mutex_lock(&lock);
            link_drop(of->first->link);
            pthread_mutex_unlock(&lock);
        }
        stream_pop(of);
    }
    sl_free(of);
}

/* ---- the table */

static int fake_device_count(uint32_t *out_count)
{
    *out_count = COM_DEVICE_RANKS_MAX;
    return COM_DEVICE_OK;
}

static int fake_device_open(int32_t device)
{
    if (device < 0 || (uint32_t)device >= COM_DEVICE_RANKS_MAX)
        return fake_fail(COM_DEVICE_INVALID, "no such device");
    return COM_DEVICE_OK;
}

static int fake_memory_create(uint64_t bytes, void **out_memory)
{
    *out_memory = sl_alloc(1, bytes, "comm device fake memory");
    return COM_DEVICE_OK;
}

static int fake_event_create(com_event *out_event)
{
    *out_event = sl_alloc(1, sizeof(event), "comm device fake event");
    return COM_DEVICE_OK;
}

static int fake_event_record(com_event of, com_stream on)
{
    event *recorded = of;
    recorded->on = on;
    recorded->pending++;
    stream_add(on, WORK_EVENT)->event = recorded;
    return COM_DEVICE_OK;
}

static int fake_event_done(com_event of, uint32_t *out_done)
{
    event *asked = of;
    while (asked->pending > 0 && asked->on->first && work_run(asked->on->first))
        stream_pop(asked->on);
    *out_done = asked->pending == 0;
    return COM_DEVICE_OK;
}

static void fake_event_destroy(com_event of)
{
    event *gone = of;
    for (work *w = gone->on ? gone->on->first : NULL; w; w = w->next)
        w->event = w->event == gone ? NULL : w->event;
    sl_free(gone);
}

static int fake_copy(void *to, const void *from, uint64_t bytes, com_stream on)
{
    work *more = stream_add(on, WORK_COPY);
    more->copy = (com_device_move){.memory = to, .bytes = bytes};
    more->from = from;
    return COM_DEVICE_OK;
}

static int fake_id_create(uint8_t out_id[COM_DEVICE_ID_BYTES])
{
    const uint64_t number = sl_random_u64();
    memset(out_id, 0, COM_DEVICE_ID_BYTES);
    memcpy(out_id, &number, sizeof(number));
    return COM_DEVICE_OK;
}

static int fake_link_create(const uint8_t id[COM_DEVICE_ID_BYTES], uint32_t rank, uint32_t count,
                            com_link *out_link)
{
    pthread_mutex_lock(&lock);
    meeting *at = meeting_of(id, count);
    if (at) {
        link *made = sl_alloc(1, sizeof(*made), "comm device fake link");
        *made = (link){.at = at, .rank = rank, .users = 1};
        at->joined++;
        at->links++;
        *out_link = made;
    }
    pthread_mutex_unlock(&lock);
    return at ? COM_DEVICE_OK : fake_fail(COM_DEVICE_FAILED, "too many meetings");
}

static int fake_link_state(com_link of, uint32_t *out_done)
{
    const link *asked = of;
    pthread_mutex_lock(&lock);
    uint32_t there = asked->finishing ? asked->at->finished : asked->at->joined;
    *out_done = there >= asked->at->count;
    pthread_mutex_unlock(&lock);
    return COM_DEVICE_OK;
}

static int fake_link_finish(com_link of)
{
    link *ending = of;
    pthread_mutex_lock(&lock);
    ending->finishing = true;
    ending->at->finished++;
    pthread_mutex_unlock(&lock);
    return COM_DEVICE_OK;
}

static void fake_link_abort(com_link of)
{
    link *gone = of;
    pthread_mutex_lock(&lock);
    gone->aborted = true;
    link_drop(gone);
    pthread_mutex_unlock(&lock);
}

static int fake_exchange(com_link over, const com_device_move *moves, uint32_t move_count,
                         com_stream on)
{
    work *more = stream_add(on, WORK_EXCHANGE);
    sl_assert(move_count <= MOVES_MAX);
    memcpy(more->moves, moves, move_count * sizeof(*moves));
    more->move_count = move_count;
    more->link = over;
    pthread_mutex_lock(&lock);
    more->link->users++;
    pthread_mutex_unlock(&lock);
    return COM_DEVICE_OK;
}

static int fake_count(const com_device_rows_params *params, com_stream on)
{
    stream_add(on, WORK_COUNT)->rows = *params;
    return COM_DEVICE_OK;
}

static int fake_pack(const com_device_rows_params *params, com_stream on)
{
    stream_add(on, WORK_PACK)->rows = *params;
    return COM_DEVICE_OK;
}

static int fake_gather(const com_device_outputs_params *params, com_stream on)
{
    stream_add(on, WORK_GATHER)->outputs = *params;
    return COM_DEVICE_OK;
}

const com_device_api com_device_fake = {
    .version = COM_DEVICE_API_VERSION,
    .bytes = sizeof(com_device_api),
    .name = "fake",
    .last_error = fake_last_error,
    .library_version = fake_library_version,
    .device_count = fake_device_count,
    .device_open = fake_device_open,
    .memory_create = fake_memory_create,
    .memory_destroy = sl_free,
    .host_create = fake_memory_create,
    .host_destroy = sl_free,
    .event_create = fake_event_create,
    .event_destroy = fake_event_destroy,
    .event_record = fake_event_record,
    .event_done = fake_event_done,
    .copy = fake_copy,
    .id_create = fake_id_create,
    .link_create = fake_link_create,
    .link_state = fake_link_state,
    .link_finish = fake_link_finish,
    .link_destroy = fake_link_abort,
    .link_abort = fake_link_abort,
    .exchange = fake_exchange,
    .count = fake_count,
    .pack = fake_pack,
    .gather = fake_gather,
};
