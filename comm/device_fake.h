/* A device in host memory: streams are lists of work that runs when somebody looks, kernels are
 * plain loops, a communicator is a meeting of threads. For unit tests; the kernels are what those
 * of comm/nccl/ are compared with.
 *
 * Faults: a test copies the table and puts its own functions in. Thread: any; a stream is its
 * rank's. */
#ifndef COMM_DEVICE_FAKE_H
#define COMM_DEVICE_FAKE_H

#include "comm/device_api.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const com_device_api com_device_fake;

com_stream com_device_fake_stream_create(void);
/* What has not run is dropped. After the communicators and events on it. */
void com_device_fake_stream_destroy(com_stream stream);

#ifdef __cplusplus
}
#endif
#endif
