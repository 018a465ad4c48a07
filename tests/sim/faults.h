/* What goes wrong, drawn from the seed: which kinds, when, for how long. */
#ifndef TESTS_SIM_FAULTS_H
#define TESTS_SIM_FAULTS_H

#include "tests/sim/world.h"

typedef struct sim_faults {
    bool none; /* a calm world */
    bool kills, pauses, cuts, resets, network, transfers, slow, clocks, etcd, drains, steps_fail,
        disks;
    uint32_t count; /* of single events */
    sl_time_ns first_at, last_at;
} sim_faults;

void sim_faults_draw(sim_faults *out);
void sim_faults_plan(const sim_faults *faults);
/* Everything is well again: processes up, links whole, delays short. */
void sim_faults_heal(void);

#endif
