/* See fork.h. Two short lists in order of arrival. */
#include "decode/fork.h"

#include "base/array.h"
#include "base/assert.h"

void dec_forks_add_open(dec_forks *forks, dec_job *job)
{
    sl_assert(forks->open_count < DEC_SEQUENCES_MAX);
    forks->open[forks->open_count++] = job;
}

void dec_forks_remove_open(dec_forks *forks, const dec_job *job)
{
    (void)sl_pointers_remove(forks->open, &forks->open_count, job);
}

bool dec_forks_is_open(const dec_forks *forks, const dec_job *job)
{
    for (uint32_t i = 0; i < forks->open_count; i++)
        if (forks->open[i] == job)
            return true;
    return false;
}

void dec_forks_add_waiting(dec_forks *forks, dec_job *job)
{
    sl_assert(forks->waiting_count < DEC_SEQUENCES_MAX);
    forks->waiting[forks->waiting_count++] = job;
}

dec_job *dec_forks_take_waiting(dec_forks *forks, const dec_job *source)
{
    for (uint32_t i = 0; i < forks->waiting_count; i++) {
        dec_job *job = forks->waiting[i];
        if (job->source != source)
            continue;
        sl_array_remove(forks->waiting, sizeof(forks->waiting[0]), &forks->waiting_count, i);
        return job;
    }
    return NULL;
}
