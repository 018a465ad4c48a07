/* Other weights on all ranks of an instance at once.
 *
 * Each rank's word of it stands in its run headers, so all ranks see the same words in the same
 * order. While it loads and waits for others nothing changes for runs; from READY on a rank has no
 * run of its own. The headers in which all say GO are the point in time: no run stands between them
 * and the exchange of the weights, on any rank. Whoever takes its word back does so in a header
 * too, before those. Thread: the engine thread, but where reload.h says so. */
#include "engine/reload.h"

#include <poll.h>
#include <string.h>

#include "base/assert.h"
#include "engine/ops.h"
#include "engine/ranks.h"

static uint64_t word_pack(uint32_t version, eng_reload_stage stage)
{
    return (uint64_t)version << 8 | (uint64_t)stage;
}

static eng_reload_word word_unpack(uint64_t packed)
{
    uint32_t stage = (uint32_t)(packed & 0xff);
    eng_reload_word word = {.version = (uint32_t)(packed >> 8)};
    word.stage = stage < ENG_RELOAD_STAGE_COUNT ? (eng_reload_stage)stage : ENG_RELOAD_NONE;
    return word;
}

void eng_engine_tell_reload(eng_engine *engine, uint32_t version, eng_reload_stage stage)
{
    uint64_t word = stage == ENG_RELOAD_NONE ? 0 : word_pack(version, stage);
    __atomic_store_n(&engine->ranks->reload, word, __ATOMIC_RELEASE);
    eng_ranks_ring(engine);
}

void eng_engine_reload_words(eng_engine *engine, eng_reload_word out_words[COM_RANKS_MAX])
{
    eng_ranks *ranks = engine->ranks;
    pthread_mutex_lock(&ranks->lock);
    for (uint32_t r = 0; r < COM_RANKS_MAX; r++)
        out_words[r] = word_unpack(ranks->words[r]);
    pthread_mutex_unlock(&ranks->lock);
}

void eng_ranks_hear(eng_ranks *ranks, const com_header *headers)
{
    bool other = false;
    for (uint32_t r = 0; r < ranks->size; r++)
        other |= ranks->words[r] != headers[r].reload; /* written by this thread only */
    if (!other)
        return;
    pthread_mutex_lock(&ranks->lock);
    for (uint32_t r = 0; r < ranks->size; r++)
        ranks->words[r] = headers[r].reload;
    pthread_mutex_unlock(&ranks->lock);
    if (ranks->on_change)
        ranks->on_change(ranks->on_change_context);
}

/* Until another rank may have something to say. false: too late. */
static bool wait_for_news(com_group *group, sl_time_ns end)
{
    while (!com_header_pending(group)) {
        sl_time_ns now = sl_now_ns();
        struct pollfd news = {.fd = com_fd(group), .events = POLLIN};
        if (now >= end)
            return false;
        if (com_arm(group))
            (void)poll(&news, 1, (int)((end - now) / SL_MS_NS) + 1);
    }
    return true;
}

/* Until all ranks say GO in the same headers. */
static sl_status agree(eng_engine *engine, uint32_t version, uint64_t wait_ns, sl_err *err)
{
    eng_ranks *ranks = engine->ranks;
    uint64_t go = word_pack(version, ENG_RELOAD_GO), ready = word_pack(version, ENG_RELOAD_READY);
    sl_time_ns end = sl_now_ns() + wait_ns;
    __atomic_store_n(&ranks->reload, go, __ATOMIC_RELEASE);
    for (;;) {
        eng_wish run;
        bool all = true;
        uint64_t used = ranks->state.used;
        if (!eng_ranks_round(engine, &run))
            return sl_fail(err, SL_UNAVAILABLE, "the ranks have lost each other");
        if (ranks->state.used != used)
            return sl_fail(err, SL_CONFLICT, "the ranks went over to another formation");
        for (uint32_t r = 0; r < ranks->size; r++) {
            if ((com_group_mask(ranks->group) >> r & 1) == 0)
                continue;
            all &= ranks->words[r] == go;
            if (ranks->words[r] != go && ranks->words[r] != ready)
                return sl_fail(err, SL_CONFLICT, "rank %u has taken its word back", r);
        }
        if (all && run == ENG_WISH_NONE)
            return sl_ok();
        if (!wait_for_news(ranks->group, end))
            return sl_fail(err, SL_DEADLINE, "not all ranks went on within %.1f s",
                           (double)wait_ns / 1e9);
    }
}

sl_status eng_engine_reload_together(eng_engine *engine, eng_model *model, eng_model *fresh,
                                     const eng_reload_together *how, sl_err *out_tier, sl_err *err)
{
    eng_ranks *ranks = engine->ranks;
    size_t entries = (size_t)model->moe_layers * model->ep_size * model->ep_slots;
    sl_assert(ranks && ranks->wish == ENG_WISH_NONE);
    out_tier->text[0] = '\0';
    SL_TRY(eng_engine_check_reload(engine, model, fresh, how->version, err));
    if (engine->broken || !ranks->group || ranks->lost)
        return sl_fail(err, SL_UNAVAILABLE, "the ranks have lost each other");
    if (ranks->state.used != how->formation || fresh->ep_slots != model->ep_slots ||
        memcmp(fresh->ep_table, model->ep_table, entries * sizeof(uint16_t)) != 0)
        return sl_fail(err, SL_CONFLICT, "ranks or placement are others than when it was loaded");
    SL_TRY(agree(engine, how->version, how->wait_ns, err));
    SL_TRY(eng_model_join(fresh, ranks->group, err)); /* the same words on all ranks */
    sl_status status = eng_engine_replace(engine, model, fresh, how->version, out_tier);
    (void)status; /* the others have them too: no way back */
    return sl_ok();
}
