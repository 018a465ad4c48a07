/* How a device is to draw a job's tokens inside a step (engine/sample.h). Internal to decode/.
 * Thread: the engine thread. */
#ifndef DECODE_JOB_DRAW_H
#define DECODE_JOB_DRAW_H

#include "decode/batch.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dec_job_draw {
    eng_draw draw;
    dec_job *job;
    mdl_masks *masks;
} dec_job_draw;

/* Borrows the job and the masks; points into itself, so it stays where it is. NULL: the host draws,
 * since the job hands out more than tokens. */
const eng_draw *dec_job_draw_init(dec_job_draw *out_draw, dec_job *job, mdl_masks *masks);

#ifdef __cplusplus
}
#endif
#endif
