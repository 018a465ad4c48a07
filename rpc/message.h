/* Protobuf messages off and onto the wire: validated unpacking, and who owns what.
 *
 * A message that rpc hands to a callback is borrowed: it lives until the callback returns (a unary
 * or server-stream request: until on_closed of its call). To keep it longer call rpc_message_take
 * inside the callback and rpc_message_free later. A message that you hand to rpc stays yours: it is
 * packed before the call returns. Unpacked messages live in one arena each: never call
 * protobuf_c_message_free_unpacked on them. Thread: any, one at a time. */
#ifndef RPC_MESSAGE_H
#define RPC_MESSAGE_H

#include <protobuf-c/protobuf-c.h>

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define RPC_MESSAGE_BYTES_MAX ((size_t)16 << 20) /* one message on the wire (gRPC's own: 4 MB) */
#define RPC_UNPACKED_BYTES_MAX                                        \
    ((size_t)256 << 20) /* its arena: small submessages grow ~30-fold \
                         */

/* Unpacks and checks that strings are UTF-8 without NUL. SL_INVALID names the field. The result is
 * the caller's: rpc_message_free. */
SL_MUST_USE sl_status rpc_message_unpack(const ProtobufCMessageDescriptor *descriptor,
                                         const void *data, size_t size,
                                         ProtobufCMessage **out_message, sl_err *err);
/* Keeps a borrowed message past the callback: now the caller's. */
void rpc_message_take(const ProtobufCMessage *message);
/* NULL is fine. Only for messages taken or made by rpc_message_unpack. */
void rpc_message_free(ProtobufCMessage *message);

#ifdef __cplusplus
}
#endif
#endif
