/* Connections and frames of the simulated gRPC: see rpc.h. Owns both; a frame names its connection
 * and its call by references, so that whatever ends first may. */
#include "tests/sim/rpc.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"

#define SWEEP_NS       (500 * SL_MS_NS)
#define CREDIT_BYTES   (RPC_STREAM_LOOKAHEAD_BYTES / 2)
#define RETRANSMIT_NS  (200 * SL_MS_NS)
#define FRAME_OVERHEAD 16u

static sim_conn *conns;

static sim_side other(sim_side side)
{
    return side == SIM_CLIENT ? SIM_SERVER : SIM_CLIENT;
}

/* ---- references */

void sim_conn_ref(sim_conn *conn)
{
    conn->refs++;
}

void sim_conn_unref(sim_conn *conn)
{
    sl_assert(conn->refs > 0);
    if (--conn->refs > 0)
        return;
    if (conn->prev)
        conn->prev->next = conn->next;
    else
        conns = conn->next;
    if (conn->next)
        conn->next->prev = conn->prev;
    sl_free(conn);
}

void sim_call_ref(sim_call *call)
{
    call->refs++;
}

void sim_call_unref(sim_call *call)
{
    sl_assert(call->refs > 0);
    if (--call->refs > 0)
        return;
    sim_conn_unref(call->conn);
    sl_free(call);
}

sim_frame *sim_frame_new(sim_call *call, sim_side to, sim_frame_kind kind)
{
    sim_frame *frame = sl_alloc(1, sizeof(*frame), "sim frame");
    *frame = (sim_frame){.conn = call->conn, .call = call, .to = to, .kind = kind};
    sim_call_ref(call);
    sim_conn_ref(call->conn);
    return frame;
}

void sim_frame_free(sim_frame *frame)
{
    if (frame->call)
        sim_call_unref(frame->call);
    sim_conn_unref(frame->conn);
    sl_free(frame->bytes);
    sl_free(frame->text);
    sl_free(frame);
}

void sim_frames_push(sim_frames *list, sim_frame *frame)
{
    frame->next = NULL;
    if (list->last)
        list->last->next = frame;
    else
        list->first = frame;
    list->last = frame;
    list->count++;
}

sim_frame *sim_frames_pop(sim_frames *list)
{
    sim_frame *frame = list->first;
    if (!frame)
        return NULL;
    list->first = frame->next;
    if (!list->first)
        list->last = NULL;
    list->count--;
    return frame;
}

void sim_frames_clear(sim_frames *list)
{
    for (sim_frame *frame; (frame = sim_frames_pop(list));)
        sim_frame_free(frame);
}

/* ---- on the way */

static void on_arrival(void *context, uint64_t side);

static bool is_cut(const sim_conn *conn, sim_side to)
{
    const sim_process *a = conn->ends[other(to)].process, *b = conn->ends[to].process;
    return a && b && sim.cut[a->index][b->index];
}

static void schedule(sim_conn *conn, sim_side to, sl_time_ns at)
{
    sim_conn_ref(conn);
    sim_post(at, on_arrival, conn, to);
}

static void put_on_way(sim_conn *conn, sim_frame *frame)
{
    sim_frames *way = &conn->ends[frame->to].on_the_way;
    frame->due = sim.now + sim.skew + sim_between(sim.delay_min_ns, sim.delay_max_ns);
    if (sim_chance(sim.loss_ppm))
        frame->due += RETRANSMIT_NS;
    sim_frames_push(way, frame);
    if (way->count == 1)
        schedule(conn, frame->to, frame->due);
}

void sim_conn_send(sim_conn *conn, sim_frame *frame)
{
    sim_end *from = &conn->ends[other(frame->to)];
    if (!from->open || (from->process && from->process->dying)) {
        sim_frame_free(frame);
        return;
    }
    put_on_way(conn, frame);
}

static void send_reset(sim_conn *conn, sim_side to)
{
    sim_frame *frame = sl_alloc(1, sizeof(*frame), "sim frame");
    *frame = (sim_frame){.conn = conn, .to = to, .kind = SIM_FRAME_RESET};
    sim_conn_ref(conn);
    put_on_way(conn, frame);
}

/* The kernel of the machine at `to` takes the first frame: is there a listener? */
static void take_connection(sim_conn *conn)
{
    sim_end *end = &conn->ends[SIM_SERVER];
    conn->server = end->process && end->process->alive && !end->process->dying
                       ? sim_server_at(end->process, conn->target)
                       : NULL;
    if (!conn->server)
        return;
    conn->accepted = end->open = true;
    end->life = end->process->life;
}

/* ---- ends */

static void end_lost(sim_conn *conn, sim_side side, const char *why)
{
    if (side == SIM_CLIENT && conn->channel)
        sim_client_lost(conn->channel, conn, why);
    if (side == SIM_SERVER && conn->server)
        sim_server_lost(conn->server, conn);
}

typedef struct lost_note {
    sim_conn *conn;
    sim_side side;
} lost_note;

static void lost_drop(void *context)
{
    lost_note *note = context;
    sim_conn_unref(note->conn);
    sl_free(note);
}

static void lost_run(void *context)
{
    const lost_note *note = context;
    end_lost(note->conn, note->side, "keep-alive: nothing is heard of it");
    lost_drop(context);
}

void sim_conn_close(sim_conn *conn, sim_side side)
{
    sim_end *end = &conn->ends[side];
    if (!end->open)
        return;
    end->open = false;
    if (!end->process->dying || !end->process->silent)
        send_reset(conn, other(side));
}

static void frame_drop(void *context)
{
    sim_frame_free(context);
}

/* In a pass of the receiver's loop. */
static void frame_run(void *context)
{
    sim_frame *frame = context;
    sim_conn *conn = frame->conn;
    if (frame->kind == SIM_FRAME_RESET) {
        bool was_open = conn->ends[frame->to].open;
        conn->ends[frame->to].open = false;
        if (was_open)
            end_lost(conn, frame->to, "connection reset");
    } else if (conn->ends[frame->to].open) {
        if (frame->to == SIM_CLIENT)
            sim_client_frame(frame);
        else
            sim_server_frame(frame);
        return; /* they free it, or hold it */
    }
    sim_frame_free(frame);
}

static bool is_silent(const sim_process *process)
{
    return process && !process->alive && process->silent;
}

static void on_arrival(void *context, uint64_t tag)
{
    sim_conn *conn = context;
    sim_side to = (sim_side)tag;
    sim_end *end = &conn->ends[to];
    sim_frame *head = end->on_the_way.first;
    if (head && !conn->ends[SIM_CLIENT].open && !conn->accepted) {
        sim_frames_clear(&end->on_the_way); /* it was given up before it began */
    } else if (head && head->due > sim.now) {
        schedule(conn, to, head->due);
    } else if (head && is_cut(conn, to)) {
        schedule(conn, to, sim.now + sim_between(RETRANSMIT_NS / 4, RETRANSMIT_NS));
    } else if (head && to == SIM_SERVER && !conn->accepted && is_silent(end->process)) {
        schedule(conn, to, sim.now + RETRANSMIT_NS); /* no connection: nothing was sent yet */
    } else if (head) {
        (void)sim_frames_pop(&end->on_the_way);
        if (to == SIM_SERVER && !conn->accepted && head->kind != SIM_FRAME_RESET)
            take_connection(conn);
        bool there = end->open && end->process && end->process->alive &&
                     end->life == end->process->life && !end->process->dying;
        if (there) {
            sim_deliver(end->process, frame_run, frame_drop, head);
        } else {
            if (!is_silent(end->process) && head->kind != SIM_FRAME_RESET &&
                conn->ends[other(to)].open)
                send_reset(conn, other(to));
            sim_frame_free(head);
        }
        if (end->on_the_way.first)
            schedule(conn, to, end->on_the_way.first->due);
    }
    sim_conn_unref(conn);
}

sim_conn *sim_conn_open(rpc_channel *channel, sim_process *from, const char *target,
                        uint32_t keepalive_ms)
{
    sim_conn *conn = sl_alloc(1, sizeof(*conn), "sim connection");
    conn->refs = 1; /* the channel's */
    conn->channel = channel;
    conn->since = sim.now;
    conn->keepalive_ms = keepalive_ms;
    snprintf(conn->target, sizeof(conn->target), "%s", target);
    conn->ends[SIM_CLIENT] =
        (sim_end){.process = from, .life = from->life, .open = true, .unheard_since = SL_NEVER};
    conn->ends[SIM_SERVER] =
        (sim_end){.process = sim_process_at(target), .unheard_since = SL_NEVER};
    conn->next = conns;
    if (conns)
        conns->prev = conn;
    conns = conn;
    return conn;
}

/* ---- who hears nothing */

static bool hears(const sim_conn *conn, sim_side side)
{
    const sim_end *far = &conn->ends[other(side)];
    if (side == SIM_CLIENT && !conn->accepted)
        return false;
    bool gone = is_silent(far->process) || far->process->life != far->life;
    return !is_cut(conn, SIM_CLIENT) && !is_cut(conn, SIM_SERVER) && !far->process->paused && !gone;
}

static void sweep_end(sim_conn *conn, sim_side side)
{
    sim_end *end = &conn->ends[side];
    if (!end->open || !end->process->alive || end->process->paused)
        return;
    if (hears(conn, side)) {
        end->unheard_since = SL_NEVER;
        return;
    }
    if (end->unheard_since == SL_NEVER)
        end->unheard_since = sim.now;
    uint64_t limit_ms = conn->accepted ? conn->keepalive_ms : RPC_CONNECT_TIMEOUT_MS;
    if (sim.now - end->unheard_since < limit_ms * SL_MS_NS)
        return;
    sim_conn_close(conn, side);
    lost_note *note = sl_alloc(1, sizeof(*note), "sim note");
    *note = (lost_note){conn, side};
    sim_conn_ref(conn);
    sim_deliver(end->process, lost_run, lost_drop, note);
}

static void on_sweep(void *context, uint64_t tag)
{
    for (sim_conn *conn = conns, *next; conn; conn = next) {
        sim_conn_ref(conn);
        sweep_end(conn, SIM_CLIENT);
        sweep_end(conn, SIM_SERVER);
        next = conn->next;
        sim_conn_unref(conn);
    }
    if (!sim.ended)
        sim_post(sim.now + SWEEP_NS, on_sweep, NULL, 0);
}

void sim_net_start(void)
{
    sim_post(sim.now + SWEEP_NS, on_sweep, NULL, 0);
}

void sim_net_break(sim_process *process)
{
    for (sim_conn *conn = conns, *next; conn; conn = next) {
        sim_conn_ref(conn);
        for (int side = SIM_CLIENT; side <= SIM_SERVER; side++)
            if (conn->ends[side].process == process && conn->ends[side].open)
                sim_conn_close(conn, (sim_side)side);
        if (conn->ends[SIM_SERVER].process == process)
            conn->server = NULL;
        next = conn->next;
        sim_conn_unref(conn);
    }
}

void sim_net_reset(const sim_process *a, const sim_process *b, bool lossy)
{
    sim_trace("connections of %s and %s are reset%s", a->name, b->name, lossy ? ", lossy" : "");
    for (sim_conn *conn = conns, *next; conn; conn = next) {
        sim_end *ends = conn->ends;
        sim_conn_ref(conn);
        bool theirs = (ends[SIM_CLIENT].process == a && ends[SIM_SERVER].process == b) ||
                      (ends[SIM_CLIENT].process == b && ends[SIM_SERVER].process == a);
        for (int side = SIM_CLIENT; side <= SIM_SERVER && theirs && conn->accepted; side++) {
            if (lossy)
                sim_frames_clear(&ends[side].on_the_way);
            if (ends[side].open)
                send_reset(conn, (sim_side)side);
        }
        next = conn->next;
        sim_conn_unref(conn);
    }
}

void sim_net_forget(const rpc_channel *channel)
{
    for (sim_conn *conn = conns; conn; conn = conn->next)
        if (conn->channel == channel)
            conn->channel = NULL;
}

/* Once nobody runs any more. */
void sim_net_fini(void)
{
    for (sim_conn *conn = conns, *next; conn; conn = next) {
        sim_conn_ref(conn);
        sim_frames_clear(&conn->ends[SIM_CLIENT].on_the_way);
        sim_frames_clear(&conn->ends[SIM_SERVER].on_the_way);
        next = conn->next;
        sim_conn_unref(conn);
    }
    conns = NULL;
}

/* ---- what a half sends and takes */

static sim_out *out_of(sim_call *call, sim_side side)
{
    return side == SIM_CLIENT ? &call->client.out : &call->server.out;
}

static void pump(sim_call *call, sim_side from)
{
    sim_out *out = out_of(call, from);
    while (out->waiting.first) {
        sim_frame *frame = out->waiting.first;
        bool counted = frame->kind == SIM_FRAME_DATA;
        if (counted && out->in_flight > 0 &&
            out->in_flight + frame->size > RPC_STREAM_LOOKAHEAD_BYTES)
            break;
        (void)sim_frames_pop(&out->waiting);
        if (counted) {
            out->in_flight += frame->size + FRAME_OVERHEAD;
            out->bytes_waiting -= frame->size;
        }
        bool status = frame->kind == SIM_FRAME_STATUS;
        sim_conn_send(call->conn, frame);
        if (status)
            sim_server_status_sent(call);
    }
    if (!out->refused || out->waiting.count * 2 > out->messages_max ||
        out->bytes_waiting * 2 > out->bytes_max)
        return;
    out->refused = false;
    if (from == SIM_CLIENT)
        sim_client_writable(call);
    else
        sim_server_writable(call);
}

void sim_out_push(sim_call *call, sim_side from, sim_frame *frame)
{
    sim_frames_push(&out_of(call, from)->waiting, frame);
    pump(call, from);
}

sl_status sim_out_write(sim_call *call, sim_side from, const ProtobufCMessage *message)
{
    sim_out *out = out_of(call, from);
    size_t size = protobuf_c_message_get_packed_size(message);
    if (size > RPC_MESSAGE_BYTES_MAX)
        return (sl_status){SL_TOO_LARGE};
    if (out->waiting.count >= out->messages_max || out->bytes_waiting + size > out->bytes_max) {
        out->refused = true;
        return (sl_status){SL_FULL};
    }
    sim_frame *frame = sim_frame_new(call, other(from), SIM_FRAME_DATA);
    frame->bytes = sl_alloc(size + 1, 1, "sim frame bytes");
    frame->size = protobuf_c_message_pack(message, frame->bytes);
    out->bytes_waiting += size;
    sim_out_push(call, from, frame);
    return sl_ok();
}

void sim_out_credit(sim_call *call, sim_side from, size_t bytes)
{
    sim_out *out = out_of(call, from);
    sl_assert(bytes <= out->in_flight);
    out->in_flight -= bytes;
    pump(call, from);
}

void sim_in_consumed(sim_call *call, sim_side at, size_t bytes)
{
    sim_in *in = at == SIM_CLIENT ? &call->client.in : &call->server.in;
    in->consumed += bytes + FRAME_OVERHEAD;
    if (in->consumed < CREDIT_BYTES)
        return;
    sim_frame *frame = sim_frame_new(call, other(at), SIM_FRAME_CREDIT);
    frame->size = in->consumed;
    in->consumed = 0;
    sim_conn_send(call->conn, frame);
}
