/* A directory of a test's own, gone with its files afterwards. */
#ifndef TESTS_UNIT_MODEL_TEMP_DIR_H
#define TESTS_UNIT_MODEL_TEMP_DIR_H

#include <dirent.h>
#include <unistd.h>

#include "tests/unit/test.h"

static char dir[64];

/* Valid until the fourth call after it. */
static inline const char *in_dir(const char *name)
{
    static char path[4][320];
    static unsigned next;
    char *p = path[next++ % 4];

    snprintf(p, sizeof(path[0]), "%s/%s", dir, name);
    return p;
}

static inline int set_up(void **state)
{
    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/sluice-model-test-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static inline int tear_down(void **state)
{
    (void)state;
    DIR *listing = opendir(dir);
    for (struct dirent *entry; listing && (entry = readdir(listing));)
        if (entry->d_name[0] != '.')
            unlink(in_dir(entry->d_name));
    if (listing)
        closedir(listing);
    return rmdir(dir);
}

#endif
