/* The ways by which two processes of one machine reach each other: what a test of real transports
 * runs through, one after the other. Header only. */
#ifndef TESTS_UNIT_KVTRANSFER_KIT_WAYS_H
#define TESTS_UNIT_KVTRANSFER_KIT_WAYS_H

#include "tests/unit/kvtransfer/kit.h"

typedef enum kit_way {
    KIT_WAY_LOCAL_READS,
    KIT_WAY_UCX_TCP,
    KIT_WAY_UCX_SHM, /* UCX's own shared memory */
    KIT_WAY_SOCKETS, /* the tcp transport */
    KIT_WAY_COUNT,
} kit_way;

static const struct {
    const char *name, *tls;
    bool local_reads, sockets;
} kit_ways[KIT_WAY_COUNT] = {
    [KIT_WAY_LOCAL_READS] = {"local reads", "tcp,shm,self", .local_reads = true},
    [KIT_WAY_UCX_TCP] = {"UCX by tcp", "tcp,self"},
    [KIT_WAY_UCX_SHM] = {"UCX by shared memory", "tcp,posix,sysv,self"},
    [KIT_WAY_SOCKETS] = {"sockets", "tcp,self", .sockets = true},
};

static inline void kit_flag_set(const char *variable, bool on)
{
    if (on)
        setenv(variable, "1", 1);
    else
        unsetenv(variable);
}

/* By the environment, so that child processes take the same. */
static inline void kit_way_set(kit_way way)
{
    setenv("UCX_TLS", kit_ways[way].tls, 1);
    kit_flag_set("KVT_TEST_NO_LOCAL_READS", !kit_ways[way].local_reads);
    kit_flag_set("KVT_TEST_SOCKETS", kit_ways[way].sockets);
}

/* Messages go through shared memory. */
static inline bool kit_by_shm(void)
{
    return strcmp(getenv("UCX_TLS"), kit_ways[KIT_WAY_UCX_TCP].tls) != 0;
}

/* KVT_TEST_WAY=NAME: that one alone. */
static inline bool kit_way_wanted(kit_way way)
{
#ifdef __SANITIZE_THREAD__
    if (way == KIT_WAY_UCX_SHM)
        return false; /* ours is the same code as by tcp, UCX's is not looked at */
#endif
    const char *name = getenv("KVT_TEST_WAY");
    return !name || strcmp(name, kit_ways[way].name) == 0;
}

#endif
