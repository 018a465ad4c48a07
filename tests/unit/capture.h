/* What a piece of code writes to stdout and stderr, as text. */
#ifndef TESTS_UNIT_CAPTURE_H
#define TESTS_UNIT_CAPTURE_H

#include <stdio.h>
#include <unistd.h>

typedef struct capture {
    FILE *files[2];
    int saved[2];
} capture;

static inline capture capture_begin(void)
{
    capture c = {{tmpfile(), tmpfile()}, {dup(1), dup(2)}};
    fflush(stdout);
    fflush(stderr);
    dup2(fileno(c.files[0]), 1);
    dup2(fileno(c.files[1]), 2);
    return c;
}

static inline void capture_read(FILE *file, char *text, size_t size)
{
    rewind(file);
    text[fread(text, 1, size - 1, file)] = '\0';
    fclose(file);
}

/* out and err: `size` bytes each. */
static inline void capture_end(capture *c, char *out, char *err, size_t size)
{
    fflush(stdout);
    fflush(stderr);
    for (int i = 0; i < 2; i++) {
        dup2(c->saved[i], i + 1);
        close(c->saved[i]);
    }
    capture_read(c->files[0], out, size);
    capture_read(c->files[1], err, size);
}

#endif
