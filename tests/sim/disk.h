/* The disks of the simulated nodes' second cache tier. */
#ifndef TESTS_SIM_DISK_H
#define TESTS_SIM_DISK_H

#include "tests/sim/world.h"

typedef struct sim_disk_speed {
    uint64_t min_ns, max_ns; /* of a read or write */
    uint32_t fail_ppm;
    uint64_t reads; /* counted: those that gave a page */
} sim_disk_speed;

extern sim_disk_speed sim_disk;

void sim_disk_init(void);
/* What it is asked for from now on is quick again, and what waits is done. */
void sim_disk_heal(void);
/* Forgets what the files hold. */
void sim_disk_fini(void);

#endif
