/* Messages: validation of wire bytes, arenas for unpacked ones, packing into gRPC buffers.
 *
 * protobuf-c neither checks UTF-8 nor embedded NULs nor depth, so the bytes are walked once before
 * they are unpacked. Any thread. Never trusts a length. */
#include "rpc/message.h"

#include <grpc/byte_buffer_reader.h>
#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "rpc/internal.h"

#define DEPTH_MAX       32
#define CHUNK_BYTES_MIN 1024
#define ALIGN           16

/* ---- arena ---- */

typedef struct arena_chunk {
    struct arena_chunk *next;
    size_t size, used; /* of what follows the header */
    size_t padding;    /* keeps what follows aligned */
} arena_chunk;

/* The first chunk begins with this; the message itself, the first thing allocated, follows it. */
typedef struct arena {
    arena_chunk *chunks; /* newest first */
    size_t bytes;
    bool taken;
    char padding[15];
} arena;

_Static_assert(sizeof(arena_chunk) % ALIGN == 0, "chunks keep their alignment");
_Static_assert(sizeof(arena) % ALIGN == 0, "the first message is aligned");

static arena_chunk *chunk_create(size_t size)
{
    arena_chunk *chunk = sl_realloc(NULL, 1, sizeof(*chunk) + size, "rpc message");
    chunk->next = NULL;
    chunk->size = size;
    chunk->used = 0;
    return chunk;
}

static arena *arena_create(size_t size_hint)
{
    size_t size = sizeof(arena) + (size_hint < CHUNK_BYTES_MIN ? CHUNK_BYTES_MIN : size_hint);
    arena_chunk *chunk = chunk_create(size);
    arena *a = (arena *)(chunk + 1);
    memset(a, 0, sizeof(*a));
    a->chunks = chunk;
    a->bytes = size;
    chunk->used = sizeof(*a);
    return a;
}

static void arena_destroy(arena *a)
{
    arena_chunk *chunk = a->chunks; /* the arena itself lies in the last one */
    while (chunk) {
        arena_chunk *next = chunk->next;
        sl_free(chunk);
        chunk = next;
    }
}

static void *arena_alloc(void *context, size_t size)
{
    arena *a = context;
    if (size > RPC_UNPACKED_BYTES_MAX)
        return NULL;
    size = (size + ALIGN - 1) / ALIGN * ALIGN;
    arena_chunk *chunk = a->chunks;
    if (chunk->size - chunk->used < size) {
        size_t want = chunk->size * 2;
        if (want > ((size_t)1 << 20))
            want = (size_t)1 << 20;
        if (want < size)
            want = size;
        if (want > RPC_UNPACKED_BYTES_MAX - a->bytes)
            return NULL;
        arena_chunk *fresh = chunk_create(want);
        fresh->next = chunk;
        a->chunks = fresh;
        a->bytes += want;
        chunk = fresh;
    }
    void *result = (char *)(chunk + 1) + chunk->used;
    chunk->used += size;
    return result;
}

static void arena_free(void *context, void *pointer)
{
    (void)context;
    (void)pointer; /* everything goes at once */
}

static arena *arena_of(const ProtobufCMessage *message)
{
    return (arena *)((uintptr_t)message - sizeof(arena));
}

/* ---- walk over the wire bytes ---- */

static bool read_varint(const uint8_t *data, size_t size, size_t *at, uint64_t *out_value)
{
    uint64_t value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
        if (*at >= size)
            return false;
        uint8_t byte = data[(*at)++];
        value |= (uint64_t)(byte & 127) << (shift < 64 ? shift : 63);
        if (byte < 128) {
            *out_value = value;
            return true;
        }
    }
    return false;
}

static sl_status malformed(const ProtobufCMessageDescriptor *descriptor, sl_err *err)
{
    return sl_fail(err, SL_INVALID, "%s: malformed bytes", descriptor->name);
}

static sl_status walk(const ProtobufCMessageDescriptor *descriptor, const uint8_t *data,
                      size_t size, int depth, sl_err *err)
{
    if (depth > DEPTH_MAX)
        return sl_fail(err, SL_INVALID, "%s: nested more than %d deep", descriptor->name,
                       DEPTH_MAX);
    size_t at = 0;
    while (at < size) {
        uint64_t key, length;
        if (!read_varint(data, size, &at, &key) || key >> 3 == 0 || key >> 3 > 0x1fffffff)
            return malformed(descriptor, err);
        switch (key & 7) {
        case 0:
            if (!read_varint(data, size, &at, &length))
                return malformed(descriptor, err);
            continue;
        case 1:
        case 5:
            length = (key & 7) == 1 ? 8 : 4;
            break;
        case 2:
            if (!read_varint(data, size, &at, &length))
                return malformed(descriptor, err);
            break;
        default:
            return malformed(descriptor, err);
        }
        if (length > size - at)
            return malformed(descriptor, err);
        const ProtobufCFieldDescriptor *field =
            (key & 7) == 2
                ? protobuf_c_message_descriptor_get_field(descriptor, (unsigned)(key >> 3))
                : NULL;
        if (field && field->type == PROTOBUF_C_TYPE_STRING &&
            (memchr(data + at, 0, length) || !sl_utf8_valid(data + at, length)))
            return sl_fail(err, SL_INVALID, "%s.%s: not UTF-8 text without NUL", descriptor->name,
                           field->name);
        if (field && field->type == PROTOBUF_C_TYPE_MESSAGE)
            SL_TRY(walk(field->descriptor, data + at, length, depth + 1, err));
        at += length;
    }
    return sl_ok();
}

/* ---- public ---- */

sl_status rpc_message_unpack(const ProtobufCMessageDescriptor *descriptor, const void *data,
                             size_t size, ProtobufCMessage **out_message, sl_err *err)
{
    SL_TRY(walk(descriptor, data, size, 0, err));
    arena *a = arena_create(descriptor->sizeof_message + 2 * (size < 65536 ? size : 65536));
    ProtobufCAllocator allocator = {arena_alloc, arena_free, a};
    static const uint8_t EMPTY[1];
    ProtobufCMessage *message =
        protobuf_c_message_unpack(descriptor, &allocator, size, size ? data : EMPTY);
    if (!message) {
        bool full = a->bytes > RPC_UNPACKED_BYTES_MAX / 2;
        arena_destroy(a);
        if (full)
            return sl_fail(err, SL_TOO_LARGE, "%s: over %zu bytes when unpacked", descriptor->name,
                           RPC_UNPACKED_BYTES_MAX);
        return malformed(descriptor, err);
    }
    sl_assert(arena_of(message) == a); /* protobuf-c allocates the message first */
    *out_message = message;
    return sl_ok();
}

void rpc_message_take(const ProtobufCMessage *message)
{
    arena_of(message)->taken = true;
}

void rpc_message_free(ProtobufCMessage *message)
{
    if (message)
        arena_destroy(arena_of(message));
}

void rpc_message_release(ProtobufCMessage *message)
{
    if (message && !arena_of(message)->taken)
        arena_destroy(arena_of(message));
}

sl_status rpc_pack(const ProtobufCMessage *message, size_t bytes_max, grpc_byte_buffer **out_buffer)
{
    size_t size = protobuf_c_message_get_packed_size(message);
    if (size > bytes_max)
        return (sl_status){SL_TOO_LARGE};
    grpc_slice slice = grpc_slice_malloc(size);
    size_t packed = protobuf_c_message_pack(message, GRPC_SLICE_START_PTR(slice));
    sl_assert(packed == size);
    *out_buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return sl_ok();
}

sl_status rpc_unpack(const ProtobufCMessageDescriptor *descriptor, grpc_byte_buffer *buffer,
                     ProtobufCMessage **out_message, sl_err *err)
{
    grpc_byte_buffer_reader reader;
    if (!grpc_byte_buffer_reader_init(&reader, buffer)) {
        grpc_byte_buffer_destroy(buffer);
        return sl_fail(err, SL_INVALID, "%s: cannot be decompressed", descriptor->name);
    }
    grpc_slice slice = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    grpc_byte_buffer_destroy(buffer);
    sl_status status = rpc_message_unpack(descriptor, GRPC_SLICE_START_PTR(slice),
                                          GRPC_SLICE_LENGTH(slice), out_message, err);
    grpc_slice_unref(slice);
    return status;
}
