/* The simulated HTTP: exchanges between modelled clients and a router, without sockets or bytes of
 * HTTP. The client's side is here, the router's is router/http_server.h. */
#ifndef TESTS_SIM_HTTP_H
#define TESTS_SIM_HTTP_H

#include "router/http_server.h"
#include "tests/sim/world.h"

typedef struct sim_http sim_http;

/* What a client hears; `request` as given. In order; end or broken comes last, once. */
typedef struct sim_http_client {
    void (*on_data)(void *request, const char *data, size_t size);
    void (*on_end)(void *request, int status);
    void (*on_broken)(void *request); /* the router is gone */
} sim_http_client;

/* false: the router is not there. bytes_a_second: how fast the client reads; 0 = at once. */
typedef struct sim_http_call sim_http_call;
sim_http_call *sim_http_post(sim_process *router, const char *path, const char *body,
                             uint64_t bytes_a_second, const sim_http_client *client, void *request);
/* The client goes away; nothing is heard any more. */
void sim_http_hang_up(sim_http_call *call);

#endif
