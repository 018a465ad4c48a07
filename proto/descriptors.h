/* The descriptors of all .proto files, for reflection: made at code generation, immutable.
 *
 * Owns nothing, any thread. proto/descriptors.c is written by tools/codegen. */
#ifndef PROTO_DESCRIPTORS_H
#define PROTO_DESCRIPTORS_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct proto_file {
    const char *name;           /* "sluice/v1/decode.proto" */
    const unsigned char *bytes; /* a serialised FileDescriptorProto */
    size_t size;
    const char *const *symbols; /* messages, enums, services, methods; NULL-terminated */
    const char *const *deps;    /* names of the files it imports; NULL-terminated */
} proto_file;

extern const proto_file proto_files[];
extern const unsigned proto_file_count;

#ifdef __cplusplus
}
#endif
#endif
