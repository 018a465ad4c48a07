/* What a connected group shows the rest of comm/. Internal to comm/. Thread: the group's. */
#ifndef COMM_GROUP_H
#define COMM_GROUP_H

#include "comm/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Borrowed from the group, until it is connected again or closed. */
typedef struct com_group_view {
    const com_layout *layout; /* without slots */
    uint64_t epoch, mask, wait_ns;
    const char *instance;
    const uint32_t *firsts;    /* [layer_count * expert_count + 1] where an expert's slots begin */
    const uint8_t *slot_ranks; /* [slots in use] */
    const uint32_t *turns;     /* [layer_count][expert_count] as they are now */
} com_group_view;

void com_group_view_get(const com_group *group, com_group_view *out_view);
/* Lets messages move while the caller waits for something else; why the group failed, if it has. */
SL_MUST_USE sl_status com_group_look(com_group *group, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
