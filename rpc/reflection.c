/* grpc.reflection.v1alpha over the descriptors made at code generation.
 *
 * Keeps nothing between messages. Thread: the runtime's loop. */
#include <grpc/status.h>
#include <string.h>

#include "base/alloc.h"
#include "proto/descriptors.h"
#include "proto/grpc/reflection/v1alpha/reflection.pb-c.h"
#include "rpc/internal.h"
#include "rpc/methods.h"

#define FILES_MAX    16
#define SERVICES_MAX 64
#define NAME_MAX_    128

typedef Grpc__Reflection__V1alpha__ServerReflectionRequest reflection_request;
typedef Grpc__Reflection__V1alpha__ServerReflectionResponse reflection_reply;
#define REQUEST(x) GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_##x
#define REPLY(x)   GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_##x

static const proto_file *file_by_name(const char *name)
{
    for (unsigned i = 0; i < proto_file_count; i++)
        if (strcmp(proto_files[i].name, name) == 0)
            return &proto_files[i];
    return NULL;
}

static const proto_file *file_by_symbol(const char *symbol)
{
    for (unsigned i = 0; i < proto_file_count; i++)
        for (const char *const *s = proto_files[i].symbols; *s; s++)
            if (strcmp(*s, symbol) == 0)
                return &proto_files[i];
    return NULL;
}

/* The file and what it imports, each once. */
static size_t collect(const proto_file *file, const proto_file **files, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (files[i] == file)
            return count;
    sl_assert(count < FILES_MAX);
    files[count++] = file;
    for (const char *const *dep = file->deps; *dep; dep++) {
        const proto_file *other = file_by_name(*dep);
        if (other)
            count = collect(other, files, count);
    }
    return count;
}

static bool send_reply(rpc_server_call *call, const reflection_request *request,
                       reflection_reply *reply)
{
    reply->valid_host = request->host;
    reply->original_request = (reflection_request *)(uintptr_t)request;
    return sl_is_ok(rpc_server_call_write(call, &reply->base));
}

static bool send_error(rpc_server_call *call, const reflection_request *request, int code,
                       const char *text)
{
    Grpc__Reflection__V1alpha__ErrorResponse error =
        GRPC__REFLECTION__V1ALPHA__ERROR_RESPONSE__INIT;
    error.error_code = code;
    error.error_message = (char *)(uintptr_t)text;
    reflection_reply reply = GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_RESPONSE__INIT;
    reply.message_response_case = REPLY(ERROR_RESPONSE);
    reply.error_response = &error;
    return send_reply(call, request, &reply);
}

static bool send_file(rpc_server_call *call, const reflection_request *request,
                      const proto_file *file)
{
    if (!file)
        return send_error(call, request, GRPC_STATUS_NOT_FOUND, "no such file or symbol");
    const proto_file *files[FILES_MAX];
    ProtobufCBinaryData bytes[FILES_MAX];
    size_t count = collect(file, files, 0);
    for (size_t i = 0; i < count; i++) {
        bytes[i].len = files[i]->size;
        bytes[i].data = (uint8_t *)(uintptr_t)files[i]->bytes;
    }
    Grpc__Reflection__V1alpha__FileDescriptorResponse found =
        GRPC__REFLECTION__V1ALPHA__FILE_DESCRIPTOR_RESPONSE__INIT;
    found.n_file_descriptor_proto = count;
    found.file_descriptor_proto = bytes;
    reflection_reply reply = GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_RESPONSE__INIT;
    reply.message_response_case = REPLY(FILE_DESCRIPTOR_RESPONSE);
    reply.file_descriptor_response = &found;
    return send_reply(call, request, &reply);
}

/* "/sluice.v1.Decode/Serve" -> "sluice.v1.Decode" */
static void service_of(const rpc_method *method, char out_name[NAME_MAX_])
{
    const char *slash = strrchr(method->path, '/');
    snprintf(out_name, NAME_MAX_, "%.*s", (int)(slash - method->path - 1), method->path + 1);
}

static bool send_services(rpc_server_call *call, const reflection_request *request,
                          const rpc_server *server)
{
    char names[SERVICES_MAX][NAME_MAX_];
    Grpc__Reflection__V1alpha__ServiceResponse services[SERVICES_MAX];
    Grpc__Reflection__V1alpha__ServiceResponse *pointers[SERVICES_MAX];
    size_t count = 0;
    for (size_t i = 0; i < server->handler_count && count < SERVICES_MAX; i++) {
        service_of(server->handlers[i].method, names[count]);
        size_t same = 0;
        while (strcmp(names[same], names[count]) != 0)
            same++;
        if (same < count)
            continue;
        grpc__reflection__v1alpha__service_response__init(&services[count]);
        services[count].name = names[count];
        pointers[count] = &services[count];
        count++;
    }
    Grpc__Reflection__V1alpha__ListServiceResponse list =
        GRPC__REFLECTION__V1ALPHA__LIST_SERVICE_RESPONSE__INIT;
    list.n_service = count;
    list.service = pointers;
    reflection_reply reply = GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_RESPONSE__INIT;
    reply.message_response_case = REPLY(LIST_SERVICES_RESPONSE);
    reply.list_services_response = &list;
    return send_reply(call, request, &reply);
}

static void on_message(void *context, rpc_server_call *call, const ProtobufCMessage *message)
{
    const reflection_request *request = (const void *)message;
    bool sent;
    switch (request->message_request_case) {
    case REQUEST(FILE_BY_FILENAME):
        sent = send_file(call, request, file_by_name(request->file_by_filename));
        break;
    case REQUEST(FILE_CONTAINING_SYMBOL):
        sent = send_file(call, request, file_by_symbol(request->file_containing_symbol));
        break;
    case REQUEST(LIST_SERVICES):
        sent = send_services(call, request, context);
        break;
    default:
        sent = send_error(call, request, GRPC_STATUS_NOT_FOUND, "no extensions here");
    }
    if (!sent)
        rpc_server_call_finish(call, SL_FULL, "read the replies before asking more");
}

static void on_half_closed(void *context, rpc_server_call *call)
{
    (void)context;
    rpc_server_call_finish(call, SL_OK, NULL);
}

static void on_call(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    (void)request;
    static const rpc_server_call_events EVENTS = {
        .on_message = on_message,
        .on_half_closed = on_half_closed,
    };
    rpc_server_call_set(call, &EVENTS, context);
}

rpc_handler rpc_reflection_handler(rpc_server *server)
{
    return (rpc_handler){&rpc_method_server_reflection_server_reflection_info, on_call, server};
}
