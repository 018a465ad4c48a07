/* sl_code <-> gRPC status code: one table, both ways (status_map.c).
 *
 * Our servers also send the exact sl_code in trailing metadata RPC_CODE_KEY; a client prefers it,
 * so that between our processes every code survives. The table alone serves foreign peers (etcd).
 * Thread: any. */
#ifndef RPC_STATUS_MAP_H
#define RPC_STATUS_MAP_H

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define RPC_CODE_KEY "sluice-code"

int rpc_status_to_grpc(sl_code code);
/* Unknown numbers give SL_INTERNAL. */
sl_code rpc_status_from_grpc(int grpc_status);
/* With what came along: the metadata's text (NULL: none) wins if it is a known code that maps to
 * grpc_status. */
sl_code rpc_status_from_wire(int grpc_status, const char *code_text, const char *details);
/* "UNAVAILABLE"; never NULL. */
const char *rpc_status_grpc_name(int grpc_status);

#ifdef __cplusplus
}
#endif
#endif
