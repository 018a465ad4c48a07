/* The backend over UCX: ranks as processes, by shared memory or TCP. A library of its own. */
#ifndef COMM_UCX_H
#define COMM_UCX_H

#include "comm/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const com_backend com_backend_ucx;

#ifdef __cplusplus
}
#endif
#endif
