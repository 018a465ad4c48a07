/* A message of this process to itself, by shared memory: a worker of its own, and an endpoint of
 * it by the other worker's address. Owns both; the context is ucx.c's. */
#include "kvtransfer/probe.h"

#include <string.h>

#include "base/assert.h"
#include "base/rng.h"

static bool probe_open(kvt_probe *probe, ucp_worker_h worker)
{
    ucp_worker_params_t params = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                  .thread_mode = UCS_THREAD_MODE_SINGLE};
    ucp_ep_params_t to = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS};
    ucp_address_t *address;
    size_t size;
    if (!probe->context || ucp_worker_get_address(worker, &address, &size) != UCS_OK)
        return false;
    to.address = address;
    bool open = ucp_worker_create(probe->context, &params, &probe->worker) == UCS_OK &&
                ucp_ep_create(probe->worker, &to, &probe->endpoint) == UCS_OK;
    ucp_worker_release_address(worker, address);
    return open;
}

bool kvt_probe_begin(kvt_probe *probe, ucp_worker_h worker, unsigned id)
{
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS,
                                 .flags = UCP_AM_SEND_FLAG_EAGER};
    sl_assert(!probe->under_way);
    if (!probe->worker && !probe_open(probe, worker)) {
        kvt_probe_reset(probe);
        return false;
    }
    probe->word = sl_random_u64(); /* UCX may need it until it was heard, or the worker is gone */
    void *sent =
        ucp_am_send_nbx(probe->endpoint, id, NULL, 0, &probe->word, sizeof probe->word, &param);
    if (UCS_PTR_IS_ERR(sent)) {
        kvt_probe_reset(probe);
        return false;
    }
    if (sent)
        ucp_request_free(sent); /* when it ends */
    probe->under_way = true;
    kvt_probe_progress(probe);
    return true;
}

void kvt_probe_progress(kvt_probe *probe)
{
    if (probe->under_way)
        ucp_worker_progress(probe->worker);
}

bool kvt_probe_hear(kvt_probe *probe, const void *data, size_t size)
{
    if (!probe->under_way || size != sizeof probe->word || memcmp(data, &probe->word, size) != 0)
        return false;
    probe->under_way = false;
    return true;
}

void kvt_probe_reset(kvt_probe *probe)
{
    if (probe->worker)
        ucp_worker_destroy(probe->worker);
    probe->worker = NULL;
    probe->endpoint = NULL;
    probe->under_way = false;
}
