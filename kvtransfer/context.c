/* The owner's side: handles, checks, the two mailboxes, and the progress thread.
 *
 * Owns the memory of all handles. Public functions run on the owner's thread (announce and commit
 * on the producer's); everything behind `core` belongs to the progress thread, reached by commands.
 */
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/net.h"
#include "kvtransfer/core.h"

/* Three of a send's slot at most wait: the cancel of the one before, open, cancel; two revokes of a
 * receive's. Theirs never find the ring full. */
#define COMMANDS_MAX     2048u
#define COMMANDS_TO_WARM 512u
/* The progress thread looks again for this long before it sleeps: a wake-up costs more. */
#define SPIN_NS 20000u
/* UCX that says "busy" and moves nothing for this long keeps an operation that cannot end. */
#define BUSY_NS (1 * SL_MS_NS)
#define STOP_MS 3000u

typedef enum command_type {
    COMMAND_SEND_OPEN,
    COMMAND_SEND_CANCEL,
    COMMAND_RECV_REVOKE,
    COMMAND_WARM,
} command_type;

typedef struct context_command {
    command_type type;
    kvt_send *send;
    uint32_t slot;   /* CANCEL, REVOKE: the handle may be closed and released before we look, */
    kvt_nonce nonce; /* and its slot taken again */
    char *address;   /* WARM; freed by the progress thread */
} context_command;

struct kvt_context {
    sl_mailbox *commands, *events;
    sl_ring *opens; /* kvt_recv * to start: drained before any nonce is called unknown */
    kvt_region regions[KVT_REGIONS_MAX];
    size_t region_count;
    char address[KVT_ADDRESS_MAX];
    kvt_send *sends[KVT_SENDS_MAX]; /* from open to release */
    kvt_recv *recvs[KVT_RECVS_MAX];
    uint32_t pieces_open;
    _Atomic uint32_t warms; /* not yet looked at */
    bool threaded;
    pthread_t thread;
    int epoll_fd;
    uint32_t restarts_seen;
    _Atomic bool stop;
    kvt_core core;
};

_Static_assert(COMMANDS_MAX >= 3 * KVT_SENDS_MAX + 2 * KVT_RECVS_MAX + COMMANDS_TO_WARM,
               "commands of handles always have a place");

/* ---- progress thread */

void kvt_context_open_recvs(kvt_context *context)
{
    kvt_recv *recv;
    while (sl_ring_pop(context->opens, &recv))
        kvt_recv_start(&context->core, recv);
}

static void command_run(kvt_context *context, const context_command *command)
{
    kvt_core *core = &context->core;
    kvt_send *send = core->sends[command->slot];
    kvt_recv *recv = core->recvs[command->slot];
    switch (command->type) {
    case COMMAND_SEND_OPEN:
        kvt_send_start(core, command->send);
        break;
    case COMMAND_SEND_CANCEL:
        if (send && kvt_nonce_equal(send->options.nonce, command->nonce))
            kvt_send_end(send, SL_CANCELLED, "cancelled");
        break;
    case COMMAND_RECV_REVOKE:
        if (recv && kvt_nonce_equal(recv->options.nonce, command->nonce))
            kvt_recv_end(recv, SL_CANCELLED, "revoked");
        break;
    case COMMAND_WARM: {
        kvt_peer *peer;
        sl_status ignored = kvt_peer_get(core, command->address, &peer, NULL);
        (void)ignored; /* a hint */
        sl_free(command->address);
        atomic_fetch_sub_explicit(&context->warms, 1, memory_order_relaxed);
        break;
    }
    }
}

bool kvt_context_step(kvt_context *context, sl_time_ns now)
{
    context_command command;
    bool did = false;
    context->core.now = now;
    kvt_context_open_recvs(context);
    while (sl_mailbox_pop(context->commands, &command)) {
        /* The opening of what it names was pushed before it. */
        kvt_context_open_recvs(context);
        command_run(context, &command);
        did = true;
    }
    return kvt_core_run(&context->core, now) || did;
}

sl_time_ns kvt_context_due(const kvt_context *context)
{
    return context->core.next_due;
}

static int wait_ms(const kvt_context *context, sl_time_ns now, bool armed)
{
    sl_time_ns due = context->core.next_due;
    if (!armed)
        return 1;
    if (due == SL_NEVER)
        return -1;
    uint64_t left_ms = due > now ? (due - now + SL_MS_NS - 1) / SL_MS_NS : 0;
    return left_ms > 1000 ? 1000 : (int)left_ms;
}

static void progress_wait(kvt_context *context, sl_time_ns now, bool armed)
{
    kvt_core *core = &context->core;
    struct epoll_event events[2];
    if (core->restarts != context->restarts_seen) {
        struct epoll_event event = {.events = EPOLLIN,
                                    .data.fd = core->ops->wait_fd(core->transport)};
        context->restarts_seen = core->restarts; /* the old descriptor went with its worker */
        if (event.data.fd >= 0)
            epoll_ctl(context->epoll_fd, EPOLL_CTL_ADD, event.data.fd, &event);
    }
    int count = epoll_wait(context->epoll_fd, events, 2, wait_ms(context, now, armed));
    for (int i = 0; i < count; i++) {
        if (events[i].data.fd == sl_mailbox_fd(context->commands))
            sl_mailbox_clear(context->commands); /* before the pops of the next round */
    }
}

static void *progress_main(void *argument)
{
    kvt_context *context = argument;
    kvt_core *core = &context->core;
    sl_time_ns busy_at = sl_now_ns();
    while (!atomic_load_explicit(&context->stop, memory_order_acquire)) {
        sl_time_ns now = sl_now_ns();
        core->now = now;
        bool did = core->ops->progress(core->transport);
        did |= kvt_context_step(context, now);
        if (did)
            busy_at = now;
        bool patient = core->ops->patient && core->ops->patient(core->transport);
        if (did || (now - busy_at < SPIN_NS && !patient))
            continue;
        bool armed = core->ops->arm(core->transport);
        if (armed || now - busy_at >= BUSY_NS)
            progress_wait(context, now, armed);
    }
    kvt_core_stop(core);
    sl_time_ns give_up = sl_now_ns() + STOP_MS * SL_MS_NS;
    while (!kvt_core_idle(core) && core->now < give_up) {
        core->now = sl_now_ns();
        core->ops->progress(core->transport);
        kvt_core_run(core, core->now);
    }
    return NULL;
}

/* ---- create, destroy */

static sl_status options_check(const kvt_options *options, sl_err *err)
{
    if (!options->name || !options->name[0] || strlen(options->name) >= KVT_NAME_MAX)
        return sl_fail(err, SL_INVALID, "a kvtransfer name has 1 to %u characters",
                       KVT_NAME_MAX - 1);
    for (const char *at = options->name; *at; at++) {
        if (*at < 0x20 || *at > 0x7e)
            return sl_fail(err, SL_INVALID, "a kvtransfer name is printable ASCII");
    }
    if (options->region_count > KVT_REGIONS_MAX)
        return sl_fail(err, SL_TOO_LARGE, "at most %u regions", KVT_REGIONS_MAX);
    for (size_t i = 0; i < options->region_count; i++) {
        if (!options->regions[i].base || options->regions[i].bytes == 0)
            return sl_fail(err, SL_INVALID, "region %zu is empty", i);
    }
    if (options->transport >= KVT_TRANSPORT_COUNT)
        return sl_fail(err, SL_INVALID, "no such kv transport");
    if (options->listen && strlen(options->listen) >= KVT_ADDRESS_MAX)
        return sl_fail(err, SL_TOO_LARGE, "the listen address is too long");
    return sl_ok();
}

sl_status kvt_listen_resolve(const kvt_options *options, struct sockaddr_storage *out_address,
                             uint32_t *out_size, sl_err *err)
{
    SL_TRY(sl_net_resolve(options->listen, true, out_address, out_size, err));
    if (sl_net_is_wildcard((const struct sockaddr *)out_address) && !options->allow_wildcard)
        return sl_fail(err, SL_INVALID,
                       "%s: the kv network authenticates nobody; name one interface",
                       options->listen);
    return sl_ok();
}

const char *kvt_tcp_part(const char *address)
{
    return strncmp(address, "tcp:", 4) == 0 && strchr(address + 4, ':') ? address + 4 : NULL;
}

static sl_status transport_create(const kvt_options *options, kvt_core *core, sl_err *err)
{
    if (options->fake)
        return kvt_fake_transport_create(options, core, &core->ops, &core->transport, err);
    kvt_ucx_signals(); /* the library is loaded whoever moves the bytes */
    if (options->transport == KVT_TRANSPORT_TCP)
        return kvt_tcp_create(options, core, &core->ops, &core->transport, err);
    return kvt_ucx_create(options, core, &core->ops, &core->transport, err);
}

static sl_status context_start_thread(kvt_context *context, sl_err *err)
{
    int fds[2] = {sl_mailbox_fd(context->commands),
                  context->core.ops->wait_fd(context->core.transport)};
    context->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (context->epoll_fd < 0)
        return sl_fail_errno(err, SL_IO, "create an epoll descriptor");
    for (int i = 0; i < 2; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fds[i]};
        if (epoll_ctl(context->epoll_fd, EPOLL_CTL_ADD, fds[i], &event) != 0)
            return sl_fail_errno(err, SL_IO, "watch a descriptor of kvtransfer");
    }
    if (pthread_create(&context->thread, NULL, progress_main, context) != 0)
        return sl_fail_errno(err, SL_IO, "start the kvtransfer thread");
    context->threaded = true;
    return sl_ok();
}

sl_status kvt_context_create(const kvt_options *options, kvt_context **out_context, sl_err *err)
{
    SL_TRY(options_check(options, err));
    kvt_context *context = sl_alloc(1, sizeof *context, "kvt context");
    kvt_core *core = &context->core;
    context->epoll_fd = -1;
    context->region_count = options->region_count;
    context->opens = sl_ring_create(sizeof(kvt_recv *), KVT_RECVS_MAX);
    if (options->region_count > 0)
        memcpy(context->regions, options->regions, options->region_count * sizeof(kvt_region));
    sl_status status =
        sl_mailbox_create(sizeof(kvt_event_item), KVT_EVENTS_MAX, &context->events, err);
    if (sl_is_ok(status))
        status = sl_mailbox_create(sizeof(context_command), COMMANDS_MAX, &context->commands, err);
    if (!sl_is_ok(status))
        goto err_mailboxes;
    kvt_core_init(core, options, context->events);
    core->context = context;
    status = transport_create(options, core, err);
    if (!sl_is_ok(status))
        goto err_core;
    core->ops->address(core->transport, context->address);
    if (!options->fake) {
        status = context_start_thread(context, err);
        if (!sl_is_ok(status))
            goto err_transport;
    }
    *out_context = context;
    return sl_ok();

err_transport:
    if (context->epoll_fd >= 0)
        close(context->epoll_fd);
    core->ops->destroy(core->transport);
err_core:
    kvt_core_fini(core);
err_mailboxes:
    sl_mailbox_destroy(context->commands);
    sl_mailbox_destroy(context->events);
    sl_ring_destroy(context->opens);
    sl_free(context);
    return status;
}

static void send_free(kvt_send *send)
{
    for (uint32_t i = 0; i < KVT_COMMITS_OPEN_MAX; i++)
        sl_free(send->commits[i].bytes);
    sl_free((char *)send->options.address);
    sl_free(send->pieces);
    sl_free(send->announced);
    sl_free(send);
}

static void recv_free(kvt_recv *recv)
{
    for (uint32_t i = 0; i < KVT_COMMITS_OPEN_MAX; i++)
        sl_free(recv->commits[i].payload);
    sl_free((void *)recv->options.pages);
    sl_free((void *)recv->options.slices);
    sl_free(recv->pieces);
    sl_free(recv->seen);
    sl_free(recv->verified);
    sl_free(recv);
}

/* What was said and never heard. */
static void context_drain(kvt_context *context)
{
    kvt_event_item item;
    context_command command;
    while (sl_mailbox_pop(context->events, &item))
        sl_free(item.payload);
    while (sl_mailbox_pop(context->commands, &command))
        sl_free(command.address);
}

void kvt_context_destroy(kvt_context *context)
{
    if (!context)
        return;
    if (context->threaded) {
        atomic_store_explicit(&context->stop, true, memory_order_release);
        sl_mailbox_wake(context->commands);
        pthread_join(context->thread, NULL);
        close(context->epoll_fd);
    }
    context->core.ops->destroy(context->core.transport);
    kvt_core_fini(&context->core);
    context_drain(context);
    for (uint32_t i = 0; i < KVT_SENDS_MAX; i++) {
        if (context->sends[i])
            send_free(context->sends[i]);
    }
    for (uint32_t i = 0; i < KVT_RECVS_MAX; i++) {
        if (context->recvs[i])
            recv_free(context->recvs[i]);
    }
    sl_mailbox_destroy(context->commands);
    sl_mailbox_destroy(context->events);
    sl_ring_destroy(context->opens);
    sl_free(context);
}

const char *kvt_context_address(const kvt_context *context)
{
    return context->address;
}

int kvt_fd(const kvt_context *context)
{
    return sl_mailbox_fd(context->events);
}

static void command_push(kvt_context *context, const context_command *command)
{
    bool pushed = sl_mailbox_push(context->commands, command);
    sl_assert(pushed);
}

void kvt_warm(kvt_context *context, const char *address)
{
    if (strlen(address) >= KVT_ADDRESS_MAX ||
        atomic_load_explicit(&context->warms, memory_order_relaxed) == COMMANDS_TO_WARM)
        return;
    atomic_fetch_add_explicit(&context->warms, 1, memory_order_relaxed);
    context_command command = {.type = COMMAND_WARM, .address = sl_strdup(address, "kvt address")};
    command_push(context, &command);
}

/* ---- events */

static void deliver(const kvt_event_item *item, kvt_event_fn fn, void *fn_context)
{
    kvt_event event = {.type = (kvt_event_type)item->type,
                       .send = item->send,
                       .recv = item->recv,
                       .cookie =
                           item->send ? item->send->options.cookie : item->recv->options.cookie,
                       .block = item->block,
                       .group = item->group,
                       .sequence = item->sequence,
                       .tokens = item->tokens,
                       .final = item->final,
                       .payload = item->payload,
                       .payload_bytes = item->payload_bytes,
                       .text = ""};
    if (event.type == KVT_EVENT_SEND_CLOSED) {
        event.code = item->send->code;
        event.text = item->send->text;
        item->send->closed_delivered = true;
    } else if (event.type == KVT_EVENT_RECV_CLOSED) {
        event.code = item->recv->code;
        event.text = item->recv->text;
        item->recv->closed_delivered = true;
    }
    fn(fn_context, &event);
    sl_free(item->payload);
}

size_t kvt_poll(kvt_context *context, kvt_event_fn fn, void *fn_context)
{
    kvt_event_item item;
    size_t count = 0;
    sl_mailbox_clear(context->events);
    while (count < KVT_EVENTS_MAX && sl_mailbox_pop(context->events, &item)) {
        deliver(&item, fn, fn_context);
        count++;
    }
    if (count == KVT_EVENTS_MAX)
        sl_mailbox_wake(context->events); /* perhaps there is more: stay readable */
    if (atomic_exchange(&context->core.events_waiting, false))
        sl_mailbox_wake(context->commands);
    return count;
}

/* ---- sending */

static bool region_holds(const kvt_context *context, const void *data, uint64_t bytes)
{
    for (size_t i = 0; i < context->region_count; i++) {
        const kvt_region *region = &context->regions[i];
        uintptr_t base = (uintptr_t)region->base, at = (uintptr_t)data;
        if (at >= base && bytes <= region->bytes && at - base <= region->bytes - bytes)
            return true;
    }
    return false;
}

/* The number of pieces, if the shape is within all limits. */
static sl_status shape_check(const kvt_context *context, uint32_t first_block, uint32_t block_count,
                             uint32_t group_count, uint32_t *out_pieces, sl_err *err)
{
    if (group_count == 0 || group_count > KVT_GROUPS_MAX)
        return sl_fail(err, SL_INVALID, "group_count is 1 to %u", KVT_GROUPS_MAX);
    if (block_count > KVT_BLOCKS_MAX || block_count * group_count > KVT_PIECES_MAX)
        return sl_fail(err, SL_TOO_LARGE, "at most %u blocks and %u pieces", KVT_BLOCKS_MAX,
                       KVT_PIECES_MAX);
    if (first_block > UINT32_MAX - block_count)
        return sl_fail(err, SL_INVALID, "first_block is out of range");
    uint32_t pieces = block_count * group_count;
    if (context->pieces_open + pieces > KVT_PIECES_OPEN_MAX)
        return sl_fail(err, SL_FULL, "%u pieces of open transfers", context->pieces_open);
    *out_pieces = pieces;
    return sl_ok();
}

static sl_status send_check(const kvt_context *context, const kvt_send_options *options,
                            uint32_t *out_slot, uint32_t *out_pieces, sl_err *err)
{
    if (!options->address || !options->address[0] || strlen(options->address) >= KVT_ADDRESS_MAX)
        return sl_fail(err, SL_INVALID, "the address of the receiver is missing or too long");
    SL_TRY(shape_check(context, options->first_block, options->block_count, options->group_count,
                       out_pieces, err));
    uint32_t slot = KVT_SENDS_MAX;
    for (uint32_t i = KVT_SENDS_MAX; i-- > 0;) {
        if (!context->sends[i])
            slot = i;
        else if (kvt_nonce_equal(context->sends[i]->options.nonce, options->nonce))
            return sl_fail(err, SL_EXISTS, "this nonce is being sent already");
    }
    if (slot == KVT_SENDS_MAX)
        return sl_fail(err, SL_FULL, "%u transfers are being sent", KVT_SENDS_MAX);
    *out_slot = slot;
    return sl_ok();
}

sl_status kvt_send_open(kvt_context *context, const kvt_send_options *options, kvt_send **out_send,
                        sl_err *err)
{
    uint32_t slot = 0, pieces = 0;
    SL_TRY(send_check(context, options, &slot, &pieces, err));
    kvt_send *send = sl_alloc(1, sizeof *send, "kvt send");
    send->context = context;
    send->core = &context->core;
    send->slot = slot;
    send->options = *options;
    send->options.address = sl_strdup(options->address, "kvt address");
    send->piece_count = pieces;
    send->pieces = sl_alloc(pieces, sizeof *send->pieces, "kvt send pieces");
    send->announced = sl_alloc(pieces / 8 + 1, 1, "kvt send pieces");
    send->retry_head = send->retry_tail = KVT_NO_INDEX;
    send->report_head = send->report_tail = KVT_NO_INDEX;
    context->sends[slot] = send;
    context->pieces_open += pieces;
    command_push(context, &(context_command){.type = COMMAND_SEND_OPEN, .send = send});
    *out_send = send;
    return sl_ok();
}

/* Wakes the progress thread once for all calls since it last looked. Any thread. */
static void send_kick(kvt_send *send)
{
    if (atomic_exchange(&send->kicked, true))
        return;
    atomic_fetch_add(&send->core->kicks, 1);
    sl_mailbox_wake(send->context->commands);
}

sl_status kvt_send_announce(kvt_send *send, uint32_t block, uint32_t group, const void *data,
                            uint64_t bytes, uint64_t sum, sl_err *err)
{
    const kvt_send_options *options = &send->options;
    if (atomic_load_explicit(&send->ended, memory_order_acquire) || send->committed_final)
        return sl_fail(err, SL_CONFLICT, "the transfer has ended");
    if (block < options->first_block || block - options->first_block >= options->block_count ||
        group >= options->group_count)
        return sl_fail(err, SL_INVALID, "block %u group %u is not of this transfer", block, group);
    if (bytes == 0 || bytes > KVT_PIECE_BYTES_MAX)
        return sl_fail(err, SL_TOO_LARGE, "a piece has 1 to %llu bytes",
                       (unsigned long long)KVT_PIECE_BYTES_MAX);
    if (!region_holds(send->context, data, bytes))
        return sl_fail(err, SL_INVALID, "the piece lies in no region");
    uint32_t index = (block - options->first_block) * options->group_count + group;
    if (send->announced[index / 8] >> (index % 8) & 1)
        return sl_fail(err, SL_EXISTS, "block %u group %u was announced before", block, group);
    send->announced[index / 8] |= (uint8_t)(1u << (index % 8));
    sl_assert(send->announced_count < send->piece_count);
    send->pieces[send->announced_count++] = (kvt_send_piece){.data = data,
                                                             .sum = sum,
                                                             .bytes = (uint32_t)bytes,
                                                             .block = block,
                                                             .group = (uint16_t)group,
                                                             .next = KVT_NO_INDEX};
    /* Release: the progress thread sees the entry before the count. */
    atomic_store_explicit(&send->published, send->announced_count, memory_order_release);
    send_kick(send);
    return sl_ok();
}

static sl_status commit_check(const kvt_send *send, const kvt_commit *commit, sl_err *err)
{
    if (atomic_load_explicit(&send->ended, memory_order_acquire) || send->committed_final)
        return sl_fail(err, SL_CONFLICT, "the transfer has ended");
    if (commit->payload_bytes > KVT_PAYLOAD_MAX)
        return sl_fail(err, SL_TOO_LARGE, "a payload has at most %u bytes", KVT_PAYLOAD_MAX);
    if (commit->payload_bytes > 0 && !commit->payload)
        return sl_fail(err, SL_INVALID, "the payload is missing");
    if (commit->tokens < send->committed_tokens)
        return sl_fail(err, SL_INVALID, "a commit never names fewer tokens");
    if (commit->final && send->announced_count != send->piece_count)
        return sl_fail(err, SL_INVALID, "%u of %u pieces were announced before the final commit",
                       send->announced_count, send->piece_count);
    /* Acquire: freed slots were let go of by the progress thread. */
    uint32_t freed = atomic_load_explicit(&send->commits_freed, memory_order_acquire);
    uint64_t payload_freed = atomic_load_explicit(&send->payload_freed, memory_order_acquire);
    uint32_t room = KVT_COMMITS_OPEN_MAX - (commit->final ? 0 : 1);
    if (send->committed_count - freed >= room ||
        send->payload_committed - payload_freed + commit->payload_bytes > KVT_PAYLOAD_MAX)
        return sl_fail(err, SL_FULL, "too many commits are not yet acknowledged");
    return sl_ok();
}

sl_status kvt_send_commit(kvt_send *send, const kvt_commit *commit, sl_err *err)
{
    SL_TRY(commit_check(send, commit, err));
    kvt_commit_slot *slot = &send->commits[send->committed_count % KVT_COMMITS_OPEN_MAX];
    kvt_message message = {.type = KVT_MESSAGE_COMMIT, .nonce = send->options.nonce};
    message.commit = (kvt_commit_head){.sequence = send->committed_count,
                                       .pieces = send->announced_count,
                                       .tokens = commit->tokens,
                                       .final = commit->final,
                                       .payload = {commit->payload, commit->payload_bytes}};
    slot->size = KVT_WIRE_COMMIT_SIZE + commit->payload_bytes;
    slot->bytes = sl_alloc(1, slot->size, "kvt commit");
    size_t packed = kvt_wire_pack(&message, slot->bytes, slot->size);
    sl_assert(packed == slot->size);
    slot->payload_bytes = (uint32_t)commit->payload_bytes;
    slot->tokens = commit->tokens;
    slot->final = commit->final;
    send->committed_tokens = commit->tokens;
    send->committed_final = commit->final;
    send->payload_committed += commit->payload_bytes;
    send->committed_count++;
    atomic_store_explicit(&send->commits_published, send->committed_count, memory_order_release);
    send_kick(send);
    return sl_ok();
}

void kvt_send_cancel(kvt_send *send)
{
    if (send->cancel_asked || send->closed_delivered)
        return;
    send->cancel_asked = true;
    command_push(send->context, &(context_command){.type = COMMAND_SEND_CANCEL,
                                                   .slot = send->slot,
                                                   .nonce = send->options.nonce});
}

void kvt_send_release(kvt_send *send)
{
    if (!send)
        return;
    kvt_context *context = send->context;
    sl_assert(send->closed_delivered && context->sends[send->slot] == send);
    context->sends[send->slot] = NULL;
    context->pieces_open -= send->piece_count;
    send_free(send);
}

/* ---- receiving */

static sl_status recv_check(const kvt_context *context, const kvt_recv_options *options,
                            uint32_t *out_slot, uint32_t *out_pieces, sl_err *err)
{
    SL_TRY(shape_check(context, options->first_block, options->block_count, options->group_count,
                       out_pieces, err));
    if (!context->address[0])
        return sl_fail(err, SL_UNSUPPORTED, "this context does not listen");
    if (!options->slices || (options->block_count > 0 && !options->pages))
        return sl_fail(err, SL_INVALID, "pages or slices are missing");
    for (uint32_t group = 0; group < options->group_count; group++) {
        const kvt_piece_slice *slice = &options->slices[group];
        if (slice->bytes == 0 || slice->bytes > KVT_PIECE_BYTES_MAX || slice->offset >> 40)
            return sl_fail(err, SL_TOO_LARGE, "group %u has %llu bytes at %llu", group,
                           (unsigned long long)slice->bytes, (unsigned long long)slice->offset);
        for (uint32_t block = 0; block < options->block_count; block++) {
            const uint8_t *page = options->pages[block];
            if (!page || !region_holds(context, page + slice->offset, slice->bytes))
                return sl_fail(err, SL_INVALID, "group %u of page %u lies in no region", group,
                               block);
        }
    }
    uint32_t slot = KVT_RECVS_MAX;
    for (uint32_t i = KVT_RECVS_MAX; i-- > 0;) {
        if (!context->recvs[i])
            slot = i;
        else if (kvt_nonce_equal(context->recvs[i]->options.nonce, options->nonce))
            return sl_fail(err, SL_EXISTS, "this nonce is open already");
    }
    if (slot == KVT_RECVS_MAX)
        return sl_fail(err, SL_FULL, "%u transfers are being received", KVT_RECVS_MAX);
    *out_slot = slot;
    return sl_ok();
}

sl_status kvt_recv_open(kvt_context *context, const kvt_recv_options *options, kvt_recv **out_recv,
                        sl_err *err)
{
    uint32_t slot = 0, pieces = 0;
    SL_TRY(recv_check(context, options, &slot, &pieces, err));
    kvt_recv *recv = sl_alloc(1, sizeof *recv, "kvt recv");
    recv->context = context;
    recv->core = &context->core;
    recv->slot = slot;
    recv->options = *options;
    recv->piece_count = pieces;
    void **pages = sl_alloc(options->block_count, sizeof *pages, "kvt recv pages");
    if (options->block_count > 0)
        memcpy(pages, options->pages, options->block_count * sizeof *pages);
    recv->options.pages = pages;
    kvt_piece_slice *slices = sl_alloc(options->group_count, sizeof *slices, "kvt recv pages");
    memcpy(slices, options->slices, options->group_count * sizeof *slices);
    recv->options.slices = slices;
    recv->pieces = sl_alloc(pieces, sizeof *recv->pieces, "kvt recv pieces");
    recv->seen = sl_alloc(pieces / 64 + 1, sizeof(uint64_t), "kvt recv pieces");
    recv->verified = sl_alloc(pieces / 64 + 1, sizeof(uint64_t), "kvt recv pieces");
    recv->report_head = recv->report_tail = KVT_NO_INDEX;
    context->recvs[slot] = recv;
    context->pieces_open += pieces;
    bool pushed = sl_ring_push(context->opens, &recv);
    sl_assert(pushed);
    sl_mailbox_wake(context->commands);
    *out_recv = recv;
    return sl_ok();
}

void kvt_recv_revoke(kvt_recv *recv)
{
    if (recv->revoke_asked || recv->closed_delivered)
        return;
    recv->revoke_asked = true;
    command_push(recv->context, &(context_command){.type = COMMAND_RECV_REVOKE,
                                                   .slot = recv->slot,
                                                   .nonce = recv->options.nonce});
}

void kvt_recv_release(kvt_recv *recv)
{
    if (!recv)
        return;
    kvt_context *context = recv->context;
    sl_assert(recv->closed_delivered && context->recvs[recv->slot] == recv);
    context->recvs[recv->slot] = NULL;
    context->pieces_open -= recv->piece_count;
    recv_free(recv);
}

/* ---- numbers */

void kvt_stats_get(const kvt_context *context, kvt_stats *out_stats)
{
    const kvt_counters *from = &context->core.counters;
#define READ(field) out_stats->field = atomic_load_explicit(&from->field, memory_order_relaxed)
    READ(sends_open);
    READ(recvs_open);
    READ(peers_open);
    READ(requests_open);
    READ(recvs_quarantined);
    READ(requests_abandoned);
    READ(restarts);
    READ(restarts_deaf);
    READ(probes_heard);
    READ(pieces_sent);
    READ(bytes_sent);
    READ(pieces_received);
    READ(bytes_received);
    READ(pieces_refused);
    READ(sum_mismatches);
    READ(messages_invalid);
    READ(closes_forced);
    READ(window_bytes_peak);
    READ(events_full);
    READ(pieces_local);
#undef READ
}

size_t kvt_peers_get(const kvt_context *context, kvt_peer_stats *out_peers, size_t capacity)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&context->core.peers_lock;
    size_t count = 0;
    pthread_mutex_lock(lock);
    for (uint32_t i = 0; i < KVT_PEERS_MAX && count < capacity; i++) {
        const kvt_peer *peer = &context->core.peers[i];
        if (!peer->listed)
            continue;
        kvt_peer_stats *out = &out_peers[count++];
        memcpy(out->name, peer->name, sizeof out->name);
        out->outgoing = peer->outgoing;
        out->transfers_open = atomic_load_explicit(&peer->transfers, memory_order_relaxed);
        out->pieces = atomic_load_explicit(&peer->pieces, memory_order_relaxed);
        out->bytes = atomic_load_explicit(&peer->bytes, memory_order_relaxed);
    }
    pthread_mutex_unlock(lock);
    return count;
}
