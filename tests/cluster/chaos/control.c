/* See control.h. */
#include "tests/cluster/chaos/control.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"

#define CONTROL_BYTES 4096
#define POLL_NS       500000

static chaos_control *control;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void map(void)
{
    const char *path = getenv("SLUICE_CHAOS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *memory = mmap(NULL, CONTROL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (memory != MAP_FAILED)
        control = memory;
}

chaos_control *chaos_control_get(void)
{
    pthread_once(&once, map);
    return control;
}

void chaos_site(const char *site)
{
    chaos_control *c = chaos_control_get();
    if (!c || !atomic_load(&c->armed) || strncmp(c->site, site, sizeof(c->site)) != 0 ||
        atomic_fetch_sub(&c->nth, 1) != 1)
        return;
    sl_warn("chaos: held at %s", site);
    atomic_store(&c->armed, 0);
    atomic_store(&c->held, 1);
    const struct timespec pause = {0, POLL_NS};
    while (!atomic_load(&c->go))
        nanosleep(&pause, NULL);
    atomic_store(&c->go, 0);
    atomic_store(&c->held, 0);
    sl_warn("chaos: %s goes on", site);
}
