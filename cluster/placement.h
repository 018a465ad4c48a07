/* Which rank of an instance holds which experts: planning by measured load. Pure: no network, no
 * clock.
 *
 * Each rank has a number of slots in each layer; an expert has at least one slot. The slots of one
 * expert share its load evenly: two on one rank are two shares, of one copy in memory, and leave
 * that rank room for what another rank that dies has held. Planning follows DeepSeek's published
 * EPLB: groups of experts to hosts by balanced packing, more slots to the experts with the highest
 * load a slot, slots to ranks by balanced packing; then exchanges between ranks as long as the
 * heaviest gets lighter, and the best of several such plans. Thread: any. */
#ifndef CLUSTER_PLACEMENT_H
#define CLUSTER_PLACEMENT_H

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CLU_PLACE_EXPERTS_MAX 512u
#define CLU_PLACE_RANKS_MAX   64u
#define CLU_PLACE_SLOTS_MAX   512u /* of a rank in a layer */
#define CLU_PLACE_LAYERS_MAX  128u

typedef struct clu_place_shape {
    uint32_t layers;
    uint32_t experts;
    uint32_t groups; /* of experts, consecutive, which a row's experts come from few of; 0 = 1 */
    uint32_t ranks;
    uint32_t hosts; /* the ranks' machines, consecutive, alike; 0 = 1 */
    uint32_t slots; /* of a rank in a layer */
    bool fragile;   /* no room to heal the death of a rank is asked for */
} clu_place_shape;

#define CLU_PLACE_EMPTY UINT16_MAX /* a slot of a rank that is gone */

/* SL_INVALID: sizes out of range or not divisible, or no place for all experts with one rank less:
 * then the death of a rank could not be healed. A single rank, and a fragile shape, need only their
 * own. */
SL_MUST_USE sl_status clu_place_check_shape(const clu_place_shape *shape, sl_err *err);

/* loads [layers][experts], none negative -> out_slots [layers][ranks][slots]: the expert of each.
 * Equal input gives equal output. SL_INVALID: as above, or a load that is no number. */
SL_MUST_USE sl_status clu_place_plan(const clu_place_shape *shape, const double *loads,
                                     uint16_t *out_slots, sl_err *err);
/* A table from elsewhere: experts in range, each there. SL_INVALID names the layer. */
SL_MUST_USE sl_status clu_place_check(const clu_place_shape *shape, const uint16_t *slots,
                                      sl_err *err);
/* Ranks are alike: in each layer, exchanges what `slots` gives them so that they keep as much as
 * they can of what `before` gives them. Balance stays as it is. For a shape of one host. */
void clu_place_keep(const clu_place_shape *shape, const uint16_t *before, uint16_t *slots);
/* Experts that a rank has in `after` and not in `before`, over all ranks and layers. */
uint64_t clu_place_moves(const clu_place_shape *shape, const uint16_t *before,
                         const uint16_t *after);
/* What `slots`, a checked table, becomes with only the ranks of `mask`: the slots of the others are
 * CLU_PLACE_EMPTY, and experts that only those held take the place of copies of others, each where
 * the fewest have come to. Equal input gives equal output, so ranks need not tell each other.
 * SL_INVALID: they have no room for all. */
SL_MUST_USE sl_status clu_place_heal(const clu_place_shape *shape, const uint16_t *slots,
                                     uint64_t mask, uint16_t *out_slots, sl_err *err);
/* Load of the heaviest rank over the mean of all, in one layer: 1 is perfect; 1 without load.
 * loads [experts] and slots [ranks][slots] of the layer. */
double clu_place_imbalance(const clu_place_shape *shape, const double *loads,
                           const uint16_t *slots);

#ifdef __cplusplus
}
#endif
#endif
