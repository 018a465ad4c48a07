/* Sequences that copy the prompt of another one (the further choices of a request): who waits for
 * whom.
 *
 * A fork's source is named by its job, which may be gone: it is only compared with the open ones,
 * never followed before it was found there. A job is allocated after the commands of the one that
 * had its memory before, so the comparison cannot mistake one for the other. Thread: the engine
 * thread. Owns no jobs; never opens or closes a sequence. */
#ifndef DECODE_FORK_H
#define DECODE_FORK_H

#include "decode/batch.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dec_forks {
    dec_job *open[DEC_SEQUENCES_MAX]; /* hold a sequence */
    uint32_t open_count;
    dec_job *waiting[DEC_SEQUENCES_MAX]; /* for the prompt of their source */
    uint32_t waiting_count;
} dec_forks;

void dec_forks_add_open(dec_forks *forks, dec_job *job);
void dec_forks_remove_open(dec_forks *forks, const dec_job *job);
bool dec_forks_is_open(const dec_forks *forks, const dec_job *job);
void dec_forks_add_waiting(dec_forks *forks, dec_job *job);
/* Takes one that waits for `source`, in order of arrival; NULL: none does. */
dec_job *dec_forks_take_waiting(dec_forks *forks, const dec_job *source);

#ifdef __cplusplus
}
#endif
#endif
