/* What the driver tells a stub node while it runs: a file of one page that both have mapped (its
 * path in SLUICE_CHAOS).
 *
 * One site can be armed at a time: the thread that reaches it the nth time waits there until the
 * driver lets it go, so that a fault falls exactly on that step. Layout known to control.py. */
#ifndef TESTS_CLUSTER_CHAOS_CONTROL_H
#define TESTS_CLUSTER_CHAOS_CONTROL_H

#include <stdatomic.h>
#include <stdint.h>

typedef enum chaos_plant {
    CHAOS_PLANT_NONE,
    CHAOS_PLANT_ROW,   /* a byte of a row is wrong, its sum right */
    CHAOS_PLANT_TOKEN, /* other tokens come out */
} chaos_plant;

typedef struct chaos_control {
    _Atomic uint32_t armed;           /* written last; the thread that holds takes it back */
    _Atomic uint32_t nth;             /* hits still to come, this one included */
    _Atomic uint32_t held;            /* a thread waits */
    _Atomic uint32_t go;              /* .. no longer */
    _Atomic uint32_t step_us, row_ns; /* what a step and a row of it take */
    char site[40];
    _Atomic uint32_t plant; /* chaos_plant: what the driver must find */
    uint32_t unused;
    _Atomic uint64_t closed_ns; /* when a sequence gave its pages back last, CLOCK_MONOTONIC */
} chaos_control;

/* NULL without SLUICE_CHAOS. Maps the file at the first call. Any thread. */
chaos_control *chaos_control_get(void);
/* Waits here if the site is armed and its turn has come. Any thread. */
void chaos_site(const char *site);

#endif
