/* A test's program run again as a child process, to which the test talks by lines: what lets a test
 * have several processes over real UCX, and kill some. UCX must not be forked, hence the exec. */
#ifndef TESTS_UNIT_CHILD_H
#define TESTS_UNIT_CHILD_H

#include <fcntl.h>
#include <linux/close_range.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/test.h"

typedef struct child {
    pid_t pid;
    FILE *in, *out; /* to it, from it */
} child;

/* `arguments` (from argv[0] on, NULL last) are what the program's main sees. `tls`: UCX's
 * transports there; NULL: as here. */
static inline child child_start(char *const *arguments, const char *tls)
{
    int in[2], out[2];
    child c;
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    c.pid = fork();
    assert_true(c.pid >= 0);
    if (c.pid == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        close_range(3, ~0u, CLOSE_RANGE_CLOEXEC); /* UCX's listener would live on in the child */
        if (tls)
            setenv("UCX_TLS", tls, 1);
        execv("/proc/self/exe", arguments);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    c.in = fdopen(in[1], "w");
    c.out = fdopen(out[0], "r");
    return c;
}

/* The next line it says; fails the test if it has ended. */
static inline void child_line(child *c, char *out_line, int size)
{
    if (!fgets(out_line, size, c->out))
        fail_msg("a child process has ended before its time");
}

/* Waits for its end: the status of waitpid. */
static inline int child_wait(child *c)
{
    int status;
    assert_int_equal(waitpid(c->pid, &status, 0), c->pid);
    fclose(c->in);
    fclose(c->out);
    return status;
}

#endif
