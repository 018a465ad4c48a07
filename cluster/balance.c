/* See balance.h. */
#include "cluster/balance.h"

static void add(clu_balance_sum *sum, double imbalance, double load)
{
    if (load <= 0)
        return;
    sum->weighted += imbalance * load;
    sum->load += load;
    sum->worst = imbalance > sum->worst ? imbalance : sum->worst;
}

void clu_balance_add_layer(clu_balance_sum *sum, const clu_place_shape *shape, const double *loads,
                           const uint16_t *slots)
{
    double load = 0;
    for (uint32_t e = 0; e < shape->experts; e++)
        load += loads[e];
    add(sum, clu_place_imbalance(shape, loads, slots), load);
}

clu_balance clu_balance_end(const clu_balance_sum *sum)
{
    if (sum->load <= 0)
        return (clu_balance){1, 1};
    return (clu_balance){sum->weighted / sum->load, sum->worst};
}

clu_balance clu_balance_of_table(const clu_place_shape *shape, const double *loads,
                                 const uint16_t *slots)
{
    clu_balance_sum sum = {0};
    for (size_t layer = 0; layer < shape->layers; layer++)
        clu_balance_add_layer(&sum, shape, loads + layer * shape->experts,
                              slots + layer * shape->ranks * shape->slots);
    return clu_balance_end(&sum);
}

clu_balance clu_balance_of_ranks(const clu_place_shape *shape, const double *loads)
{
    clu_balance_sum sum = {0};
    for (size_t layer = 0; layer < shape->layers; layer++) {
        const double *of = loads + layer * shape->ranks;
        double load = 0, most = 0;
        for (uint32_t r = 0; r < shape->ranks; r++) {
            load += of[r];
            most = of[r] > most ? of[r] : most;
        }
        add(&sum, load > 0 ? most * shape->ranks / load : 1, load);
    }
    return clu_balance_end(&sum);
}
