/* A stream's bounded queue of packed messages. Thread: the runtime's loop. Never grows. */
#include "base/alloc.h"
#include "rpc/internal.h"

void rpc_queue_init(rpc_queue *queue, size_t messages_max, size_t bytes_max)
{
    *queue = (rpc_queue){
        .messages_max = messages_max ? (uint32_t)messages_max : RPC_WRITE_MESSAGES_MAX,
        .bytes_max = bytes_max ? bytes_max : RPC_WRITE_BYTES_MAX,
    };
}

void rpc_queue_fini(rpc_queue *queue)
{
    rpc_queue_flush(queue);
    sl_free(queue->items);
    queue->items = NULL;
}

void rpc_queue_flush(rpc_queue *queue)
{
    grpc_byte_buffer *buffer;
    while ((buffer = rpc_queue_pop(queue)))
        grpc_byte_buffer_destroy(buffer);
}

sl_status rpc_queue_push(rpc_queue *queue, const ProtobufCMessage *message,
                         size_t message_bytes_max)
{
    /* One message is always taken, or one above bytes_max could never be sent. */
    if (queue->count == queue->messages_max || (queue->count && queue->bytes >= queue->bytes_max)) {
        queue->refused = true;
        return (sl_status){SL_FULL};
    }
    grpc_byte_buffer *buffer;
    SL_TRY(rpc_pack(message, message_bytes_max, &buffer));
    if (!queue->items)
        queue->items = sl_alloc(queue->messages_max, sizeof(*queue->items), "rpc queue");
    queue->items[(queue->head + queue->count) % queue->messages_max] = buffer;
    queue->count++;
    queue->bytes += grpc_byte_buffer_length(buffer);
    return sl_ok();
}

grpc_byte_buffer *rpc_queue_pop(rpc_queue *queue)
{
    if (!queue->count)
        return NULL;
    grpc_byte_buffer *buffer = queue->items[queue->head];
    queue->head = (queue->head + 1) % queue->messages_max;
    queue->count--;
    queue->bytes -= grpc_byte_buffer_length(buffer);
    return buffer;
}

bool rpc_queue_relieved(rpc_queue *queue)
{
    if (!queue->refused || queue->count > queue->messages_max / 2 ||
        queue->bytes > queue->bytes_max / 2)
        return false;
    queue->refused = false;
    return true;
}
