/* A thread that makes progress in its owner's place, between two moments that the owner names: what
 * is on its way moves while the owner computes. Internal to comm/.
 *
 * Owner and thread never work at the same time: what the owner gives away is not its own until it
 * has taken it back. */
#ifndef COMM_CARRIER_H
#define COMM_CARRIER_H

#include <stdbool.h>

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct com_carrier com_carrier;

typedef struct com_carrier_ops {
    bool (*progress)(void *context); /* false: nothing moved */
    bool (*done)(void *context);     /* there is no more to wait for */
    bool (*arm)(void *context);      /* false: progress first */
    int (*fd)(void *context);        /* readable when there is something, once armed */
} com_carrier_ops;

SL_MUST_USE sl_status com_carrier_create(const com_carrier_ops *ops, void *context,
                                         com_carrier **out_carrier, sl_err *err);
/* Takes it back first. NULL is fine; so for the two below. */
void com_carrier_destroy(com_carrier *carrier);
/* From now on the thread's, until it is done or com_carrier_take_back. It is the owner's now. */
void com_carrier_give(com_carrier *carrier);
/* The owner's again. */
void com_carrier_take_back(com_carrier *carrier);

#ifdef __cplusplus
}
#endif
#endif
