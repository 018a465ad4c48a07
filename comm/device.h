/* The layers of a connected group with rows in device memory: what com_dispatch and com_combine are
 * for host memory, over a communicator of the devices (comm/nccl.h).
 *
 * The group stays what the ranks know each other by: the communicator's id goes round over it, runs
 * still begin with its headers, and while this rank waits for its device it also hears from the
 * group who is gone. A group that fails takes its communicator along, and the other way round; the
 * next formation is another group with another one.
 *
 * A layer is post, wait, combine, on one stream. What goes where is counted on the device (choices
 * of slots as comm/group.c makes them, so the same rows go to the same ranks); the counts are
 * exchanged first and read by the host, which then posts sends and receives of exactly so many
 * bytes. Between post and wait the caller may put other work on the stream (the shared expert).
 * Windows are for the worst case: nothing is dropped, nothing allocated after open.
 *
 * This rank's own entries go the same way, without leaving the device, so that returns hold one
 * output for each entry and a sum over them in the order of experts is the same for any number of
 * ranks and any placement.
 *
 * Every wait has a deadline (the group's), looks at the abort word and at the communicator's state.
 * Thread: the group's. */
#ifndef COMM_DEVICE_H
#define COMM_DEVICE_H

#include "comm/comm.h"
#include "comm/device_api.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct com_device com_device;

typedef struct com_device_options {
    com_group *group; /* connected, before its first run; borrowed until close */
    const com_device_api *api;
    com_stream stream; /* of all that follows; borrowed */
    int32_t device;    /* made this thread's */
} com_device_options;

/* Makes the communicator: all ranks of the group's mask at the same time. row_bytes and
 * output_bytes of its layout must be multiples of 16, scale_bytes of 4. SL_INCOMPATIBLE: another
 * version of the library on another rank; SL_UNSUPPORTED: no device. Whatever it is, the group
 * fails on all ranks. `deadline` and `stop` as in com_group_connect. */
SL_MUST_USE sl_status com_device_open(const com_device_options *options, sl_time_ns deadline,
                                      const volatile bool *stop, com_device **out_device,
                                      sl_err *err);
/* Properly if the group is well and the others close too within its wait, else by abort. NULL is
 * fine. Before the group. */
void com_device_close(com_device *device);
uint64_t com_device_memory_bytes(const com_device *device); /* of windows and tables */

/* rows: as for com_dispatch_post, its pointers device memory. out_places [row_count][chosen],
 * device memory: the row of com_device_returns where each entry's output will be. All three stay
 * until the wait. */
SL_MUST_USE sl_status com_device_dispatch_post(com_device *device, const com_rows *rows,
                                               uint32_t *out_places, sl_err *err);
/* out_parts [rank_count], by rank, own one too: counts are known, pointers are device memory, in
 * the stream's order, until the next post. Their lists are not checked: they were made by these
 * kernels on a rank of this epoch. */
SL_MUST_USE sl_status com_device_dispatch_wait(com_device *device, com_part *out_parts,
                                               sl_err *err);
/* places as for com_combine_post, device memory, own entries too. fault (device memory, one word):
 * goes to every rank. Returns at once. */
SL_MUST_USE sl_status com_device_combine(com_device *device, const void *outputs,
                                         const uint32_t *places, const uint32_t *fault,
                                         sl_err *err);
/* In the stream's order after the combine. [rows_max * chosen][output_bytes] */
const void *com_device_returns(const com_device *device);
const uint32_t *com_device_faults(const com_device *device); /* [rank_count], the last words */
/* All that was put on the stream is done. Not between post and wait. */
SL_MUST_USE sl_status com_device_wait(com_device *device, sl_err *err);

/* Runs are the group's. dispatch_bytes and combine_bytes: to other ranks. Any thread. */
void com_device_stats_get(const com_device *device, com_stats *out_stats);

#ifdef __cplusplus
}
#endif
#endif
