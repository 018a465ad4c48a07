/* Inside of the HTTP server: what http_server.c (connections) and http_answer.c (answers) share. */
#ifndef ROUTER_HTTP_CONN_H
#define ROUTER_HTTP_CONN_H

#include "router/http_server.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum rtr_conn_state {
    RTR_CONN_READ,    /* waiting for a request, or inside one */
    RTR_CONN_SERVE,   /* the handler has it */
    RTR_CONN_CLOSING, /* the last answer is being written */
    RTR_CONN_LINGER,  /* written; input is discarded until the peer closes */
} rtr_conn_state;

struct rtr_http_exchange {
    rtr_http_server *server;
    rtr_http_exchange *prev, *next;
    rtr_http_exchange *dirty_next;
    int fd;
    sl_watch *watch;
    uint32_t events; /* what the watch has */
    rtr_conn_state state;
    sl_time_ns deadline;
    rtr_http_parser parser;
    sl_buf input; /* read, not yet parsed */
    sl_buf body;
    sl_buf output;
    size_t output_at; /* written so far */
    uint64_t discarded;
    bool dirty;       /* on the server's dirty list */
    bool keep_alive;  /* after this answer */
    bool read_closed; /* the peer ended its side */
    bool head_sent;   /* of the answer */
    bool streaming;
    bool chunked;
    bool event_stream; /* comments may be sent */
    bool blocked;      /* the kernel's buffer is full: waiting for EPOLLOUT */
    bool above_high;
    bool broken; /* must be closed at the next safe place */
    const rtr_http_owner_ops *ops;
    void *owner;
};

struct rtr_http_server {
    sl_loop *loop;
    rtr_http_server_options options;
    sl_watch *listener;
    sl_timer *tick;
    sl_timer *accept_pause;
    int reserve_fd; /* given up to refuse a connection when descriptors run out */
    bool listening;
    bool leaving, stopped;
    bool flushing;
    uint32_t connection_count;
    uint64_t body_bytes;
    rtr_http_exchange *connections;
    rtr_http_exchange *dirty;
    char read_buffer[RTR_HTTP_READ_BYTES];
};

/* Puts the connection on the list of those to flush. */
void rtr_conn_mark_dirty(rtr_http_exchange *conn);
/* An answer that ends the connection, from inside the server (parse errors). */
void rtr_conn_fail(rtr_http_exchange *conn, int status, const char *message);

#ifdef __cplusplus
}
#endif
#endif
