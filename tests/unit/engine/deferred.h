/* The backend's copies of transit pages, but as on a device: none is made before somebody waits for
 * it, or has asked often enough. One engine a program. */
#ifndef TESTS_UNIT_ENGINE_DEFERRED_H
#define TESTS_UNIT_ENGINE_DEFERRED_H

#include "engine/ops.h"
#include "tests/unit/engine/support.h"

#define DEFERRED_MAX   4096u
#define DEFERRED_POLLS 3u

static struct {
    const eng_ops *real;
    eng_ops ops;
    eng_outgoing out[DEFERRED_MAX];
    uint32_t out_count;
    struct {
        void *page;
        const void *host;
    } in[DEFERRED_MAX];
    uint32_t in_count, polls;
    uint32_t waits, landings; /* what the tests came through here for */
    bool broken;              /* the device fails from now on */
} deferred;

static void deferred_pieces_out(eng_engine *engine, const eng_outgoing *pieces, uint32_t count)
{
    (void)engine;
    for (uint32_t i = 0; i < count; i++) {
        assert_true(deferred.out_count < DEFERRED_MAX);
        memset(pieces[i].to, 0xA5, pieces[i].bytes); /* nobody may look yet */
        deferred.out[deferred.out_count++] = pieces[i];
    }
}

static bool deferred_out_busy(const eng_engine *engine)
{
    (void)engine;
    return deferred.out_count > 0;
}

static bool deferred_out_wait(eng_engine *engine)
{
    for (uint32_t i = 0; i < deferred.out_count && !deferred.broken; i++)
        deferred.real->pieces_out(engine, &deferred.out[i], 1);
    deferred.out_count = 0;
    deferred.waits++;
    if (deferred.broken)
        engine->broken = "it was unplugged";
    return !deferred.broken;
}

static void deferred_page_in(eng_engine *engine, void *page, const void *host)
{
    (void)engine;
    assert_true(deferred.in_count < DEFERRED_MAX);
    deferred.in[deferred.in_count].page = page;
    deferred.in[deferred.in_count++].host = host;
}

static uint64_t deferred_page_mark(eng_engine *engine)
{
    (void)engine;
    deferred.polls = 0;
    return 0;
}

static bool deferred_page_done(eng_engine *engine, uint64_t mark, bool wait)
{
    (void)mark;
    if (!wait && ++deferred.polls < DEFERRED_POLLS)
        return false;
    for (uint32_t i = 0; i < deferred.in_count; i++)
        deferred.real->page_in(engine, deferred.in[i].page, deferred.in[i].host);
    deferred.in_count = 0;
    deferred.landings++;
    return true;
}

/* From here on `engine` works so. On a real device it does already. */
static inline void deferred_use(eng_engine *engine)
{
    if (rig_cuda())
        return;
    memset(&deferred, 0, sizeof(deferred));
    deferred.real = engine->ops;
    deferred.ops = *engine->ops;
    deferred.ops.pieces_out = deferred_pieces_out;
    deferred.ops.out_busy = deferred_out_busy;
    deferred.ops.out_wait = deferred_out_wait;
    deferred.ops.page_in = deferred_page_in;
    deferred.ops.page_mark = deferred_page_mark;
    deferred.ops.page_done = deferred_page_done;
    engine->ops = &deferred.ops;
}

#endif
