/* How evenly the ranks of an instance are loaded by their experts, over all layers. Pure. Thread:
 * any. */
#ifndef CLUSTER_BALANCE_H
#define CLUSTER_BALANCE_H

#include "cluster/placement.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Load of the heaviest rank over the mean of all ranks: 1 is even; 1 without load. */
typedef struct clu_balance {
    double mean, worst; /* of the layers by their load, and of the worst one */
} clu_balance;

/* One layer more at a time. Zeroed at first. */
typedef struct clu_balance_sum {
    double weighted, load, worst;
} clu_balance_sum;

/* loads [experts], slots [ranks][slots] of the layer. */
void clu_balance_add_layer(clu_balance_sum *sum, const clu_place_shape *shape, const double *loads,
                           const uint16_t *slots);
clu_balance clu_balance_end(const clu_balance_sum *sum);

/* If experts are where the table says: loads [layers][experts], slots [layers][ranks][slots]. */
clu_balance clu_balance_of_table(const clu_place_shape *shape, const double *loads,
                                 const uint16_t *slots);
/* By what ranks have worked on: loads [layers][ranks]. */
clu_balance clu_balance_of_ranks(const clu_place_shape *shape, const double *loads);

#ifdef __cplusplus
}
#endif
#endif
