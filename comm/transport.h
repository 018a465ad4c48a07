/* Between the group and what carries its messages. Internal to comm/.
 *
 * A transport has one link to each other rank and delivers whole messages in order on each; it
 * calls the group back from its progress only. Thread: the group's. */
#ifndef COMM_TRANSPORT_H
#define COMM_TRANSPORT_H

#include "comm/wire.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct com_transport com_transport;

struct com_backend {
    /* Listens; com_group_* below are called with `group`. */
    sl_status (*open)(const com_options *options, com_group *group, com_transport **out_transport,
                      sl_err *err);
    void (*close)(com_transport *transport);
    const char *(*address)(const com_transport *transport);
    /* Begins a link to `rank`; what fails later comes as com_group_broken. */
    sl_status (*connect)(com_transport *transport, uint32_t rank, const char *address, sl_err *err);
    /* head is copied; data is borrowed until com_group_sent. A rank without link: sent at once. */
    void (*send)(com_transport *transport, uint32_t rank, const uint8_t head[COM_WIRE_SIZE],
                 const void *data, uint64_t bytes);
    bool (*progress)(com_transport *transport); /* something happened */
    int (*fd)(const com_transport *transport);
    bool (*arm)(com_transport *transport); /* false: progress first */
    /* Ends all links; nothing that was sent or received on them touches memory afterwards. */
    void (*reset)(com_transport *transport);
};

/* A hello. true: whoever sent it is from now on the link to the rank it names; false: close it. */
bool com_group_hello(com_group *group, const com_wire *wire);
/* Any other message, of which wire->bytes follow: where they go, NULL = nobody wants it. */
void *com_group_arrive(com_group *group, const com_wire *wire);
/* All of it is in its place. */
void com_group_arrived(com_group *group, const com_wire *wire);
/* Of one com_backend.send. */
void com_group_sent(com_group *group);
/* The link to `rank` is gone, or somebody sent what is no message (rank COM_RANKS_MAX). */
void com_group_broken(com_group *group, uint32_t rank, const char *text);

#ifdef __cplusplus
}
#endif
#endif
