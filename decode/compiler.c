/* See compiler.h. Who waits is a list in order of arrival; a pointer to the first with a constraint
 * goes to the thread and comes back. */
#include "decode/compiler.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/fault.h"
#include "base/ring.h"

typedef struct waiting {
    struct waiting *next;
    void *owner; /* NULL: forgotten, but the thread may have it */
    Sluice__V1__Admit *admit;
    bool sent; /* to the thread; the others wait for one that is */
    /* the thread's, until it comes back */
    dec_compiled compiled;
    sl_status status;
    sl_err err;
} waiting;

struct dec_compiler {
    dec_constraints *constraints;
    dec_compiler_fn fn;
    void *context;
    waiting *first;
    uint32_t count, max;
    sl_mailbox *requests, *done; /* of waiting *; a request of NULL ends the thread */
    sl_watch *watch;
    pthread_t thread;
    bool running;
    _Atomic bool stopping;
};

/* ---- the thread ---- */

static void compile(waiting *w)
{
    if (sl_fault("decode.compile"))
        w->status = sl_fail(&w->err, SL_INTERNAL, "fault site decode.compile");
    else
        w->status = dec_constraint_compile(w->admit->constraint, &w->compiled, &w->err);
}

static void *compiler_main(void *argument)
{
    dec_compiler *c = argument;
    waiting *w;
    for (;;) {
        sl_mailbox_clear(c->requests);
        while (sl_mailbox_pop(c->requests, &w)) {
            if (!w)
                return NULL;
            if (atomic_load(&c->stopping))
                continue;
            compile(w);
            bool pushed = sl_mailbox_push(c->done, &w);
            sl_assert(pushed); /* as large as all that may wait */
        }
        sl_mailbox_wait(c->requests, SL_NEVER);
    }
}

/* ---- who waits ---- */

static bool equal_constraints(const waiting *a, const Sluice__V1__Constraint *b)
{
    const Sluice__V1__Constraint *x = a->admit->constraint;
    size_t size = sluice__v1__constraint__get_packed_size(b);
    if (sluice__v1__constraint__get_packed_size(x) != size)
        return false;
    uint8_t *bytes = sl_alloc(2 * size + 1, 1, "decode constraint key");
    sluice__v1__constraint__pack(x, bytes);
    sluice__v1__constraint__pack(b, bytes + size);
    bool equal = memcmp(bytes, bytes + size, size) == 0;
    sl_free(bytes);
    return equal;
}

static Sluice__V1__Admit *copy_admit(const Sluice__V1__Admit *admit)
{
    size_t size = sluice__v1__admit__get_packed_size(admit);
    uint8_t *bytes = sl_alloc(size + 1, 1, "decode admission");
    sluice__v1__admit__pack(admit, bytes);
    Sluice__V1__Admit *copy = sluice__v1__admit__unpack(NULL, size, bytes);
    sl_assert(copy);
    sl_free(bytes);
    return copy;
}

static void destroy_waiting(waiting *w)
{
    dec_compiled_fini(&w->compiled);
    sluice__v1__admit__free_unpacked(w->admit, NULL);
    sl_free(w);
}

/* Takes the next one with the same constraint off the list; NULL: there is none. */
static waiting *take_equal(dec_compiler *c, const Sluice__V1__Constraint *constraint)
{
    for (waiting **at = &c->first; *at; at = &(*at)->next) {
        waiting *w = *at;
        if (!equal_constraints(w, constraint))
            continue;
        *at = w->next;
        c->count--;
        return w;
    }
    return NULL;
}

/* The one that was compiled is the first of its kind: it is told first, and freed last. */
static void tell(dec_compiler *c, waiting *compiled)
{
    const Sluice__V1__Constraint *constraint = compiled->admit->constraint;
    if (sl_is_ok(compiled->status))
        dec_constraint_add(c->constraints, constraint, &compiled->compiled);
    for (waiting *w; (w = take_equal(c, constraint)) != NULL;) {
        sl_assert(w == compiled || !w->sent); /* nobody came to wait for what is here */
        if (w->owner)
            c->fn(c->context, w->owner, w->admit, compiled->status, &compiled->err);
        if (w != compiled)
            destroy_waiting(w);
    }
    destroy_waiting(compiled);
}

static void on_done(void *context, uint32_t events)
{
    dec_compiler *c = context;
    waiting *w;
    sl_mailbox_clear(c->done);
    while (sl_mailbox_pop(c->done, &w))
        tell(c, w);
}

sl_status dec_compiler_wait(dec_compiler *c, void *owner, const Sluice__V1__Admit *admit,
                            sl_err *err)
{
    sl_assert(owner && admit->constraint);
    dec_compiler_forget(c, owner, admit->request_id);
    if (c->count == c->max)
        return sl_fail(err, SL_FULL, "%u admissions wait for their constraints", c->count);
    waiting **last = &c->first;
    bool sent = false;
    for (; *last; last = &(*last)->next)
        sent |= (*last)->sent && equal_constraints(*last, admit->constraint);
    waiting *w = sl_alloc(1, sizeof(*w), "decode admission");
    w->owner = owner;
    w->admit = copy_admit(admit);
    w->sent = !sent;
    *last = w;
    c->count++;
    bool pushed = sent || sl_mailbox_push(c->requests, &w);
    sl_assert(pushed);
    return sl_ok();
}

void dec_compiler_forget(dec_compiler *c, const void *owner, const char *request_id)
{
    for (waiting *w = c->first; w; w = w->next)
        if (w->owner == owner && (!request_id || strcmp(w->admit->request_id, request_id) == 0))
            w->owner = NULL;
}

/* ---- life ---- */

static sl_status start(dec_compiler *c, sl_loop *loop, sl_err *err)
{
    size_t capacity = 2; /* all that may wait, and the end */
    while (capacity < c->max + 1)
        capacity *= 2;
    SL_TRY(sl_mailbox_create(sizeof(waiting *), capacity, &c->requests, err));
    SL_TRY(sl_mailbox_create(sizeof(waiting *), capacity, &c->done, err));
    SL_TRY(sl_watch_create(loop, sl_mailbox_fd(c->done), EPOLLIN, on_done, c, &c->watch, err));
    if (pthread_create(&c->thread, NULL, compiler_main, c) != 0)
        return sl_fail(err, SL_NO_MEMORY, "cannot start a thread");
    c->running = true;
    return sl_ok();
}

sl_status dec_compiler_create(sl_loop *loop, dec_constraints *constraints, uint32_t waiting_max,
                              dec_compiler_fn fn, void *context, dec_compiler **out_compiler,
                              sl_err *err)
{
    dec_compiler *c = sl_alloc(1, sizeof(*c), "decode compiler");
    *c = (dec_compiler){
        .constraints = constraints, .max = waiting_max, .fn = fn, .context = context};
    sl_status status = start(c, loop, err);
    if (sl_is_ok(status))
        *out_compiler = c;
    else
        dec_compiler_destroy(c);
    return status;
}

void dec_compiler_destroy(dec_compiler *c)
{
    if (!c)
        return;
    if (c->running) {
        waiting *end = NULL;
        atomic_store(&c->stopping, true);
        bool pushed = sl_mailbox_push(c->requests, &end);
        sl_assert(pushed);
        pthread_join(c->thread, NULL);
    }
    sl_watch_destroy(c->watch);
    sl_mailbox_destroy(c->requests);
    sl_mailbox_destroy(c->done);
    for (waiting *w; (w = c->first) != NULL;) {
        c->first = w->next;
        destroy_waiting(w);
    }
    sl_free(c);
}
