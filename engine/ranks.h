/* The step's side of parallel.h. Internal to engine/. Thread: the engine thread. */
#ifndef ENGINE_RANKS_H
#define ENGINE_RANKS_H

#include <pthread.h>

#include "base/ring.h"
#include "engine/ops.h"
#include "engine/parallel.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum eng_wish {
    ENG_WISH_NONE,
    ENG_WISH_STEP,       /* the main layers */
    ENG_WISH_STEP_SPLIT, /* the same as two micro-batches: whoever wants a step splits its rows */
    ENG_WISH_DRAFT,      /* the MTP layer; goes first, so that steps meet */
    ENG_WISH_COUNT,
} eng_wish;

/* One rank's part in the runs. */
struct eng_ranks {
    com_group *group; /* NULL: no formation is in use yet */
    bool fixed;       /* it is the only one */
    bool lost;        /* it has failed */
    uint32_t rank, size;
    uint64_t runs, split_runs;
    eng_wish wish; /* of the run that has begun; NONE: none */
    bool joined;   /* all ranks are at its layers `at` .. `end` - 1, indexes of model->layers */
    uint32_t at, end;
    uint32_t batches; /* micro-batches of the run */
    void *memory;
    size_t bytes;
    uint8_t *rows;    /* [size * rows_max][row_bytes]: own ones, then the others' */
    uint8_t *scales;  /* [size * rows_max][scale_bytes] */
    uint32_t *places; /* [size * rows_max * chosen] of the entries of others */
    uint32_t row_bytes, scale_bytes;
    /* of other threads too: atomic accesses only */
    uint64_t *loads;        /* [moe_layers][experts] */
    eng_formation *offered; /* by another thread */
    const char *give_up;    /* the same */
    uint64_t reload;        /* this rank's word, packed; the same */
    sl_mailbox *doorbell;   /* carries no items: rung with the three above */
    eng_formation *next;    /* the offer that the posted header told of; NULL: none */
    uint64_t told;          /* the formation that the last header called ready */
    uint64_t reload_told;   /* by the last header */
    pthread_mutex_t lock;   /* of: */
    eng_ranks_state state;
    uint64_t words[COM_RANKS_MAX]; /* of a reload, by rank, as the last headers had them */
    void (*on_change)(void *context);
    void *on_change_context;
};

/* `group` is connected with this model's layout, or NULL; options as eng_options. Before the
 * scratch is carved; prepare after it. */
SL_MUST_USE sl_status eng_ranks_create(eng_engine *engine, com_group *group, sl_err *err);
SL_MUST_USE sl_status eng_ranks_prepare(eng_engine *engine, sl_err *err);
void eng_ranks_destroy(eng_engine *engine);

/* Of layers with experts, counted from the first. */
static inline uint32_t eng_moe_index(const eng_engine *engine, const eng_layer *layer)
{
    return (uint32_t)(layer - eng_moe_layer(engine->model, 0));
}

/* A run of this rank's own begins: the others hear of it. false: the group has failed. Nothing to
 * do, and true, without ranks; so all below. */
SL_MUST_USE bool eng_ranks_begin(eng_engine *engine, eng_wish wish, uint32_t rows);
/* s.n -> s.x through the experts of all ranks. */
SL_MUST_USE bool eng_ranks_moe(eng_engine *engine, const eng_layer *layer, uint32_t rows);
/* The run is one of two micro-batches, and all ranks are there: layers that follow one with experts
 * go by eng_ranks_layers, from `first` to the last. fn: as eng_micro_layers. */
bool eng_ranks_split(const eng_engine *engine);
SL_MUST_USE bool eng_ranks_layers(eng_engine *engine, const eng_batch *batch, uint32_t first,
                                  bool (*fn)(void *context, uint32_t index), void *context);
/* Before the first layer with experts of a run: until all ranks are there. */
SL_MUST_USE bool eng_ranks_join(eng_engine *engine);
/* The run has ended here. What is left of it, if a fault ended it early, still needs this rank. */
void eng_ranks_end(eng_engine *engine);
/* A run that failed: true if that was because of the group, and another formation is in its place.
 * Waits for it. */
SL_MUST_USE bool eng_ranks_recover(eng_engine *engine);

/* A header without a wish, and no rows in the run that another rank wants, if one does: out_run.
 * Not while a run of this rank's own has begun. false: the group has failed. */
SL_MUST_USE bool eng_ranks_round(eng_engine *engine, eng_wish *out_run);
/* Has the engine thread look at what was offered or told. Any thread. */
void eng_ranks_ring(eng_engine *engine);
/* reload.c, engine thread. The ranks' words, if any are other ones. */
void eng_ranks_hear(eng_ranks *ranks, const com_header *headers);

/* engine.c: what eng_engine_reload asks for first; and what it does then. Of the latter's failure
 * the second tier is missing, nothing else. */
SL_MUST_USE sl_status eng_engine_check_reload(const eng_engine *engine, const eng_model *model,
                                              const eng_model *fresh, uint32_t weights_version,
                                              sl_err *err);
SL_MUST_USE sl_status eng_engine_replace(eng_engine *engine, eng_model *model, eng_model *fresh,
                                         uint32_t weights_version, sl_err *err);

/* experts.c */
SL_MUST_USE sl_status eng_model_set_table(eng_model *model, const uint16_t *table, uint32_t slots,
                                          sl_err *err);
/* Whether the model's experts are those that the set was made for. */
bool eng_experts_fit(const eng_model *model, const eng_experts *set);
/* Puts the set's experts in, takes out those that its table does not give this rank. */
void eng_experts_swap(eng_model *model, eng_experts *set);

#ifdef __cplusplus
}
#endif
#endif
