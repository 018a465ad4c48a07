/* The thread that makes formations ready beside whatever the engine runs: connects a group, has the
 * model join it, loads experts, and afterwards closes what is of no use any more.
 *
 * One attempt at a time; each takes the group that has listened for it, and another begins to
 * listen. Thread: the control loop, where callbacks come too; the work is on a thread of its own.
 */
#ifndef NODE_FORMER_H
#define NODE_FORMER_H

#include "base/loop.h"
#include "cluster/ranks.h"
#include "engine/parallel.h"
#include "engine/reload.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct nod_former nod_former;

/* One attempt. */
typedef struct nod_attempt {
    nod_former *former;
    clu_formation formation;
    uint16_t *slots; /* of all ranks: the table, healed */
    sl_status status;
    sl_err err;
    sl_time_ns begun_at, ended_at;
    bool over;          /* it failed because this rank must go over to other weights first */
    uint32_t loaded;    /* experts */
    eng_formation made; /* if it is ready */
} nod_attempt;

typedef struct nod_former_events {
    /* The first attempt so far that has joined the model, whose hash is now known: it goes on after
     * nod_former_aboard. */
    void (*on_met)(void *context);
    /* This rank is ready: attempt->made may be offered. Takes it, and leaves zeros. */
    void (*on_ready)(void *context, nod_attempt *attempt);
    /* The attempt has ended, well or not, and another may begin; owned by the callee. */
    void (*on_tried)(void *context, nod_attempt *attempt);
} nod_former_events;

/* Listens. group: borrowed until destroy. */
SL_MUST_USE sl_status nod_former_create(sl_loop *loop, const com_options *group,
                                        const nod_former_events *events, void *context,
                                        nod_former **out_former, sl_err *err);
/* Where the next attempt's group listens; "": it could not. Until the next on_tried. */
const char *nod_former_contact(const nod_former *former);
/* Before the first attempt: what is formed for. */
void nod_former_set_model(nod_former *former, eng_model *model, uint32_t rows_max);
/* What the other ranks are told of this one's weights; borrows those in doubt until the next call.
 * While no attempt is under way. */
void nod_former_set_weights(nod_former *former, const eng_reload_doubt *weights);
/* Takes slots. false: one is under way. */
SL_MUST_USE bool nod_former_try(nod_former *former, const clu_formation *formation,
                                uint16_t *slots);
/* The attempt under way ends soon. */
void nod_former_cancel(nod_former *former);
/* This rank's engine is there: attempts may come to their end. */
void nod_former_aboard(nod_former *former);
/* No attempt is under way, and nothing is to be closed: the thread looks at no model. */
bool nod_former_rests(nod_former *former);
/* Closes them on the thread; either may be NULL. */
void nod_former_close(nod_former *former, com_group *group, eng_experts *experts);
/* No callbacks any more; ends the thread and what it has still to close. NULL is fine. */
void nod_former_destroy(nod_former *former);
void nod_attempt_destroy(nod_attempt *attempt);

#ifdef __cplusplus
}
#endif
#endif
