/* What one rpc is: its path, whether it streams, and its message types.
 *
 * All of them stand in rpc/methods.h (generated). Immutable, any thread. */
#ifndef RPC_METHOD_H
#define RPC_METHOD_H

#include <protobuf-c/protobuf-c.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum rpc_kind {
    RPC_UNARY,
    RPC_SERVER_STREAM, /* one request, many replies */
    RPC_BIDI,          /* many and many */
} rpc_kind;

typedef struct rpc_method {
    const char *path; /* "/sluice.v1.Decode/Serve" */
    rpc_kind kind;
    const ProtobufCMessageDescriptor *request;
    const ProtobufCMessageDescriptor *reply;
} rpc_method;

#ifdef __cplusplus
}
#endif
#endif
