/* Makes formations ready on a thread of its own: see former.h.
 *
 * The lock guards what both threads look at; com_abort is how the loop ends a wait in comm. */
#include "node/former.h"

#include <pthread.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"

#define CONNECT_NS \
    (10 * SL_S_NS)      /* of one attempt; a contact of a process that ended never answers */
#define CLOSING_MAX 64u /* groups and sets of experts that wait to be closed */

typedef struct closing {
    com_group *group;
    eng_experts *experts;
} closing;

struct nod_former {
    sl_loop *loop;
    com_options group_options;
    nod_former_events events;
    void *context;
    eng_model *model;
    eng_reload_doubt weights;
    uint32_t rows_max;
    pthread_t thread;
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t changed;
    com_group *spare;     /* listens for the next attempt; NULL: it could not be opened */
    nod_attempt *attempt; /* to be run, or running */
    bool running, aboard, quit, closes; /* closes: it is at it */
    volatile bool stop;                 /* the attempt; atomic accesses only */
    closing closings[CLOSING_MAX];
    uint32_t closing_count;
    char contact[COM_CONTACT_MAX]; /* the loop's copy of the spare's */
};

static void tell(nod_attempt *attempt, sl_post_fn fn)
{
    bool posted = sl_loop_post(attempt->former->loop, fn, attempt);
    sl_assert(posted); /* a few at a time, and the loop takes thousands */
}

static void on_met(void *context)
{
    nod_attempt *attempt = context;
    attempt->former->events.on_met(attempt->former->context);
}

static void on_ready(void *context)
{
    nod_attempt *attempt = context;
    attempt->former->events.on_ready(attempt->former->context, attempt);
}

static void on_tried(void *context)
{
    nod_attempt *attempt = context;
    nod_former *former = attempt->former;
    pthread_mutex_lock(&former->lock);
    former->attempt = NULL;
    former->running = false;
    const char *contact = former->spare ? com_group_contact(former->spare) : "";
    memcpy(former->contact, contact, strlen(contact) + 1);
    pthread_mutex_unlock(&former->lock);
    former->events.on_tried(former->context, attempt);
}

/* ---- the thread ---- */

static sl_status wait_aboard(nod_former *former, nod_attempt *attempt, sl_err *err)
{
    pthread_mutex_lock(&former->lock);
    bool told = former->aboard;
    while (!former->aboard && !former->quit && !former->stop) {
        if (!told)
            tell(attempt, on_met);
        told = true;
        pthread_cond_wait(&former->changed, &former->lock);
    }
    bool aboard = former->aboard;
    pthread_mutex_unlock(&former->lock);
    return aboard ? sl_ok() : sl_fail(err, SL_CANCELLED, "told to stop");
}

static sl_status form(nod_former *former, nod_attempt *attempt, com_group *group, sl_err *err)
{
    const clu_formation *formation = &attempt->formation;
    const char *contacts[COM_RANKS_MAX];
    com_layout layout;
    eng_model_ranks_layout(former->model, former->rows_max, &layout);
    layout.slots = attempt->slots;
    layout.rank_mask = formation->ranks;
    layout.formation = formation->number;
    for (uint32_t r = 0; r < COM_RANKS_MAX; r++)
        contacts[r] = formation->contacts[r];
    SL_TRY(com_group_connect(group, contacts, &layout, sl_now_ns() + CONNECT_NS, NULL, err));
    SL_TRY(eng_model_settle(former->model, &former->weights, group, &attempt->over, err));
    SL_TRY(eng_experts_load(former->model, attempt->slots, &former->stop, &attempt->made.experts,
                            err));
    attempt->loaded = eng_experts_count(attempt->made.experts);
    SL_TRY(wait_aboard(former, attempt, err));
    /* Nobody says that it is ready before all can run. */
    return com_gather(group, NULL, 0, NULL, err);
}

static void spare_open(nod_former *former)
{
    com_group *group = NULL;
    if (!sl_is_ok(com_group_open(&former->group_options, &group, NULL)))
        group = NULL;
    pthread_mutex_lock(&former->lock);
    former->spare = group;
    pthread_mutex_unlock(&former->lock);
}

static void attempt_run(nod_former *former, nod_attempt *attempt, com_group *group)
{
    attempt->begun_at = sl_now_ns();
    attempt->status = group ? form(former, attempt, group, &attempt->err)
                            : sl_fail(&attempt->err, SL_UNAVAILABLE, "no group listens");
    attempt->ended_at = sl_now_ns();
    attempt->made.number = attempt->formation.number;
    attempt->made.group = group;
    attempt->made.model = former->model;
    pthread_mutex_lock(&former->lock);
    former->spare = NULL; /* from here on it is not to be aborted */
    pthread_mutex_unlock(&former->lock);
    if (sl_is_ok(attempt->status)) {
        tell(attempt, on_ready);
    } else {
        com_group_close(group);
        eng_experts_destroy(attempt->made.experts);
        attempt->made = (eng_formation){0};
    }
    spare_open(former);
    tell(attempt, on_tried);
}

static void *former_main(void *argument)
{
    nod_former *former = argument;
    pthread_mutex_lock(&former->lock);
    for (;;) {
        if (former->attempt && !former->running && !former->quit) {
            former->running = true;
            nod_attempt *attempt = former->attempt;
            com_group *group = former->spare;
            pthread_mutex_unlock(&former->lock);
            attempt_run(former, attempt, group);
        } else if (former->closing_count > 0) {
            closing one = former->closings[--former->closing_count];
            former->closes = true;
            pthread_mutex_unlock(&former->lock);
            com_group_close(one.group);
            eng_experts_destroy(one.experts);
        } else if (former->quit) {
            break;
        } else {
            pthread_cond_wait(&former->changed, &former->lock);
            continue;
        }
        pthread_mutex_lock(&former->lock);
        former->closes = false;
    }
    pthread_mutex_unlock(&former->lock);
    return NULL;
}

/* ---- the loop's side ---- */

sl_status nod_former_create(sl_loop *loop, const com_options *group,
                            const nod_former_events *events, void *context, nod_former **out_former,
                            sl_err *err)
{
    com_group *first;
    SL_TRY(com_group_open(group, &first, err));
    nod_former *former = sl_alloc(1, sizeof(*former), "former");
    former->loop = loop;
    former->group_options = *group;
    former->events = *events;
    former->context = context;
    former->spare = first;
    memcpy(former->contact, com_group_contact(first), strlen(com_group_contact(first)) + 1);
    pthread_mutex_init(&former->lock, NULL);
    pthread_cond_init(&former->changed, NULL);
    int error = pthread_create(&former->thread, NULL, former_main, former);
    if (error != 0) {
        com_group_close(first);
        sl_free(former);
        return sl_fail(err, SL_INTERNAL, "cannot start the former's thread (error %d)", error);
    }
    *out_former = former;
    return sl_ok();
}

const char *nod_former_contact(const nod_former *former)
{
    return former->contact;
}

void nod_former_set_model(nod_former *former, eng_model *model, uint32_t rows_max)
{
    former->model = model;
    former->rows_max = rows_max;
}

void nod_former_set_weights(nod_former *former, const eng_reload_doubt *weights)
{
    pthread_mutex_lock(&former->lock);
    sl_assert(!former->running);
    former->weights = *weights;
    pthread_mutex_unlock(&former->lock);
}

bool nod_former_try(nod_former *former, const clu_formation *formation, uint16_t *slots)
{
    sl_assert(former->model);
    pthread_mutex_lock(&former->lock);
    bool taken = !former->attempt;
    if (taken) {
        nod_attempt *attempt = sl_alloc(1, sizeof(*attempt), "formation attempt");
        attempt->former = former;
        attempt->formation = *formation;
        attempt->slots = slots;
        former->attempt = attempt;
        __atomic_store_n(&former->stop, false, __ATOMIC_RELAXED);
        pthread_cond_broadcast(&former->changed);
    }
    pthread_mutex_unlock(&former->lock);
    return taken;
}

/* Under the lock. */
static void cancel(nod_former *former)
{
    __atomic_store_n(&former->stop, true, __ATOMIC_RELAXED);
    if (former->running && former->spare)
        com_abort(former->spare, "another formation is due");
    pthread_cond_broadcast(&former->changed);
}

void nod_former_cancel(nod_former *former)
{
    pthread_mutex_lock(&former->lock);
    cancel(former);
    pthread_mutex_unlock(&former->lock);
}

void nod_former_aboard(nod_former *former)
{
    pthread_mutex_lock(&former->lock);
    former->aboard = true;
    pthread_cond_broadcast(&former->changed);
    pthread_mutex_unlock(&former->lock);
}

bool nod_former_rests(nod_former *former)
{
    pthread_mutex_lock(&former->lock);
    bool rests = !former->attempt && !former->closes && former->closing_count == 0;
    pthread_mutex_unlock(&former->lock);
    return rests;
}

void nod_former_close(nod_former *former, com_group *group, eng_experts *experts)
{
    pthread_mutex_lock(&former->lock);
    sl_assert(former->closing_count < CLOSING_MAX);
    former->closings[former->closing_count++] = (closing){group, experts};
    pthread_cond_broadcast(&former->changed);
    pthread_mutex_unlock(&former->lock);
}

void nod_attempt_destroy(nod_attempt *attempt)
{
    if (!attempt)
        return;
    com_group_close(attempt->made.group);
    eng_experts_destroy(attempt->made.experts);
    sl_free(attempt->slots);
    sl_free(attempt);
}

void nod_former_destroy(nod_former *former)
{
    if (!former)
        return;
    pthread_mutex_lock(&former->lock);
    former->quit = true;
    cancel(former);
    pthread_mutex_unlock(&former->lock);
    pthread_join(former->thread, NULL);
    com_group_close(former->spare);
    nod_attempt_destroy(former->attempt);
    pthread_cond_destroy(&former->changed);
    pthread_mutex_destroy(&former->lock);
    sl_free(former);
}
