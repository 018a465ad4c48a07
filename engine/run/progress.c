/* Lines about a load that takes a while. Thread: main. */
#include "engine/run/progress.h"

#include <stdio.h>

#define QUIET_S 2.0

void eng_run_show_progress(void *context, const eng_load_progress *progress)
{
    eng_load_progress *last = context;
    double done = (double)progress->bytes_done, total = (double)progress->bytes_total;
    if (last)
        *last = *progress;
    if (progress->seconds < QUIET_S)
        return;
    fprintf(stderr, "sluice-run: weights: %.2f of %.2f GB in %.0f s, %.0f MB/s\n", done / 1e9,
            total / 1e9, progress->seconds, done / 1e6 / progress->seconds);
}
