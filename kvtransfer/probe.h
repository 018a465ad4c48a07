/* Does a worker still hear who speaks to it by shared memory? Another worker of this process tells
 * it a word; its handler asks here whether what it heard is that.
 *
 * UCX reads the FIFO of shared memory in order: a place that a process took, and died before it
 * filled it, is the last that is looked at (README.md, traps). Nothing of UCX shows that.
 * Progress thread; never blocks. */
#ifndef KVTRANSFER_PROBE_H
#define KVTRANSFER_PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ucp/api/ucp.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvt_probe {
    ucp_context_h context; /* of shared memory alone, the owner's; NULL: there is none */
    ucp_worker_h worker;   /* kept from probe to probe: making it takes ms; NULL: none yet */
    ucp_ep_h endpoint;     /* to the worker that is probed */
    uint64_t word;         /* another each time */
    bool under_way;
} kvt_probe;

/* By active message `id` to `worker`, the same until the next reset. False: it cannot be reached
 * so. None may be under way. */
bool kvt_probe_begin(kvt_probe *probe, ucp_worker_h worker, unsigned id);
void kvt_probe_progress(kvt_probe *probe);
/* Something came as active message `id`. True: it is what was said, and the probe has ended. */
bool kvt_probe_hear(kvt_probe *probe, const void *data, size_t size);
/* Ends one under way. Before the probed worker is destroyed. */
void kvt_probe_reset(kvt_probe *probe);

#ifdef __cplusplus
}
#endif
#endif
