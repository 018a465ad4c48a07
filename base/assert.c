/* sl_assert's slow half: says what failed and aborts. Any thread, never returns. */
#include "base/assert.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

void sl_assert_failed(const char *expression, const char *file, int line)
{
    char text[512];
    int size =
        snprintf(text, sizeof(text), "%s:%d: assertion failed: %s\n", file, line, expression);
    if (size > (int)sizeof(text) - 1)
        size = (int)sizeof(text) - 1;
    if (size > 0) {
        ssize_t ignored = write(STDERR_FILENO, text, (size_t)size);
        (void)ignored;
    }
    abort();
}
