/* Membership in etcd. member.h: the record; registration.h: a node's own; view.h: everybody's;
 * etcd.h: the client below them. */
#ifndef CLUSTER_CLUSTER_H
#define CLUSTER_CLUSTER_H

#include "cluster/claim.h"
#include "cluster/etcd.h"
#include "cluster/member.h"
#include "cluster/registration.h"
#include "cluster/view.h"

#endif
