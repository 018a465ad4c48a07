/* Protobuf messages off the wire: any bytes, for each type that a peer may send. The first byte
 * chooses the type. What unpacks can be packed and unpacks again. */
#include "base/alloc.h"
#include "base/assert.h"
#include "proto/etcd/etcd.pb-c.h"
#include "proto/sluice/v1/decode.pb-c.h"
#include "proto/sluice/v1/prefill.pb-c.h"
#include "rpc/message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const ProtobufCMessageDescriptor *const TYPES[] = {
        &sluice__v1__router_message__descriptor,   &sluice__v1__decode_message__descriptor,
        &sluice__v1__prefill_request__descriptor,  &etcdserverpb__txn_response__descriptor,
        &etcdserverpb__watch_response__descriptor,
    };
    if (size == 0)
        return 0;
    const ProtobufCMessageDescriptor *type = TYPES[data[0] % (sizeof(TYPES) / sizeof(TYPES[0]))];
    ProtobufCMessage *message, *again;
    sl_err err;
    if (sl_is_ok(rpc_message_unpack(type, data + 1, size - 1, &message, &err))) {
        size_t packed_size = protobuf_c_message_get_packed_size(message);
        uint8_t *packed = sl_alloc(1, packed_size + 1, "fuzz");
        sl_assert(protobuf_c_message_pack(message, packed) == packed_size);
        sl_status status = rpc_message_unpack(type, packed, packed_size, &again, &err);
        sl_assert(sl_is_ok(status));
        rpc_message_free(again);
        rpc_message_free(message);
        sl_free(packed);
    }
    sl_assert(sl_alloc_live() == 0);
    return 0;
}
