/* Other weights on all ranks of an instance at once.
 *
 * Each rank's word of it stands in its run headers, so all ranks see the same words in the same
 * order. While it loads and waits for others nothing changes for runs; from READY on a rank has no
 * run of its own. The headers in which all say GO are the point in time: no run stands between them
 * and the exchange of the weights, on any rank. Whoever takes its word back does so in a header
 * too, before those.
 *
 * Who has everybody's sums after that goes over. If a rank dies before all have them, those without
 * are in doubt: they have both weights and run nothing until they meet the others again, who say
 * which theirs are. Who never sent its own sums is in no doubt: nobody can have gone over.
 * Thread: the engine thread, but where reload.h says so. */
#include "engine/reload.h"

#include <poll.h>
#include <string.h>

#include "base/assert.h"
#include "base/fault.h"
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

/* What follows the point of no return. */
static void go_over(eng_engine *engine, eng_model *model, eng_model *fresh, uint32_t version,
                    eng_reload_told *out_told)
{
    sl_err *tier = &out_told->tier;
    if (sl_is_ok(eng_engine_replace(engine, model, fresh, version, tier)))
        tier->text[0] = '\0'; /* else: the others have them too, no way back */
}

sl_status eng_engine_reload_together(eng_engine *engine, eng_model *model, eng_model *fresh,
                                     const eng_reload_together *how, eng_reload_told *out_told,
                                     sl_err *err)
{
    eng_ranks *ranks = engine->ranks;
    size_t entries = (size_t)model->moe_layers * model->ep_size * model->ep_slots;
    sl_assert(ranks && ranks->wish == ENG_WISH_NONE);
    *out_told = (eng_reload_told){0};
    SL_TRY(eng_engine_check_reload(engine, model, fresh, how->version, err));
    if (engine->broken || !ranks->group || ranks->lost)
        return sl_fail(err, SL_UNAVAILABLE, "the ranks have lost each other");
    if (ranks->state.used != how->formation || fresh->ep_slots != model->ep_slots ||
        memcmp(fresh->ep_table, model->ep_table, entries * sizeof(uint16_t)) != 0)
        return sl_fail(err, SL_CONFLICT, "ranks or placement are others than when it was loaded");
    SL_TRY(agree(engine, how->version, how->wait_ns, err));
    bool cut = sl_fault("reload.exchange"); /* the last message of another is late for good */
    sl_status status = eng_model_join(fresh, ranks->group, err);
    if (cut && sl_is_ok(status)) {
        com_abort(ranks->group, "reload.exchange");
        status = sl_fail(err, SL_UNAVAILABLE, "reload.exchange");
    }
    /* Who compared them has the same words as all who did. */
    out_told->doubt = !sl_is_ok(status) && status.code != SL_INCOMPATIBLE;
    if (sl_is_ok(status))
        go_over(engine, model, fresh, how->version, out_told);
    return status;
}

/* ---- in doubt */

typedef struct settle_word {
    uint64_t version, doubt;
} settle_word;

/* Those in doubt about a version that another rank has, as bits. */
static uint64_t settle_over(const settle_word *all, uint64_t mask)
{
    uint64_t over = 0;
    for (uint32_t r = 0; r < COM_RANKS_MAX; r++)
        for (uint32_t q = 0; q < COM_RANKS_MAX && (mask >> r & 1) != 0; q++)
            if ((mask >> q & 1) != 0 && all[r].doubt != 0 && all[q].version == all[r].doubt)
                over |= UINT64_C(1) << r;
    return over;
}

sl_status eng_model_settle(eng_model *model, const eng_reload_doubt *own, com_group *group,
                           bool *out_over, sl_err *err)
{
    const settle_word mine = {own->version, own->fresh ? own->fresh_version : 0};
    settle_word all[COM_RANKS_MAX] = {{0}};
    *out_over = false;
    SL_TRY(com_gather(group, &mine, sizeof(mine), all, err));
    uint64_t over = settle_over(all, com_group_mask(group));
    bool goes = (over >> com_group_rank(group) & 1) != 0;
    SL_TRY(eng_model_join(goes ? own->fresh : model, group, err));
    if (over == 0)
        return sl_ok();
    *out_over = goes;
    return sl_fail(err, SL_CONFLICT,
                   goes ? "this rank goes over to version %u first, which others have"
                        : "ranks in doubt go over to version %u first",
                   goes ? own->fresh_version : own->version);
}

sl_status eng_engine_reload_late(eng_engine *engine, eng_model *model, eng_model *fresh,
                                 uint32_t version, eng_reload_told *out_told, sl_err *err)
{
    *out_told = (eng_reload_told){0};
    SL_TRY(eng_engine_check_reload(engine, model, fresh, version, err));
    if (!engine->ranks->lost)
        return sl_fail(err, SL_CONFLICT, "the ranks go on with the weights that they have");
    go_over(engine, model, fresh, version, out_told);
    return sl_ok();
}
