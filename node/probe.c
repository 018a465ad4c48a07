/* See probe.h. Nothing here is left open: between this and the real thing another process may come,
 * which is told then. Thread: as declared. */
#include "node/probe.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/net.h"
#include "cluster/claim.h"
#include "cluster/trust.h"
#include "engine/cache.h"

void nod_engine_options(const nod_options *options, eng_options *out_options)
{
    int64_t rows = options->chunk_tokens > options->max_sequences ? options->chunk_tokens
                                                                  : options->max_sequences;
    rows += options->max_sequences * options->mtp_depth; /* in any role: it may change */
    *out_options = (eng_options){
        .kv_bytes = options->kv_memory,
        .layer_group = (int)options->layer_group,
        .sequences_max = (int)(options->max_sequences + options->queue_max),
        .rows_max = rows < (int64_t)ENG_BATCH_ROWS_MAX ? (int)rows : (int)ENG_BATCH_ROWS_MAX,
        .micro_batch_rows =
            options->ep_micro_batch ? (uint32_t)options->ep_micro_batch : UINT32_MAX,
        .context_max = (uint32_t)options->context_max,
        .threads = (int)options->threads,
        .weights_version = (uint32_t)options->weights_version,
        .overcommit_percent = (uint32_t)(options->kv_overcommit * 100.0 + 0.5),
    };
}

static sl_status probe_trust(const nod_options *options, sl_err *err)
{
    clu_trust *trust;
    SL_TRY(clu_trust_open(&options->trust, &trust, err));
    sl_status status = clu_trust_check_role(trust, RPC_ROLE_NODE, err);
    clu_trust_close(trust);
    return status;
}

static sl_status probe_disk(const nod_options *options, sl_err *err)
{
    char path[NOD_PATH_MAX];
    uint64_t bytes;
    if (!options->kv_disk)
        return sl_ok();
    SL_TRY(nod_kv_disk_parse(options->kv_disk, path, &bytes, err));
    char *slash = strrchr(path, '/');
    if (slash)
        slash[slash == path] = '\0';
    const char *folder = slash ? path : ".";
    if (access(folder, W_OK | X_OK) != 0)
        return sl_fail(err, SL_IO, "--kv-disk %s: cannot write into %s: %s", options->kv_disk,
                       folder, strerror(errno));
    return sl_ok();
}

sl_status nod_probe(const void *target, sl_err *err)
{
    const nod_options *options = target;
    const eng_model_options model = {
        .dir = options->model,
        .backend = options->backend == NOD_BACKEND_CUDA ? ENG_BACKEND_CUDA : ENG_BACKEND_CPU,
        .ep_rank = (uint32_t)options->ep_rank,
        .ep_size = (uint32_t)options->ep_size,
    };
    eng_options engine;
    nod_engine_options(options, &engine);
    SL_TRY(probe_trust(options, err));
    SL_TRY(probe_disk(options, err));
    return eng_options_check(&model, &engine, err);
}

static sl_status probe_address(const char *text, const char *option, sl_err *err)
{
    char bound[SL_ADDRESS_TEXT_MAX];
    int fd;
    SL_TRY(sl_wrap(err, sl_net_listen(text, false, &fd, bound, err), "%s", option));
    close(fd);
    return sl_ok();
}

sl_status nod_probe_addresses(const nod_options *options, sl_err *err)
{
    SL_TRY(probe_address(options->control, "--control", err));
    SL_TRY(probe_address(options->metrics, "--metrics", err));
    return probe_address(options->kv_listen, "--kv-listen", err);
}

sl_status nod_probe_cluster(const nod_options *options, sl_loop *loop, clu_etcd *etcd, sl_err *err)
{
    const clu_claim claim = {
        .cluster = options->cluster, .name = options->name, .control = options->control};
    return clu_claim_check(etcd, loop, &claim, err);
}
