/* Between the files of libsluice_nccl.so. Private to comm/nccl. */
#ifndef COMM_NCCL_INSIDE_H
#define COMM_NCCL_INSIDE_H

#include "comm/device_api.h"

#ifdef __cplusplus
#define COM_NCCL_LOCAL extern "C" __attribute__((visibility("hidden")))
#else
#define COM_NCCL_LOCAL __attribute__((visibility("hidden")))
#endif

/* Fills last_error and returns the code. */
COM_NCCL_LOCAL int com_nccl_fail(int code, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The kernels, for the table. */
COM_NCCL_LOCAL int com_nccl_count(const com_device_rows_params *params, com_stream stream);
COM_NCCL_LOCAL int com_nccl_pack(const com_device_rows_params *params, com_stream stream);
COM_NCCL_LOCAL int com_nccl_gather(const com_device_outputs_params *params, com_stream stream);

#endif
