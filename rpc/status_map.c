/* The one table between sl_code and gRPC status. Owns nothing, any thread. */
#include "rpc/status_map.h"

#include <grpc/status.h>
#include <stdlib.h>
#include <string.h>

typedef struct map_row {
    sl_code code;
    int grpc;
    bool back; /* grpc maps back to this code */
} map_row;

static const map_row MAP[] = {
    {SL_OK, GRPC_STATUS_OK, true},
    {SL_INVALID, GRPC_STATUS_INVALID_ARGUMENT, true},
    {SL_TOO_LARGE, GRPC_STATUS_OUT_OF_RANGE, true},
    {SL_UNSUPPORTED, GRPC_STATUS_UNIMPLEMENTED, true},
    {SL_NOT_FOUND, GRPC_STATUS_NOT_FOUND, true},
    {SL_EXISTS, GRPC_STATUS_ALREADY_EXISTS, true},
    {SL_CANCELLED, GRPC_STATUS_CANCELLED, true},
    {SL_DEADLINE, GRPC_STATUS_DEADLINE_EXCEEDED, true},
    {SL_FULL, GRPC_STATUS_RESOURCE_EXHAUSTED, true},
    {SL_CONFLICT, GRPC_STATUS_ABORTED, true},
    {SL_CORRUPT, GRPC_STATUS_DATA_LOSS, true},
    {SL_UNAVAILABLE, GRPC_STATUS_UNAVAILABLE, true},
    {SL_INCOMPATIBLE, GRPC_STATUS_FAILED_PRECONDITION, true},
    {SL_DENIED, GRPC_STATUS_PERMISSION_DENIED, true},
    {SL_DENIED, GRPC_STATUS_UNAUTHENTICATED, true},
    {SL_IO, GRPC_STATUS_UNKNOWN, true},
    {SL_NO_MEMORY, GRPC_STATUS_RESOURCE_EXHAUSTED, false},
    {SL_INTERNAL, GRPC_STATUS_INTERNAL, true},
};
#define MAP_COUNT (sizeof(MAP) / sizeof(MAP[0]))

int rpc_status_to_grpc(sl_code code)
{
    for (size_t i = 0; i < MAP_COUNT; i++)
        if (MAP[i].code == code)
            return MAP[i].grpc;
    return GRPC_STATUS_INTERNAL;
}

sl_code rpc_status_from_grpc(int grpc_status)
{
    for (size_t i = 0; i < MAP_COUNT; i++)
        if (MAP[i].grpc == grpc_status && MAP[i].back)
            return MAP[i].code;
    return SL_INTERNAL;
}

sl_code rpc_status_from_wire(int grpc_status, const char *code_text, const char *details)
{
    if (code_text) {
        char *end = NULL;
        long number = strtol(code_text, &end, 10);
        for (size_t i = 0; i < MAP_COUNT && *code_text && !*end; i++)
            if (MAP[i].code == (sl_code)number && MAP[i].grpc == grpc_status)
                return MAP[i].code;
    }
    /* gRPC's own verdict on an oversized message has the status of a full queue, but trying again
     * would not help. */
    if (grpc_status == GRPC_STATUS_RESOURCE_EXHAUSTED && details &&
        (strstr(details, "message larger than max") || strstr(details, "larger than the limit")))
        return SL_TOO_LARGE;
    return rpc_status_from_grpc(grpc_status);
}

const char *rpc_status_grpc_name(int grpc_status)
{
    static const char *const NAMES[] = {
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    };
    if (grpc_status < 0 || (size_t)grpc_status >= sizeof(NAMES) / sizeof(NAMES[0]))
        return "(unknown status)";
    return NAMES[grpc_status];
}
