/* A world from its beginning to its end: what the driver and the scenarios share. */
#ifndef TESTS_SIM_WORLDS_H
#define TESTS_SIM_WORLDS_H

#include "tests/sim/world.h"

void sim_worlds_begin(uint64_t seed);
/* One event, and what follows each; false: nothing is left before `end`. */
bool sim_worlds_step(sl_time_ns end);
void sim_worlds_run(sl_time_ns end);
/* Takes the processes down; gives everything back. */
void sim_worlds_end(void);

#endif
