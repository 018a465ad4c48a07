/* Node.ReloadWeights: other weights of the same model, without losing the process.
 *
 * A thread of its own loads them while the old ones serve; they are two for that time. Then nothing
 * new is taken (routers hold it back or go elsewhere) until nothing runs any more, at most for the
 * deadline; then the engine thread puts them in the old ones' place between two turns. Whatever
 * fails before that leaves the old ones serving.
 *
 * In place, what generates does not end: it gives its pages up, as for lack of memory, and comes
 * back by computing its tokens again, under the new weights. What has not generated yet is done
 * anew by its router.
 *
 * A rank of several reloads in place, together with the others (engine/reload.h), which are asked
 * by the same calls: each loads, by the table of the formation in use, and serves on until all
 * have. Then each lets go as above and has its engine rest; when all do they go over between the
 * same two runs. Whoever cannot, or no longer waits, says so, and all keep the old ones. From rest
 * on no formation is made ready. If a rank dies in the very exchange, those that have not gone over
 * rest on, in doubt, until the ranks meet again: they go over if one of the others has, else none
 * does. Thread: control loop, but for the loader. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/fault.h"
#include "base/log.h"
#include "node/internal.h"
#include "proto/sluice/v1/node.pb-c.h"

#define RELOAD_DEADLINE_NS (60 * SL_S_NS)
#define RELOAD_PATH_MAX    4096u
#define LOADER_LEAVE_S     5              /* that a loader may still take when the process leaves */
#define RELOAD_REFUSAL_NS  (2 * SL_S_NS)  /* a refusal of an earlier reload may stand for so long */
#define RELOAD_GO_NS       (10 * SL_S_NS) /* until all ranks that are ready are at the same point */

typedef enum reload_phase {
    RELOAD_IDLE,
    RELOAD_LOADING,   /* the loader runs */
    RELOAD_WAITING,   /* for the last sequence to end */
    RELOAD_GATHERING, /* one rank of several: for the others to have loaded too */
    RELOAD_CLEARING,  /* in place: for what has not generated yet to let go of its pages */
    RELOAD_RESTING,   /* one rank of several: for the engine's rest */
    RELOAD_READY,     /* the same: for the others to be as far */
    RELOAD_DOUBT,     /* the same: for the ranks to meet again, as one died amid their exchange */
} reload_phase;

struct nod_reload {
    nod_host *host;
    reload_phase phase;
    rpc_server_call *call; /* NULL: who asked has gone */
    char *dir;
    uint32_t version;
    bool in_place;
    uint16_t *table; /* one rank of several: which experts each has, in: */
    uint64_t formation;
    eng_model_options options; /* of the loader */
    sl_time_ns wait_ns;
    sl_time_ns started_at, loaded_at;
    sl_time_ns late_at; /* the others are waited for until then */
    sl_timer *timer;
    pthread_t loader;
    bool loader_runs;
    eng_reload_told told;
    /* of the loader, until it has posted */
    eng_model *fresh;
    sl_status status;
    sl_err err;
};

static uint32_t version_now(const nod_host *host)
{
    return (uint32_t)strtoul(eng_engine_stamp(host->engine)->weights_version, NULL, 10);
}

/* How far this rank is; of several only. */
static void tell_ranks(const nod_reload *reload, eng_reload_stage stage)
{
    if (nod_ranks_used(reload->host))
        eng_engine_tell_reload(reload->host->engine, reload->version, stage);
}

static void end(nod_reload *reload, sl_status status, const sl_err *err)
{
    nod_host *host = reload->host;
    rpc_server_call *call = reload->call;
    bool rested = nod_reload_rests(reload); /* no formation is being made ready */
    reload->phase = RELOAD_IDLE;
    reload->call = NULL;
    sl_timer_set(reload->timer, SL_NEVER);
    tell_ranks(reload, sl_is_ok(status) ? ENG_RELOAD_NONE : ENG_RELOAD_REFUSED);
    if (rested)
        nod_ranks_set_weights(host, &(eng_reload_doubt){.version = version_now(host)});
    nod_host_hold(host);
    nod_host_rest(host);
    nod_ranks_continue(host);
    sl_free(reload->table);
    reload->table = NULL;
    eng_model_close(reload->fresh); /* the old weights, or those that did not make it */
    reload->fresh = NULL;
    sl_free(reload->dir);
    reload->dir = NULL;
    if (!sl_is_ok(status)) {
        sl_error("weights not reloaded, version %u serves on: %s", version_now(host), err->text);
        if (call)
            rpc_server_call_finish(call, status.code, err->text);
        return;
    }
    if (reload->in_place)
        dec_service_tell_stamp(host->decode);
    else
        dec_service_renew(host->decode);
    nod_host_tell_cluster(host);
    sl_time_ns now = sl_loop_now(host->loop);
    sl_info("weights version %u serves: loaded in %.2f s, waited %.2f s for requests to end",
            version_now(host), (double)(reload->loaded_at - reload->started_at) / 1e9,
            (double)(now - reload->loaded_at) / 1e9);
    if (!call)
        return;
    Sluice__V1__Stamp stamp;
    nod_host_stamp(host, &stamp);
    Sluice__V1__ReloadWeightsReply reply = SLUICE__V1__RELOAD_WEIGHTS_REPLY__INIT;
    reply.stamp = &stamp;
    reply.load_us = (reload->loaded_at - reload->started_at) / 1000;
    reply.wait_us = (now - reload->loaded_at) / 1000;
    reply.requests = nod_host_live(host);
    rpc_server_call_reply(call, &reply.base);
}

static void swap(void *context)
{
    nod_reload *reload = context;
    nod_host *host = reload->host;
    if (reload->in_place)
        dec_service_give_up_all(host->decode);
    reload->status =
        eng_engine_reload(host->engine, host->model, reload->fresh, reload->version, &reload->err);
    if (sl_is_ok(reload->status))
        dec_service_note_weights(host->decode);
}

/* All that is left can give its pages up. */
static bool is_clear(const nod_host *host)
{
    dec_service_clear(host->decode);
    pre_service_clear(host->prefill);
    return dec_service_is_clear(host->decode) && pre_service_is_clear(host->prefill);
}

/* ---- one rank of several */

/* What of the other ranks, or of the formation, ends it. */
static sl_status check_ranks(const nod_reload *reload, const nod_ranks_words *words, sl_err *err)
{
    char list[256];
    if (words->failed || words->formation != reload->formation)
        return sl_fail(err, SL_CONFLICT,
                       "the instance's ranks or placement changed meanwhile: ask again");
    bool early = reload->phase == RELOAD_GATHERING &&
                 sl_loop_now(reload->host->loop) < reload->loaded_at + RELOAD_REFUSAL_NS;
    if (words->refused == 0 || early)
        return sl_ok();
    nod_ranks_list(words->refused, list, sizeof(list));
    return sl_fail(err, SL_CONFLICT,
                   "rank %s does not take version %u (its log says why), or was not told to", list,
                   reload->version);
}

/* Engine thread, which rests: it is as it was, until the ranks are of one mind. */
static void prepare(void *context)
{
    nod_reload *reload = context;
    nod_host *host = reload->host;
    dec_service_give_up_all(host->decode);
    reload->status = eng_engine_reload_fits(host->engine, &reload->err);
}

static void go(void *context)
{
    nod_reload *reload = context;
    nod_host *host = reload->host;
    const eng_reload_together how = {reload->version, reload->formation, RELOAD_GO_NS};
    reload->status = eng_engine_reload_together(host->engine, host->model, reload->fresh, &how,
                                                &reload->told, &reload->err);
    if (sl_is_ok(reload->status))
        dec_service_note_weights(host->decode);
}

static void go_late(void *context)
{
    nod_reload *reload = context;
    nod_host *host = reload->host;
    reload->status = eng_engine_reload_late(host->engine, host->model, reload->fresh,
                                            reload->version, &reload->told, &reload->err);
    if (sl_is_ok(reload->status))
        dec_service_note_weights(host->decode);
}

static void went(nod_reload *reload)
{
    if (sl_is_ok(reload->status) && reload->told.tier.text[0])
        sl_warn("without a second tier from here on: %s", reload->told.tier.text);
    end(reload, reload->status, &reload->err);
}

static void set_phase(nod_reload *reload, reload_phase phase)
{
    reload->phase = phase;
    nod_host_hold(reload->host);
    nod_host_rest(reload->host);
}

/* Both weights are kept, and nothing runs, until the ranks have met again. */
static void doubt(nod_reload *reload)
{
    nod_host *host = reload->host;
    const eng_reload_doubt weights = {version_now(host), reload->fresh, reload->version};
    sl_warn("whether other ranks have version %u is heard when the ranks meet again: %s",
            reload->version, reload->err.text);
    sl_timer_set(reload->timer, SL_NEVER);
    set_phase(reload, RELOAD_DOUBT);
    nod_ranks_set_weights(host, &weights);
    nod_ranks_continue(host);
}

void nod_reload_settle(nod_reload *reload, bool over)
{
    nod_host *host = reload->host;
    bool other = host->formation != reload->formation;
    if (reload->phase != RELOAD_DOUBT || (!over && !other))
        return;
    if (over && !other) {
        eng_worker_call(host->worker, go_late, reload);
        went(reload);
        return;
    }
    sl_status status =
        sl_fail(&reload->err, SL_UNAVAILABLE,
                "a rank died amid the change, and none has version %u: ask again", reload->version);
    end(reload, status, &reload->err);
}

static void continue_together(nod_reload *reload)
{
    nod_host *host = reload->host;
    nod_ranks_words words;
    nod_ranks_reload(host, reload->version, &words);
    reload->status = check_ranks(reload, &words, &reload->err);
    if (!sl_is_ok(reload->status)) {
        end(reload, reload->status, &reload->err);
        return;
    }
    if (reload->phase == RELOAD_GATHERING && words.least >= ENG_RELOAD_LOADED) {
        sl_info(
            "all ranks have loaded version %u; waiting for %u requests to let go of their pages",
            reload->version, nod_host_live(host));
        reload->late_at = sl_loop_now(host->loop) + reload->wait_ns;
        sl_timer_set(reload->timer, reload->late_at);
        set_phase(reload, RELOAD_CLEARING);
    }
    if (reload->phase == RELOAD_CLEARING && is_clear(host) && nod_ranks_settled(host))
        set_phase(reload, RELOAD_RESTING);
    if (reload->phase == RELOAD_RESTING && is_clear(host) && eng_worker_rests(host->worker)) {
        eng_worker_call(host->worker, prepare, reload);
        if (sl_is_ok(reload->status)) { /* else one was opened that is not heard of yet */
            set_phase(reload, RELOAD_READY);
            tell_ranks(reload, ENG_RELOAD_READY);
        }
    }
    if (reload->phase == RELOAD_READY && words.least >= ENG_RELOAD_READY) {
        eng_worker_call(host->worker, go, reload);
        if (reload->told.doubt)
            doubt(reload);
        else
            went(reload);
    }
}

void nod_reload_continue(nod_reload *reload)
{
    nod_host *host = reload->host;
    if (reload->phase == RELOAD_IDLE || reload->phase == RELOAD_LOADING ||
        reload->phase == RELOAD_DOUBT)
        return;
    if (host->state != NOD_STATE_READY) {
        sl_status status = sl_fail(&reload->err, SL_UNAVAILABLE, "the node is leaving");
        end(reload, status, &reload->err);
        return;
    }
    if (nod_ranks_used(host)) {
        continue_together(reload);
        return;
    }
    if (reload->in_place ? !is_clear(host) : nod_host_live(host) > 0)
        return;
    eng_worker_call(host->worker, swap, reload);
    if (reload->in_place && reload->status.code == SL_CONFLICT)
        return; /* one was opened that is not heard of yet: once more when it is */
    end(reload, reload->status, &reload->err);
}

/* Those that load are waited for as long as they do. */
static void on_ranks_late(nod_reload *reload, sl_time_ns now)
{
    nod_ranks_words words;
    char list[256];
    continue_together(reload);
    if (reload->phase != RELOAD_GATHERING && reload->phase != RELOAD_READY)
        return; /* it has ended, or got on */
    nod_ranks_reload(reload->host, reload->version, &words);
    nod_ranks_list(words.silent, list, sizeof(list));
    if (now >= reload->late_at && reload->phase == RELOAD_GATHERING && words.silent == 0)
        reload->late_at = now + reload->wait_ns;
    if (now < reload->late_at) {
        sl_timer_set(reload->timer, reload->late_at);
        return;
    }
    sl_status status =
        words.silent ? sl_fail(&reload->err, SL_DEADLINE,
                               "rank %s does not load version %u: all ranks of an instance must "
                               "be told to at once",
                               list, reload->version)
                     : sl_fail(&reload->err, SL_DEADLINE, "not all ranks were ready within %llu ms",
                               (unsigned long long)(reload->wait_ns / SL_MS_NS));
    end(reload, status, &reload->err);
}

static void on_deadline(void *context, sl_time_ns now)
{
    nod_reload *reload = context;
    if (reload->phase == RELOAD_IDLE || reload->phase == RELOAD_LOADING)
        return;
    if (reload->phase == RELOAD_GATHERING || reload->phase == RELOAD_READY) {
        on_ranks_late(reload, now);
        return;
    }
    sl_status status =
        sl_fail(&reload->err, SL_DEADLINE,
                "%u requests still run after %llu ms; ask again with a later "
                "deadline, or drain the node",
                nod_host_live(reload->host), (unsigned long long)(reload->wait_ns / SL_MS_NS));
    end(reload, status, &reload->err);
}

/* ---- loading */

static void on_loaded(void *context)
{
    nod_reload *reload = context;
    nod_host *host = reload->host;
    pthread_join(reload->loader, NULL);
    reload->loader_runs = false;
    reload->loaded_at = sl_loop_now(host->loop);
    if (host->state != NOD_STATE_READY)
        reload->status = sl_fail(&reload->err, SL_UNAVAILABLE, "the node is leaving");
    if (!sl_is_ok(reload->status)) {
        end(reload, reload->status, &reload->err);
        return;
    }
    if (nod_pausing_active(host->pausing) && !reload->in_place && nod_host_live(host) > 0) {
        sl_status status = sl_fail(&reload->err, SL_CONFLICT,
                                   "the node is paused with %u requests, which do not end: reload "
                                   "in place, or resume it first",
                                   nod_host_live(host));
        end(reload, status, &reload->err);
        return;
    }
    if (nod_ranks_used(host))
        sl_info("weights of %s are loaded; waiting for the other ranks", reload->dir);
    else
        sl_info("weights of %s are loaded; waiting for %u requests to %s", reload->dir,
                nod_host_live(host), reload->in_place ? "let go of their pages" : "end");
    tell_ranks(reload, ENG_RELOAD_LOADED);
    set_phase(reload, nod_ranks_used(host) ? RELOAD_GATHERING
                      : reload->in_place   ? RELOAD_CLEARING
                                           : RELOAD_WAITING);
    reload->late_at = reload->loaded_at + reload->wait_ns;
    bool refusal_first = reload->phase == RELOAD_GATHERING && reload->wait_ns > RELOAD_REFUSAL_NS;
    sl_timer_set(reload->timer,
                 refusal_first ? reload->loaded_at + RELOAD_REFUSAL_NS : reload->late_at);
    nod_reload_continue(reload);
}

static void *load(void *context)
{
    nod_reload *reload = context;
    (void)sl_fault("reload.load");
    reload->status = eng_model_open(&reload->options, &reload->fresh, &reload->err);
    if (sl_is_ok(reload->status))
        reload->status = eng_model_check_same(reload->host->model, reload->fresh, &reload->err);
    bool posted = sl_loop_post(reload->host->loop, on_loaded, reload);
    sl_assert(posted); /* one at a time */
    return NULL;
}

/* ---- the call */

static void on_call_closed(void *context, rpc_server_call *call, bool cancelled)
{
    nod_reload *reload = context;
    if (reload->call == call)
        reload->call = NULL; /* it goes on: the log and GetStatus tell how it ends */
}

static const rpc_server_call_events CALL_EVENTS = {.on_closed = on_call_closed};

static sl_status check(const nod_reload *reload, const Sluice__V1__ReloadWeightsRequest *request,
                       uint32_t *out_version, sl_err *err)
{
    const nod_host *host = reload->host;
    size_t size = strlen(request->model);
    if (reload->phase != RELOAD_IDLE)
        return sl_fail(err, SL_EXISTS, "a reload of %s is under way", reload->dir);
    if (nod_ranks_used(host) && !request->in_place)
        return sl_fail(err, SL_UNSUPPORTED,
                       "one rank of several: in place only (--in-place), all ranks at once");
    if (host->state != NOD_STATE_READY)
        return sl_fail(err, SL_UNAVAILABLE, "the node is %s", nod_state_name(host->state));
    if (nod_role_changing(host->role_change))
        return sl_fail(err, SL_CONFLICT, "the node changes its role");
    if (size == 0 || size > RELOAD_PATH_MAX)
        return sl_fail(err, SL_INVALID, "model: must be a directory's path, 1 to %u bytes",
                       RELOAD_PATH_MAX);
    uint32_t wanted = request->weights_version ? request->weights_version : version_now(host) + 1;
    if (wanted <= version_now(host) || wanted > NOD_WEIGHTS_VERSION_MAX)
        return sl_fail(err, SL_INVALID,
                       "weights_version: must be higher than %u, at most %u, is %u",
                       version_now(host), NOD_WEIGHTS_VERSION_MAX, wanted);
    *out_version = wanted;
    return sl_ok();
}

static sl_status take_table(nod_reload *reload, sl_err *err)
{
    reload->table = nod_ranks_copy_table(reload->host, &reload->formation);
    return reload->table ? sl_ok()
                         : sl_fail(err, SL_UNAVAILABLE, "the ranks are between two formations");
}

void nod_reload_on_call(void *context, rpc_server_call *call, const ProtobufCMessage *base)
{
    nod_reload *reload = context;
    const Sluice__V1__ReloadWeightsRequest *request =
        (const Sluice__V1__ReloadWeightsRequest *)base;
    sl_err err;
    uint32_t version = 0;
    sl_status status = check(reload, request, &version, &err);
    if (sl_is_ok(status) && nod_ranks_used(reload->host))
        status = take_table(reload, &err);
    if (!sl_is_ok(status)) {
        rpc_server_call_finish(call, status.code, err.text);
        return;
    }
    char detail[200];
    snprintf(detail, sizeof(detail), "%.150s as version %u%s", request->model, version,
             request->in_place ? ", in place" : "");
    nod_audit_note(reload->host->audit, call, "weights reload", detail);
    reload->dir = sl_strdup(request->model, "reload path");
    reload->version = version;
    reload->in_place = request->in_place;
    reload->wait_ns =
        request->deadline_ms ? (uint64_t)request->deadline_ms * SL_MS_NS : RELOAD_DEADLINE_NS;
    reload->started_at = sl_loop_now(reload->host->loop);
    nod_model_options(reload->host, reload->dir, &reload->options);
    if (reload->table)
        reload->options.ep_table = reload->table;
    tell_ranks(reload, ENG_RELOAD_LOADING);
    reload->phase = RELOAD_LOADING;
    reload->call = call;
    rpc_server_call_set(call, &CALL_EVENTS, reload);
    sl_info("reloading weights from %s as version %u", reload->dir, reload->version);
    int error = pthread_create(&reload->loader, NULL, load, reload);
    if (error != 0) {
        status = sl_fail(&err, SL_INTERNAL, "cannot start the loader (error %d)", error);
        end(reload, status, &err);
        return;
    }
    reload->loader_runs = true;
}

bool nod_reload_active(const nod_reload *reload)
{
    return reload->phase != RELOAD_IDLE;
}

bool nod_reload_waits(const nod_reload *reload)
{
    return reload->phase == RELOAD_WAITING || reload->phase == RELOAD_CLEARING ||
           nod_reload_rests(reload);
}

bool nod_reload_rests(const nod_reload *reload)
{
    return nod_reload_bars(reload) || reload->phase == RELOAD_DOUBT;
}

bool nod_reload_bars(const nod_reload *reload)
{
    return reload->phase == RELOAD_RESTING || reload->phase == RELOAD_READY;
}

nod_reload *nod_reload_create(nod_host *host)
{
    nod_reload *reload = sl_alloc(1, sizeof(*reload), "node reload");
    reload->host = host;
    reload->timer = sl_timer_create(host->loop, on_deadline, reload);
    return reload;
}

/* A loader that reads much, or from a file system that does not answer, cannot be ended: all others
 * know by now that we are gone, so the process goes without it. */
static void await_loader(const nod_reload *reload)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += LOADER_LEAVE_S;
    if (pthread_timedjoin_np(reload->loader, NULL, &until) == 0)
        return;
    sl_warn("still loading %s after %.1f s: the process ends without that", reload->dir,
            (double)(sl_now_ns() - reload->started_at) / 1e9);
    _exit(reload->host->exit_code);
}

void nod_reload_destroy(nod_reload *reload)
{
    if (!reload)
        return;
    if (reload->loader_runs) /* its post is not run any more */
        await_loader(reload);
    eng_model_close(reload->fresh);
    sl_free(reload->table);
    sl_timer_destroy(reload->timer);
    sl_free(reload->dir);
    sl_free(reload);
}
