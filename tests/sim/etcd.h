/* A model of etcd: one server, its log in memory that survives its process, leases, watches,
 * compaction. */
#ifndef TESTS_SIM_ETCD_H
#define TESTS_SIM_ETCD_H

#include "tests/sim/world.h"

typedef struct sim_etcd sim_etcd;

/* The data directory: outlives the processes that serve it. */
typedef struct sim_etcd_data sim_etcd_data;
sim_etcd_data *sim_etcd_data_create(void);
void sim_etcd_data_destroy(sim_etcd_data *data);
/* Forgets the history before now. */
void sim_etcd_compact(sim_etcd_data *data);
/* Ends all leases at once. */
void sim_etcd_lose_leases(sim_etcd_data *data);
uint32_t sim_etcd_key_count(const sim_etcd_data *data);

SL_MUST_USE sl_status sim_etcd_create(sim_etcd_data *data, const char *address, sim_etcd **out_etcd,
                                      sl_err *err);
void sim_etcd_destroy(sim_etcd *etcd);

#endif
