/* Cache spaces: whose requests share kept prefixes. A space is a keyed hash of the request's
 * cache_salt; the key is made of the cluster secret, so that nobody without it can tell or choose
 * the space of another one's requests. Without a secret the key is a fixed one, the same for all
 * routers of the world.
 *
 * Pure but for the file; any thread once it is made. */
#ifndef ROUTER_SPACE_H
#define ROUTER_SPACE_H

#include "cluster/member.h"

#ifdef __cplusplus
extern "C" {
#endif

#define RTR_SECRET_BYTES_MIN 32u
#define RTR_SECRET_BYTES_MAX 512u

typedef struct rtr_space_key { /* zeros: there is no secret */
    bool secret;
    uint64_t words[2];
    char mark[CLU_SECRET_MARK_MAX]; /* tells secrets apart, and nothing of them; "": none */
} rtr_space_key;

void rtr_space_key_make(const char *secret, rtr_space_key *out_key);
/* --cluster-secret-file; NULL: none. Errors name option and file. */
SL_MUST_USE sl_status rtr_space_key_read(const char *path, rtr_space_key *out_key, sl_err *err);
/* 0: no salt, and no secret. */
uint64_t rtr_space(const rtr_space_key *key, const char *salt, size_t salt_bytes);

#ifdef __cplusplus
}
#endif
#endif
