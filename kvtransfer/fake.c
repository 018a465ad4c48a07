/* The in-process transport: nodes, links, a queue of messages in virtual time, seeded faults.
 *
 * Owns the network; all on the thread that calls kvt_fake_step. Payload moves when the receiver's
 * fetch is due, by memcpy, and never over a link that was closed: as with a receiver that reads. */
#include "kvtransfer/fake.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "kvtransfer/transport.h"

#define FAKE_NODES_MAX    128u
#define FAKE_MESSAGES_MAX 65536u
#define FAKE_LINKS_MAX    (FAKE_NODES_MAX * 64u)
#define FAKE_ROUNDS_MAX   1000000u

typedef enum fake_kind {
    FAKE_ACCEPT,  /* at the listener */
    FAKE_REFUSED, /* nobody listens */
    FAKE_MESSAGE,
    FAKE_OFFER,
    FAKE_PAYLOAD, /* at the receiver */
    FAKE_SENT,    /* at the sender: its request is done */
    FAKE_RESET,   /* the other end closed or died */
} fake_kind;

typedef struct fake_message {
    sl_time_ns due;
    uint64_t order; /* ties: first sent, first delivered */
    fake_kind kind;
    kvt_link *to; /* the link's end that hears it; its generation must still be: */
    uint64_t generation;
    uint64_t operation; /* OFFER, SENT: the sender's; PAYLOAD: the receiver's */
    uint64_t answer;    /* PAYLOAD: the sender's, to be told */
    const void *data;   /* OFFER, PAYLOAD: the sender's memory */
    void *into;         /* PAYLOAD */
    uint64_t bytes;
    uint8_t *copy; /* MESSAGE, OFFER: bytes or head */
    size_t copy_size;
} fake_message;

struct kvt_link { /* one end */
    kvt_transport *node;
    kvt_link *other; /* NULL: not accepted yet, or gone */
    kvt_peer *peer;
    uint64_t generation; /* 0: free */
    bool closing;
};

struct kvt_transport { /* a node */
    kvt_fake *fake;
    kvt_core *core;
    kvt_context *context;
    char name[KVT_NAME_MAX];
    char address[KVT_ADDRESS_MAX];
    bool paused, dead, deaf;
};

struct kvt_fake {
    uint64_t random;
    uint64_t order, generation, operation, delivered;
    sl_time_ns now;
    kvt_fake_faults faults;
    kvt_transport *nodes[FAKE_NODES_MAX];
    struct {
        kvt_transport *a, *b;
    } cuts[FAKE_NODES_MAX];
    kvt_link links[FAKE_LINKS_MAX];
    uint32_t closing_count;                /* of them */
    fake_message *heap[FAKE_MESSAGES_MAX]; /* by due, then order */
    uint32_t heap_count;
    struct fake_open {
        uint64_t operation; /* never used twice, as requests are */
        kvt_request *request;
        kvt_link *link;
        bool taken; /* an offer that the receiver is fetching: its second copy says nothing */
    } open[FAKE_MESSAGES_MAX]; /* requests handed to us and not answered */
    uint32_t open_count;
};

/* ---- randomness, queue */

static uint64_t fake_random(kvt_fake *fake)
{
    uint64_t z = fake->random += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static bool fake_chance(kvt_fake *fake, uint32_t ppm)
{
    return ppm > 0 && fake_random(fake) % 1000000 < ppm;
}

static uint64_t fake_delay(kvt_fake *fake)
{
    uint64_t spread = fake->faults.delay_max_ns - fake->faults.delay_min_ns;
    return fake->faults.delay_min_ns + (spread ? fake_random(fake) % (spread + 1) : 0);
}

static bool earlier(const fake_message *a, const fake_message *b)
{
    return a->due != b->due ? a->due < b->due : a->order < b->order;
}

static void heap_push(kvt_fake *fake, fake_message *message)
{
    sl_assert(fake->heap_count < FAKE_MESSAGES_MAX);
    uint32_t at = fake->heap_count++;
    for (uint32_t up = (at - 1) / 2; at > 0 && earlier(message, fake->heap[up]);
         up = (at - 1) / 2) {
        fake->heap[at] = fake->heap[up];
        at = up;
    }
    fake->heap[at] = message;
}

static void heap_remove(kvt_fake *fake, uint32_t at)
{
    fake_message *last = fake->heap[--fake->heap_count];
    if (at == fake->heap_count)
        return;
    while (at > 0 && earlier(last, fake->heap[(at - 1) / 2])) {
        fake->heap[at] = fake->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    for (uint32_t down = 2 * at + 1; down < fake->heap_count; down = 2 * at + 1) {
        if (down + 1 < fake->heap_count && earlier(fake->heap[down + 1], fake->heap[down]))
            down++;
        if (!earlier(fake->heap[down], last))
            break;
        fake->heap[at] = fake->heap[down];
        at = down;
    }
    fake->heap[at] = last;
}

static void message_free(fake_message *message)
{
    sl_free(message->copy);
    sl_free(message);
}

static bool is_cut(const kvt_fake *fake, const kvt_transport *a, const kvt_transport *b)
{
    for (uint32_t i = 0; i < FAKE_NODES_MAX; i++) {
        if ((fake->cuts[i].a == a && fake->cuts[i].b == b) ||
            (fake->cuts[i].a == b && fake->cuts[i].b == a))
            return true;
    }
    return false;
}

/* Queues a copy of *proto from `from` to `to`, with the network's faults. RESET, REFUSED: the
 * kernel's own news, lost only in a partition. */
static void fake_post(kvt_fake *fake, const kvt_transport *from, kvt_link *to,
                      const fake_message *proto)
{
    bool reliable = proto->kind == FAKE_RESET || proto->kind == FAKE_REFUSED;
    if (is_cut(fake, from, to->node) || (!reliable && fake_chance(fake, fake->faults.drop_ppm)))
        return;
    bool twice = (proto->kind == FAKE_MESSAGE || proto->kind == FAKE_OFFER) &&
                 fake_chance(fake, fake->faults.duplicate_ppm);
    for (int i = 0; i < (twice ? 2 : 1); i++) {
        fake_message *message = sl_alloc(1, sizeof *message, "fake message");
        *message = *proto;
        message->to = to;
        message->generation = to->generation;
        message->order = fake->order++;
        message->due = fake->now + fake_delay(fake);
        if (fake_chance(fake, fake->faults.reorder_ppm))
            message->due += fake_delay(fake) + fake_delay(fake);
        if (proto->copy_size > 0) {
            message->copy = sl_alloc(1, proto->copy_size, "fake message");
            memcpy(message->copy, proto->copy, proto->copy_size);
        }
        heap_push(fake, message);
    }
}

/* ---- open requests: each is answered once, also when its message was lost and the link closes */

static uint64_t open_add(kvt_fake *fake, kvt_request *request, kvt_link *link)
{
    sl_assert(fake->open_count < FAKE_MESSAGES_MAX);
    fake->open[fake->open_count++] =
        (struct fake_open){.operation = ++fake->operation, .request = request, .link = link};
    return fake->operation;
}

static struct fake_open *open_find(kvt_fake *fake, uint64_t operation)
{
    for (uint32_t i = 0; i < fake->open_count; i++) {
        if (fake->open[i].operation == operation)
            return &fake->open[i];
    }
    return NULL;
}

static void open_finish(kvt_fake *fake, struct fake_open *open, sl_code code)
{
    kvt_request *request = open->request;
    *open = fake->open[--fake->open_count];
    kvt_core_finished(request, code);
}

static void open_fail_link(kvt_fake *fake, const kvt_link *link)
{
    for (uint32_t i = 0; i < fake->open_count;) {
        if (fake->open[i].link == link)
            open_finish(fake, &fake->open[i], SL_UNAVAILABLE);
        else
            i++;
    }
}

/* ---- links */

static kvt_link *link_take(kvt_transport *node)
{
    for (uint32_t i = 0; i < FAKE_LINKS_MAX; i++) {
        kvt_link *link = &node->fake->links[i];
        if (link->generation == 0) {
            *link = (kvt_link){.node = node, .generation = ++node->fake->generation};
            return link;
        }
    }
    return NULL;
}

static void link_drop(kvt_link *link, bool tell)
{
    kvt_fake *fake = link->node->fake;
    kvt_link *other = link->other;
    open_fail_link(fake, link);
    if (other) {
        other->other = NULL;
        if (!other->peer) { /* never accepted: nobody else would drop it */
            *other = (kvt_link){.generation = 0};
        } else if (tell) {
            fake_message reset = {.kind = FAKE_RESET};
            fake_post(fake, link->node, other, &reset);
        }
    }
    fake->closing_count -= link->closing;
    *link = (kvt_link){.generation = 0};
}

static kvt_transport *node_at(kvt_fake *fake, const char *address)
{
    for (uint32_t i = 0; i < FAKE_NODES_MAX; i++) {
        kvt_transport *node = fake->nodes[i];
        if (node && !node->dead && node->address[0] && strcmp(node->address, address) == 0)
            return node;
    }
    return NULL;
}

static kvt_transport *node_named(kvt_fake *fake, const char *name)
{
    for (uint32_t i = 0; i < FAKE_NODES_MAX; i++) {
        if (fake->nodes[i] && strcmp(fake->nodes[i]->name, name) == 0)
            return fake->nodes[i];
    }
    return NULL;
}

static sl_status fake_connect(kvt_transport *node, const char *address, kvt_peer *peer,
                              kvt_link **out_link, sl_err *err)
{
    kvt_fake *fake = node->fake;
    kvt_link *link = link_take(node);
    if (!link)
        return sl_fail(err, SL_FULL, "no link left");
    link->peer = peer;
    kvt_transport *to = node_at(fake, address);
    if (to) {
        kvt_link *far = link_take(to);
        sl_assert(far);
        far->other = link;
        link->other = far;
        fake_message accept = {.kind = FAKE_ACCEPT};
        fake_post(fake, node, far, &accept);
    } else {
        fake_message refused = {.kind = FAKE_REFUSED};
        fake_post(fake, node, link, &refused);
    }
    *out_link = link;
    return sl_ok();
}

static void fake_close(kvt_link *link)
{
    link->closing = true; /* the core hears of it at the next step */
    link->node->fake->closing_count++;
    open_fail_link(link->node->fake, link);
}

static void fake_send_message(kvt_link *link, const void *data, size_t size, kvt_request *request)
{
    kvt_fake *fake = link->node->fake;
    if (link->other && !link->closing) {
        fake_message message = {.kind = FAKE_MESSAGE, .copy = (uint8_t *)data, .copy_size = size};
        fake_post(fake, link->node, link->other, &message);
    }
    kvt_core_finished(request, SL_OK); /* copied, as an eager message is */
}

static void fake_send_piece(kvt_link *link, const void *head, size_t head_size, const void *data,
                            uint64_t bytes, kvt_request *request)
{
    kvt_fake *fake = link->node->fake;
    uint64_t operation = open_add(fake, request, link);
    if (!link->other || link->closing)
        return; /* answered when the link is closed */
    fake_message offer = {.kind = FAKE_OFFER,
                          .operation = operation,
                          .data = data,
                          .bytes = bytes,
                          .copy = (uint8_t *)head,
                          .copy_size = head_size};
    fake_post(fake, link->node, link->other, &offer);
}

static void fake_restart(kvt_transport *node)
{
    node->deaf = false;
    for (uint32_t i = 0; i < FAKE_LINKS_MAX; i++) {
        kvt_link *link = &node->fake->links[i];
        kvt_peer *peer = link->peer;
        if (link->generation == 0 || link->node != node)
            continue;
        link_drop(link, true);
        if (peer)
            kvt_core_closed(peer);
    }
}

static bool fake_probe(kvt_transport *node, bool on)
{
    if (on && !node->deaf)
        kvt_core_probed(node->core);
    return true;
}

static bool fake_progress(kvt_transport *node)
{
    return false;
}

static bool fake_arm(kvt_transport *node)
{
    return true;
}

static int fake_wait_fd(const kvt_transport *node)
{
    return -1;
}

static void fake_address(const kvt_transport *node, char out_text[KVT_ADDRESS_MAX])
{
    memcpy(out_text, node->address, sizeof node->address);
}

/* Breaks all links of a node; the far ends hear of it. */
static void node_unplug(kvt_transport *node)
{
    for (uint32_t i = 0; i < FAKE_LINKS_MAX; i++) {
        kvt_link *link = &node->fake->links[i];
        if (link->generation != 0 && link->node == node)
            link_drop(link, true);
    }
}

static void fake_destroy(kvt_transport *node)
{
    if (!node)
        return;
    kvt_fake *fake = node->fake;
    node_unplug(node);
    for (uint32_t i = 0; i < FAKE_NODES_MAX; i++) {
        if (fake->nodes[i] == node)
            fake->nodes[i] = NULL;
        if (fake->cuts[i].a == node || fake->cuts[i].b == node)
            fake->cuts[i].a = fake->cuts[i].b = NULL;
    }
    sl_free(node);
}

static const kvt_transport_ops fake_ops = {
    .connect = fake_connect,
    .close = fake_close,
    .send_message = fake_send_message,
    .send_piece = fake_send_piece,
    .progress = fake_progress,
    .restart = fake_restart,
    .probe = fake_probe,
    .arm = fake_arm,
    .wait_fd = fake_wait_fd,
    .address = fake_address,
    .destroy = fake_destroy,
};

/* ---- delivery */

static void deliver_offer(kvt_fake *fake, const fake_message *message)
{
    kvt_link *link = message->to, *from = link->other;
    /* The second copy of an offer whose sender was answered already names memory that may be gone.
     */
    struct fake_open *open = from ? open_find(fake, message->operation) : NULL;
    if (!open)
        return;
    void *into = NULL;
    kvt_request *fetch =
        kvt_core_offer(link->peer, message->copy, message->copy_size, message->bytes, &into);
    if (!fetch) {
        fake_message sent = {.kind = FAKE_SENT, .operation = message->operation};
        if (!open->taken)
            fake_post(fake, link->node, from, &sent);
        return;
    }
    open->taken = true;
    fake_message payload = {.kind = FAKE_PAYLOAD,
                            .operation = open_add(fake, fetch, link),
                            .answer = message->operation,
                            .data = message->data,
                            .bytes = message->bytes,
                            .into = into};
    fake_post(fake, from->node, link, &payload);
}

static void deliver_payload(kvt_fake *fake, const fake_message *message)
{
    kvt_link *link = message->to, *from = link->other;
    struct fake_open *fetch = open_find(fake, message->operation);
    if (!from || !fetch || !open_find(fake, message->answer))
        return;
    memcpy(message->into, message->data, message->bytes);
    if (fake_chance(fake, fake->faults.corrupt_ppm))
        ((uint8_t *)message->into)[fake_random(fake) % message->bytes] ^= 0x40;
    open_finish(fake, fetch, SL_OK);
    fake_message sent = {.kind = FAKE_SENT, .operation = message->answer};
    fake_post(fake, link->node, from, &sent);
}

static void deliver(kvt_fake *fake, fake_message *message)
{
    kvt_link *link = message->to;
    struct fake_open *open;
    if (link->generation != message->generation || link->closing)
        return;
    /* Whatever comes first opens the far end: a connection exists before its bytes. */
    if (!link->peer && message->kind != FAKE_RESET) {
        link->peer = kvt_core_accepted(link->node->core, link);
        if (!link->peer) {
            link_drop(link, true);
            return;
        }
    }
    switch (message->kind) {
    case FAKE_ACCEPT:
        break;
    case FAKE_REFUSED:
        kvt_core_broken(link->peer, SL_UNAVAILABLE, "connection refused");
        break;
    case FAKE_RESET:
        if (link->peer)
            kvt_core_broken(link->peer, SL_UNAVAILABLE, "connection lost: reset");
        else
            link_drop(link, false);
        break;
    case FAKE_MESSAGE:
        kvt_core_message(link->peer, message->copy, message->copy_size);
        break;
    case FAKE_OFFER:
        deliver_offer(fake, message);
        break;
    case FAKE_PAYLOAD:
        deliver_payload(fake, message);
        break;
    case FAKE_SENT:
        open = open_find(fake, message->operation);
        if (open)
            open_finish(fake, open, SL_OK);
        break;
    }
}

static bool is_of_connection(const fake_message *message)
{
    return message->kind == FAKE_ACCEPT || message->kind == FAKE_REFUSED ||
           message->kind == FAKE_RESET;
}

/* The earliest message that may be delivered: one to a stopped process waits, and so does payload
 * that a stopped sender would have to push. */
static uint32_t next_message(const kvt_fake *fake)
{
    uint32_t best = UINT32_MAX;
    for (uint32_t i = 0; i < fake->heap_count; i++) {
        const fake_message *message = fake->heap[i];
        const kvt_link *link = message->to;
        if (link->generation == message->generation) {
            bool stopped =
                link->node->paused || (link->node->deaf && !is_of_connection(message)) ||
                (message->kind == FAKE_PAYLOAD && link->other && link->other->node->paused);
            if (stopped)
                continue;
        }
        if (best == UINT32_MAX || earlier(message, fake->heap[best]))
            best = i;
        if (i == 0)
            break; /* the heap's top, nobody stopped it: nothing is earlier */
    }
    return best;
}

static bool step_closing(kvt_fake *fake)
{
    bool did = false;
    for (uint32_t i = 0; fake->closing_count > 0 && i < FAKE_LINKS_MAX; i++) {
        kvt_link *link = &fake->links[i];
        if (link->generation == 0 || !link->closing || link->node->paused || link->node->dead)
            continue;
        kvt_peer *peer = link->peer;
        link_drop(link, true);
        kvt_core_closed(peer);
        did = true;
    }
    return did;
}

static bool step_nodes(kvt_fake *fake)
{
    bool did = false;
    for (uint32_t i = 0; i < FAKE_NODES_MAX; i++) {
        kvt_transport *node = fake->nodes[i];
        if (node && !node->paused && !node->dead)
            did |= kvt_context_step(node->context, fake->now);
    }
    return did;
}

sl_time_ns kvt_fake_step(kvt_fake *fake, sl_time_ns now)
{
    sl_time_ns due = SL_NEVER;
    sl_assert(now >= fake->now);
    fake->now = now;
    for (uint32_t round = 0;; round++) {
        sl_assert(round < FAKE_ROUNDS_MAX); /* virtual time must pass */
        bool did = step_nodes(fake);
        did |= step_closing(fake);
        uint32_t at = next_message(fake);
        if (at != UINT32_MAX && fake->heap[at]->due <= now) {
            fake_message *message = fake->heap[at];
            heap_remove(fake, at);
            fake->delivered++;
            deliver(fake, message);
            message_free(message);
        } else if (!did) {
            due = at == UINT32_MAX ? SL_NEVER : fake->heap[at]->due;
            break;
        }
    }
    for (uint32_t i = 0; i < FAKE_NODES_MAX; i++) {
        kvt_transport *node = fake->nodes[i];
        if (node && !node->paused && !node->dead && kvt_context_due(node->context) < due)
            due = kvt_context_due(node->context);
    }
    return due;
}

/* ---- network */

kvt_fake *kvt_fake_create(uint64_t seed)
{
    kvt_fake *fake = sl_alloc(1, sizeof *fake, "fake network");
    fake->random = seed;
    fake->faults.delay_min_ns = fake->faults.delay_max_ns = 1000;
    return fake;
}

void kvt_fake_destroy(kvt_fake *fake)
{
    if (!fake)
        return;
    for (uint32_t i = 0; i < FAKE_NODES_MAX; i++)
        sl_assert(!fake->nodes[i]);
    for (uint32_t i = 0; i < fake->heap_count; i++)
        message_free(fake->heap[i]);
    sl_free(fake);
}

void kvt_fake_faults_set(kvt_fake *fake, const kvt_fake_faults *faults)
{
    sl_assert(faults->delay_min_ns <= faults->delay_max_ns);
    fake->faults = *faults;
}

void kvt_fake_cut(kvt_fake *fake, const char *name_a, const char *name_b, bool cut)
{
    kvt_transport *a = node_named(fake, name_a), *b = node_named(fake, name_b);
    sl_assert(a && b);
    for (uint32_t i = 0; i < FAKE_NODES_MAX; i++) {
        bool same = (fake->cuts[i].a == a && fake->cuts[i].b == b) ||
                    (fake->cuts[i].a == b && fake->cuts[i].b == a);
        if (same || (cut && !fake->cuts[i].a)) {
            fake->cuts[i].a = cut ? a : NULL;
            fake->cuts[i].b = cut ? b : NULL;
            return;
        }
    }
    sl_assert(!cut);
}

void kvt_fake_pause(kvt_fake *fake, const char *name, bool paused)
{
    kvt_transport *node = node_named(fake, name);
    sl_assert(node);
    node->paused = paused;
}

void kvt_fake_kill(kvt_fake *fake, const char *name)
{
    kvt_transport *node = node_named(fake, name);
    sl_assert(node);
    node->dead = true;
    node_unplug(node);
}

void kvt_fake_deafen(kvt_fake *fake, const char *name)
{
    kvt_transport *node = node_named(fake, name);
    sl_assert(node);
    node->deaf = true;
}

uint64_t kvt_fake_messages(const kvt_fake *fake)
{
    return fake->delivered;
}

sl_status kvt_fake_transport_create(const kvt_options *options, kvt_core *core,
                                    const kvt_transport_ops **out_ops,
                                    kvt_transport **out_transport, sl_err *err)
{
    kvt_fake *fake = options->fake;
    if (node_named(fake, options->name))
        return sl_fail(err, SL_EXISTS, "%s is on the network already", options->name);
    if (options->listen && node_at(fake, options->listen))
        return sl_fail(err, SL_EXISTS, "%s: address already in use", options->listen);
    for (uint32_t i = 0; i < FAKE_NODES_MAX; i++) {
        if (fake->nodes[i])
            continue;
        kvt_transport *node = sl_alloc(1, sizeof *node, "fake node");
        node->fake = fake;
        node->core = core;
        node->context = kvt_core_context(core);
        memcpy(node->name, options->name, strnlen(options->name, sizeof node->name - 1));
        if (options->listen)
            memcpy(node->address, options->listen,
                   strnlen(options->listen, sizeof node->address - 1));
        fake->nodes[i] = node;
        *out_ops = &fake_ops;
        *out_transport = node;
        return sl_ok();
    }
    return sl_fail(err, SL_FULL, "%u nodes are on the network", FAKE_NODES_MAX);
}
