/* Inside of the simulated gRPC: connections, frames, the two halves of a call.
 *
 * A connection is one TCP stream: what one end sends arrives at the other in order, late, or not
 * before it breaks. An end breaks it when it closes, dies (its kernel sends a reset, unless the
 * machine went with it) or hears nothing for the keep-alive's time. Frames of a call wait at their
 * sender while the receiver has not consumed RPC_STREAM_LOOKAHEAD_BYTES of it. */
#ifndef TESTS_SIM_RPC_H
#define TESTS_SIM_RPC_H

#include "rpc/rpc.h"
#include "tests/sim/world.h"

/* rpc/message.c's, which is not in a header of its own. */
void rpc_message_release(ProtobufCMessage *message);

typedef enum sim_side { SIM_CLIENT, SIM_SERVER } sim_side;

typedef enum sim_frame_kind {
    SIM_FRAME_BEGIN, /* of a call; with the request, if it has one */
    SIM_FRAME_DATA,
    SIM_FRAME_HALF_CLOSE,
    SIM_FRAME_STATUS,
    SIM_FRAME_CANCEL, /* either side ends the call at once */
    SIM_FRAME_CREDIT, /* bytes were consumed */
    SIM_FRAME_RESET,  /* the other end of the connection is gone */
} sim_frame_kind;

typedef struct sim_call sim_call;
typedef struct sim_conn sim_conn;

typedef struct sim_frame {
    struct sim_frame *next;
    sim_conn *conn; /* both referenced */
    sim_call *call; /* NULL: RESET */
    sim_side to;
    sim_frame_kind kind;
    sl_time_ns due;
    uint8_t *bytes;
    size_t size;
    sl_code code;
    char *text;
} sim_frame;

typedef struct sim_frames {
    sim_frame *first, *last;
    uint32_t count;
} sim_frames;

typedef struct sim_end { /* of a connection */
    sim_process *process;
    uint32_t life; /* of the process */
    bool open;
    sim_frames on_the_way;    /* to this end */
    sl_time_ns unheard_since; /* SL_NEVER: the other end can be heard */
} sim_end;

struct sim_conn {
    sim_conn *prev, *next;
    uint32_t refs;
    sim_end ends[2];
    rpc_channel *channel; /* NULL: it was destroyed */
    rpc_server *server;   /* NULL: not accepted, or closed */
    bool accepted;
    char target[SIM_NAME_MAX];
    sl_time_ns since;
    uint32_t keepalive_ms;
};

/* What one half of a call has to send. */
typedef struct sim_out {
    sim_frames waiting;
    size_t in_flight; /* bytes that the other half has not consumed */
    size_t messages_max, bytes_max, bytes_waiting;
    bool refused; /* a write found it full */
} sim_out;

/* What came for a half and it has not taken. */
typedef struct sim_in {
    sim_frames held; /* while it is paused */
    size_t consumed; /* and not told */
    bool paused;
} sim_in;

struct rpc_call {
    sim_call *base;
    rpc_call *prev, *next; /* of the channel */
    rpc_channel *channel;
    bool open; /* the end was not told */
    bool told_open;
    bool ending; /* its end is on the way to the loop */
    bool writes_done;
    rpc_stream_events events;
    rpc_done_fn on_done; /* unary */
    ProtobufCMessage *reply;
    void *context;
    sl_time_ns deadline; /* virtual time */
    sim_out out;
    sim_in in;
    sl_err end; /* what its end will say */
};

struct rpc_server_call {
    sim_call *base;
    rpc_server_call *prev, *next; /* of the server */
    rpc_server *server;
    bool open; /* on_closed was not called */
    bool ending, cancelled;
    bool finished; /* a status was given */
    rpc_server_call_events events;
    void *context;
    ProtobufCMessage *request;
    struct sim_watcher *watcher; /* Health.Watch */
    sim_out out;
    sim_in in;
};

struct sim_call {
    uint32_t refs;
    const rpc_method *method;
    sim_conn *conn;
    rpc_call client;
    rpc_server_call server;
};

/* ---- rpc_net.c */
sim_conn *sim_conn_open(rpc_channel *channel, sim_process *from, const char *target,
                        uint32_t keepalive_ms);
void sim_conn_ref(sim_conn *conn);
void sim_conn_unref(sim_conn *conn);
/* This end ends; the other hears of it as far as the network lets it. */
void sim_conn_close(sim_conn *conn, sim_side side);
void sim_conn_send(sim_conn *conn, sim_frame *frame);
/* Looks at all connections for ends that hear nothing, every half second. */
void sim_net_start(void);
void sim_net_fini(void);
/* Both ends of the process, with a reset for the others; for a process that dies. */
void sim_net_break(sim_process *process);
/* The connections between two processes that live, for both ends; lossy: with all that is on the
 * way. */
void sim_net_reset(const sim_process *a, const sim_process *b, bool lossy);
/* The channel is destroyed: its calls are dropped already. */
void sim_net_forget(const rpc_channel *channel);
sim_frame *sim_frame_new(sim_call *call, sim_side to, sim_frame_kind kind);
void sim_frame_free(sim_frame *frame);
void sim_frames_push(sim_frames *list, sim_frame *frame);
sim_frame *sim_frames_pop(sim_frames *list);
void sim_frames_clear(sim_frames *list);
void sim_call_ref(sim_call *call);
void sim_call_unref(sim_call *call);
/* Packs and queues; sends what the window allows. */
sl_status sim_out_write(sim_call *call, sim_side from, const ProtobufCMessage *message);
void sim_out_push(sim_call *call, sim_side from, sim_frame *frame);
void sim_out_credit(sim_call *call, sim_side from, size_t bytes);
/* The half took a message of so many bytes. */
void sim_in_consumed(sim_call *call, sim_side at, size_t bytes);

/* ---- rpc_client.c */
void sim_client_frame(sim_frame *frame);
void sim_client_lost(rpc_channel *channel, sim_conn *conn, const char *why);
void sim_client_writable(sim_call *call);

/* ---- rpc_server.c */
/* NULL: nobody listens there. */
rpc_server *sim_server_at(sim_process *process, const char *address);
void sim_server_frame(sim_frame *frame);
void sim_server_lost(rpc_server *server, sim_conn *conn);
void sim_server_writable(sim_call *call);
void sim_server_status_sent(sim_call *call);

#endif
