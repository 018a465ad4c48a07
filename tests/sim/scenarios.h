/* Scripted histories whose deadlines are known to the nanosecond. */
#ifndef TESTS_SIM_SCENARIOS_H
#define TESTS_SIM_SCENARIOS_H

/* Exit code; prints each, last line `N passed, N failed, N skipped`. */
int sim_scenarios(void);

#endif
