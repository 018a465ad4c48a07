/* The in-process transport: a queue of copied messages for each rank.
 *
 * Allocates for each message: it stands in for a network, not for the data plane. One lock over all
 * of it. Thread: any. */
#include "comm/fake.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "comm/transport.h"

typedef struct message {
    struct message *next;
    uint32_t from;
    bool end; /* the link broke */
    uint64_t bytes;
    uint8_t head[COM_WIRE_SIZE];
    uint8_t data[];
} message;

struct com_transport {
    com_fake *fake;
    com_group *group;
    uint32_t rank;
    int fd;
    char address[32];
    bool linked[COM_RANKS_MAX];
    message *first, **last;
    uint32_t sent; /* to be told */
};

struct com_fake {
    pthread_mutex_t lock;
    com_transport *ranks[COM_RANKS_MAX];
    bool held[COM_RANKS_MAX], dead[COM_RANKS_MAX];
    message *waiting[COM_RANKS_MAX][COM_RANKS_MAX]; /* of held ranks, newest first, by receiver */
    uint32_t corrupt_at[COM_RANKS_MAX];
    bool corrupt_head[COM_RANKS_MAX];
    uint64_t lost[COM_RANKS_MAX][COM_KIND_COUNT]; /* receivers, as bits */
    uint32_t sent[COM_RANKS_MAX][COM_KIND_COUNT];
};

com_fake *com_fake_create(void)
{
    com_fake *fake = sl_alloc(1, sizeof(*fake), "comm fake");
    pthread_mutex_init(&fake->lock, NULL);
    return fake;
}

static void drop(message *list)
{
    while (list) {
        message *next = list->next;
        sl_free(list);
        list = next;
    }
}

void com_fake_destroy(com_fake *fake)
{
    if (!fake)
        return;
    for (uint32_t from = 0; from < COM_RANKS_MAX; from++)
        for (uint32_t to = 0; to < COM_RANKS_MAX; to++)
            drop(fake->waiting[from][to]);
    pthread_mutex_destroy(&fake->lock);
    sl_free(fake);
}

/* ---- under the lock */

static void wake(const com_transport *transport)
{
    const uint64_t one = 1;
    ssize_t written = write(transport->fd, &one, sizeof(one));
    sl_assert(written == (ssize_t)sizeof(one));
}

static void deliver(com_fake *fake, uint32_t to, message *mail)
{
    com_transport *at = fake->ranks[to];
    if (!at || (!mail->end && fake->dead[mail->from])) {
        sl_free(mail);
        return;
    }
    mail->next = NULL;
    *at->last = mail;
    at->last = &mail->next;
    wake(at);
}

static message *mail_of(uint32_t from, const uint8_t *head, const void *data, uint64_t bytes)
{
    message *mail = sl_alloc(1, sizeof(*mail) + bytes, "comm fake message");
    mail->from = from;
    mail->bytes = bytes;
    if (head)
        memcpy(mail->head, head, COM_WIRE_SIZE);
    else
        mail->end = true;
    if (bytes > 0)
        memcpy(mail->data, data, bytes);
    return mail;
}

static void corrupt(com_fake *fake, uint32_t from, message *mail)
{
    uint32_t at = fake->corrupt_at[from];
    if (at == 0 || mail->bytes < at)
        return;
    if (fake->corrupt_head[from])
        mail->head[COM_WIRE_SIZE - at] ^= 0x40;
    else
        mail->data[mail->bytes - at] ^= 0x40;
    fake->corrupt_at[from] = 0;
}

static void break_links(com_fake *fake, uint32_t rank)
{
    for (uint32_t r = 0; r < COM_RANKS_MAX; r++) {
        com_transport *other = fake->ranks[r];
        if (!other || r == rank || !other->linked[rank])
            continue;
        other->linked[rank] = false;
        deliver(fake, r, mail_of(rank, NULL, NULL, 0));
    }
}

/* ---- faults */

void com_fake_hold(com_fake *fake, uint32_t rank, bool hold)
{
    pthread_mutex_lock(&fake->lock);
    fake->held[rank] = hold;
    for (uint32_t to = 0; to < COM_RANKS_MAX && !hold; to++) {
        message *oldest = NULL;
        while (fake->waiting[rank][to]) { /* turned over */
            message *mail = fake->waiting[rank][to];
            fake->waiting[rank][to] = mail->next;
            mail->next = oldest;
            oldest = mail;
        }
        while (oldest) {
            message *mail = oldest;
            oldest = mail->next;
            deliver(fake, to, mail);
        }
    }
    pthread_mutex_unlock(&fake->lock);
}

void com_fake_kill(com_fake *fake, uint32_t rank)
{
    pthread_mutex_lock(&fake->lock);
    fake->dead[rank] = true;
    break_links(fake, rank);
    pthread_mutex_unlock(&fake->lock);
}

void com_fake_lose(com_fake *fake, uint32_t rank, uint64_t to, uint32_t kind)
{
    pthread_mutex_lock(&fake->lock);
    fake->lost[rank][kind] = to;
    pthread_mutex_unlock(&fake->lock);
}

uint32_t com_fake_sent(com_fake *fake, uint32_t rank, uint32_t kind)
{
    pthread_mutex_lock(&fake->lock);
    uint32_t sent = fake->sent[rank][kind];
    pthread_mutex_unlock(&fake->lock);
    return sent;
}

void com_fake_corrupt(com_fake *fake, uint32_t rank, uint32_t at, bool in_head)
{
    sl_assert(at > 0 && (!in_head || at <= COM_WIRE_SIZE));
    pthread_mutex_lock(&fake->lock);
    fake->corrupt_at[rank] = at;
    fake->corrupt_head[rank] = in_head;
    pthread_mutex_unlock(&fake->lock);
}

/* ---- the backend */

static sl_status fake_open(const com_options *options, com_group *group,
                           com_transport **out_transport, sl_err *err)
{
    com_fake *fake = options->backend_context;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return sl_fail_errno(err, SL_IO, "eventfd");
    com_transport *transport = sl_alloc(1, sizeof(*transport), "comm fake rank");
    transport->fake = fake;
    transport->group = group;
    transport->rank = options->rank;
    transport->fd = fd;
    transport->last = &transport->first;
    snprintf(transport->address, sizeof(transport->address), "fake:%u", options->rank);
    pthread_mutex_lock(&fake->lock);
    sl_assert(!fake->ranks[options->rank]);
    fake->ranks[options->rank] = transport;
    fake->dead[options->rank] = false;
    pthread_mutex_unlock(&fake->lock);
    *out_transport = transport;
    return sl_ok();
}

static void fake_reset(com_transport *transport)
{
    pthread_mutex_lock(&transport->fake->lock);
    break_links(transport->fake, transport->rank);
    memset(transport->linked, 0, sizeof(transport->linked));
    drop(transport->first);
    transport->first = NULL;
    transport->last = &transport->first;
    transport->sent = 0;
    pthread_mutex_unlock(&transport->fake->lock);
}

static void fake_close(com_transport *transport)
{
    fake_reset(transport);
    pthread_mutex_lock(&transport->fake->lock);
    transport->fake->ranks[transport->rank] = NULL;
    pthread_mutex_unlock(&transport->fake->lock);
    close(transport->fd);
    sl_free(transport);
}

static const char *fake_address(const com_transport *transport)
{
    return transport->address;
}

static sl_status fake_connect(com_transport *transport, uint32_t rank, const char *address,
                              sl_err *err)
{
    pthread_mutex_lock(&transport->fake->lock);
    bool there = transport->fake->ranks[rank] && !transport->fake->dead[rank];
    transport->linked[rank] = there;
    pthread_mutex_unlock(&transport->fake->lock);
    return there ? sl_ok() : sl_fail(err, SL_UNAVAILABLE, "rank %u is not there", rank);
}

/* Counts it. */
static bool is_lost(com_fake *fake, uint32_t from, uint32_t to, const uint8_t *head)
{
    com_wire wire;
    sl_err err;
    if (!sl_is_ok(com_wire_unpack(head, COM_WIRE_SIZE, &wire, &err)))
        return false;
    fake->sent[from][wire.kind]++;
    return (fake->lost[from][wire.kind] >> to & 1) != 0;
}

static void fake_send(com_transport *transport, uint32_t rank, const uint8_t head[COM_WIRE_SIZE],
                      const void *data, uint64_t bytes)
{
    com_fake *fake = transport->fake;
    uint32_t from = transport->rank;
    pthread_mutex_lock(&fake->lock);
    transport->sent++;
    wake(transport);
    if (transport->linked[rank] && !fake->dead[from] && !is_lost(fake, from, rank, head)) {
        message *mail = mail_of(from, head, data, bytes);
        corrupt(fake, from, mail);
        if (fake->held[from]) {
            mail->next = fake->waiting[from][rank];
            fake->waiting[from][rank] = mail;
        } else {
            deliver(fake, rank, mail);
        }
    }
    pthread_mutex_unlock(&fake->lock);
}

static void receive_hello(com_transport *transport, uint32_t from, const com_wire *wire)
{
    bool taken = com_group_hello(transport->group, wire);
    pthread_mutex_lock(&transport->fake->lock);
    transport->linked[from] = taken;
    if (!taken && transport->fake->ranks[from]) {
        transport->fake->ranks[from]->linked[transport->rank] = false;
        deliver(transport->fake, from, mail_of(transport->rank, NULL, NULL, 0));
    }
    pthread_mutex_unlock(&transport->fake->lock);
}

static void receive(com_transport *transport, const message *mail)
{
    com_wire wire;
    sl_err err;
    if (mail->end) {
        com_group_broken(transport->group, mail->from, "its link broke");
        return;
    }
    if (!sl_is_ok(com_wire_unpack(mail->head, COM_WIRE_SIZE, &wire, &err)) ||
        wire.bytes != mail->bytes) {
        com_group_broken(transport->group, COM_RANKS_MAX, "somebody sends what is no message");
        return;
    }
    if (wire.kind == COM_KIND_HELLO) {
        receive_hello(transport, mail->from, &wire);
        return;
    }
    void *into = com_group_arrive(transport->group, &wire);
    if (into && wire.bytes > 0)
        memcpy(into, mail->data, wire.bytes);
    com_group_arrived(transport->group, &wire);
}

static bool fake_progress(com_transport *transport)
{
    uint64_t value;
    pthread_mutex_lock(&transport->fake->lock);
    message *mail = transport->first;
    uint32_t sent = transport->sent;
    transport->sent = 0;
    if (mail) {
        transport->first = mail->next;
        if (!transport->first)
            transport->last = &transport->first;
    }
    if (!transport->first) {
        ssize_t got = read(transport->fd, &value, sizeof(value));
        (void)got; /* nothing to read is fine */
    }
    pthread_mutex_unlock(&transport->fake->lock);
    for (uint32_t i = 0; i < sent; i++)
        com_group_sent(transport->group);
    if (mail)
        receive(transport, mail);
    sl_free(mail);
    return mail || sent > 0;
}

static int fake_fd(const com_transport *transport)
{
    return transport->fd;
}

static bool fake_arm(com_transport *transport)
{
    pthread_mutex_lock(&transport->fake->lock);
    bool quiet = !transport->first && transport->sent == 0;
    pthread_mutex_unlock(&transport->fake->lock);
    return quiet;
}

const com_backend com_backend_fake = {
    .open = fake_open,
    .close = fake_close,
    .address = fake_address,
    .connect = fake_connect,
    .send = fake_send,
    .progress = fake_progress,
    .fd = fake_fd,
    .arm = fake_arm,
    .reset = fake_reset,
};
