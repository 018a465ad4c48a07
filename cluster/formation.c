/* Formations: JSON, and the decision. See formation.h. */
#include "cluster/formation.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/json.h"
#include "cluster/fields.h"

/* ---- JSON ---- */

static void write_bits(sl_buf *buf, const char *key, uint64_t bits)
{
    bool first = true;
    sl_buf_printf(buf, ",\"%s\":[", key);
    for (uint32_t r = 0; r < CLU_RANKS_MAX; r++) {
        if ((bits >> r & 1) == 0)
            continue;
        sl_buf_printf(buf, "%s%u", first ? "" : ",", r);
        first = false;
    }
    sl_buf_puts(buf, "]");
}

void clu_rank_write_json(sl_buf *buf, const clu_rank_record *record)
{
    sl_buf_puts(buf, "{\"node\":");
    sl_json_write_string(buf, record->node, strlen(record->node));
    sl_buf_puts(buf, ",\"contact\":");
    sl_json_write_string(buf, record->contact, strlen(record->contact));
    sl_buf_printf(buf,
                  ",\"size\":%u,\"leaving\":%s,\"formation\":%" PRIu64 ",\"tried\":%" PRIu64
                  ",\"ready\":%" PRIu64 ",\"failed\":%s",
                  record->size, record->leaving ? "true" : "false", record->formation,
                  record->tried, record->ready, record->failed ? "true" : "false");
    write_bits(buf, "lost", record->lost);
    sl_buf_puts(buf, "}");
}

static sl_status get_count(const sl_json *root, const char *key, int64_t least, uint64_t *out_count,
                           sl_err *err)
{
    int64_t count = 0;
    SL_TRY(clu_field_number(root, key, true, least, INT64_MAX, &count, err));
    *out_count = (uint64_t)count;
    return sl_ok();
}

static sl_status get_bits(const sl_json *root, const char *key, uint64_t *out_bits, sl_err *err)
{
    const sl_json *list = sl_json_get(root, key);
    uint64_t bits = 0;
    if (sl_json_typeof(list) != SL_JSON_ARRAY || sl_json_count(list) > CLU_RANKS_MAX)
        return sl_fail(err, SL_INVALID, "%s: want a list of ranks", key);
    for (size_t i = 0; i < sl_json_count(list); i++) {
        int64_t rank;
        if (!sl_json_i64(sl_json_at(list, i), &rank) || rank < 0 || rank >= CLU_RANKS_MAX)
            return sl_fail(err, SL_INVALID, "%s: want ranks, 0 to %u", key, CLU_RANKS_MAX - 1);
        bits |= UINT64_C(1) << rank;
    }
    *out_bits = bits;
    return sl_ok();
}

static sl_status parse_rank(const sl_json *root, clu_rank_record *record, sl_err *err)
{
    int64_t size = 0;
    SL_TRY(clu_field_text(root, "node", true, record->node, sizeof(record->node), err));
    SL_TRY(clu_field_text(root, "contact", true, record->contact, sizeof(record->contact), err));
    if (!clu_name_valid(record->node))
        return sl_fail(err, SL_INVALID, "node: no name of a node");
    if (!record->contact[0])
        return sl_fail(err, SL_INVALID, "contact: empty");
    SL_TRY(clu_field_number(root, "size", true, 1, CLU_RANKS_MAX, &size, err));
    SL_TRY(clu_field_bool(root, "leaving", true, &record->leaving, err));
    SL_TRY(get_count(root, "formation", 0, &record->formation, err));
    SL_TRY(get_count(root, "tried", 0, &record->tried, err));
    SL_TRY(get_count(root, "ready", 0, &record->ready, err));
    SL_TRY(clu_field_bool(root, "failed", true, &record->failed, err));
    SL_TRY(get_bits(root, "lost", &record->lost, err));
    record->size = (uint32_t)size;
    return sl_ok();
}

sl_status clu_rank_parse_json(const void *data, size_t size, clu_rank_record *out_record,
                              sl_err *err)
{
    sl_json_doc *doc;
    clu_rank_record record = {0};
    sl_status status = clu_fields_open(data, size, CLU_RANK_JSON_MAX, &doc, err);
    if (sl_is_ok(status)) {
        status = parse_rank(sl_json_root(doc), &record, err);
        sl_json_doc_destroy(doc);
    }
    if (!sl_is_ok(status))
        return sl_wrap(err, status, "rank record");
    *out_record = record;
    return status;
}

void clu_formation_write_json(sl_buf *buf, const clu_formation *formation)
{
    bool first = true;
    sl_buf_printf(buf, "{\"number\":%" PRIu64 ",\"placement\":%" PRIu64, formation->number,
                  formation->placement);
    write_bits(buf, "ranks", formation->ranks);
    sl_buf_puts(buf, ",\"contacts\":[");
    for (uint32_t r = 0; r < CLU_RANKS_MAX; r++) {
        if ((formation->ranks >> r & 1) == 0)
            continue;
        sl_buf_puts(buf, first ? "" : ",");
        sl_json_write_string(buf, formation->contacts[r], strlen(formation->contacts[r]));
        first = false;
    }
    sl_buf_puts(buf, "]}");
}

static sl_status parse_formation(const sl_json *root, clu_formation *formation, sl_err *err)
{
    const sl_json *contacts = sl_json_get(root, "contacts");
    size_t at = 0;
    SL_TRY(get_count(root, "number", 1, &formation->number, err));
    SL_TRY(get_count(root, "placement", 1, &formation->placement, err));
    SL_TRY(get_bits(root, "ranks", &formation->ranks, err));
    for (uint32_t r = 0; r < CLU_RANKS_MAX; r++) {
        size_t size;
        if ((formation->ranks >> r & 1) == 0)
            continue;
        const char *text = sl_json_string(sl_json_at(contacts, at++), &size);
        if (!text || size == 0 || size >= CLU_CONTACT_MAX || memchr(text, '\0', size))
            return sl_fail(err, SL_INVALID, "contacts: want one of each rank");
        memcpy(formation->contacts[r], text, size + 1);
    }
    if (at == 0 || sl_json_count(contacts) != at)
        return sl_fail(err, SL_INVALID, "contacts: want one of each rank");
    return sl_ok();
}

sl_status clu_formation_parse_json(const void *data, size_t size, clu_formation *out_formation,
                                   sl_err *err)
{
    sl_json_doc *doc;
    sl_status status = clu_fields_open(data, size, CLU_FORMATION_JSON_MAX, &doc, err);
    if (!sl_is_ok(status))
        return sl_wrap(err, status, "formation");
    clu_formation *formation = sl_alloc(1, sizeof(*formation), "formation");
    status = parse_formation(sl_json_root(doc), formation, err);
    sl_json_doc_destroy(doc);
    if (sl_is_ok(status))
        *out_formation = *formation;
    sl_free(formation);
    return sl_is_ok(status) ? status : sl_wrap(err, status, "formation");
}

/* ---- the decision ---- */

static bool has(uint64_t bits, uint32_t rank)
{
    return (bits >> rank & 1) != 0;
}

static clu_form_action wait_until(sl_time_ns at)
{
    return (clu_form_action){.what = CLU_FORM_WAIT, .again_at = at};
}

static clu_form_action act(clu_form_what what)
{
    return (clu_form_action){.what = what, .again_at = SL_NEVER};
}

static clu_form_action propose(uint64_t ranks, uint64_t placement)
{
    return (clu_form_action){CLU_FORM_PROPOSE, ranks, placement, SL_NEVER};
}

/* The rank is in the newest formation as it is now, not as a former life of it. */
static bool called(const clu_form_seen *seen, uint32_t rank, const char *contact)
{
    return has(seen->newest->ranks, rank) && strcmp(seen->newest->contacts[rank], contact) == 0;
}

/* It has nothing to do any more with the newest formation, or is through with it. */
static bool settled(const clu_form_seen *seen, uint32_t rank)
{
    return seen->there[rank] && (seen->records[rank].tried >= seen->newest->number ||
                                 !called(seen, rank, seen->records[rank].contact));
}

static uint32_t lowest(uint64_t ranks)
{
    return (uint32_t)__builtin_ctzll(ranks);
}

/* No rank of the instance is in a formation: all must be there. */
static clu_form_action decide_start(const clu_form *form, const clu_form_seen *seen)
{
    uint64_t all = UINT64_MAX >> (64 - form->size);
    for (uint32_t r = 0; r < form->size; r++)
        if (!seen->there[r] || seen->records[r].formation > 0 || seen->records[r].leaving ||
            !settled(seen, r))
            return wait_until(SL_NEVER);
    return form->rank == 0 && seen->placement > 0 ? propose(all, seen->placement)
                                                  : wait_until(SL_NEVER);
}

/* In no formation, and ready to be in one. */
static bool is_free(const clu_form_seen *seen, uint32_t rank)
{
    return seen->there[rank] && seen->records[rank].formation == 0 &&
           !seen->records[rank].leaving && settled(seen, rank);
}

/* Those who have said that the formation failed, and are through with newer ones. If they are too
 * few, then with whoever else is there: not all have got into it. */
static clu_form_action decide_failed(const clu_form *form, const clu_form_seen *seen,
                                     sl_time_ns now)
{
    sl_time_ns grace = form->failed_at + CLU_FORM_GRACE_NS;
    sl_time_ns end = form->failed_at + form->reform_ns;
    uint64_t said = 0, lost = 0, others = 0;
    for (uint32_t r = 0; r < form->size; r++) {
        others |= is_free(seen, r) ? UINT64_C(1) << r : 0;
        if (!has(form->used_ranks, r) || !seen->there[r] || !seen->records[r].failed)
            continue;
        lost |= seen->records[r].lost;
        if (settled(seen, r))
            said |= UINT64_C(1) << r;
    }
    if (now >= end)
        return act(CLU_FORM_DOOMED);
    uint64_t awaited = form->used_ranks & ~said & ~lost & ~others;
    if (!has(said, form->rank) || (awaited != 0 && now < grace))
        return wait_until(now < grace ? grace : end);
    uint64_t wanted = said;
    if ((uint32_t)__builtin_popcountll(said) < form->ranks_needed)
        wanted |= others;
    if ((uint32_t)__builtin_popcountll(wanted) < form->ranks_needed)
        return act(CLU_FORM_DOOMED);
    if (lowest(said) == form->rank)
        return propose(wanted, seen->placement);
    return wait_until(end);
}

/* All goes well: whoever came is taken in, a newer table is taken over. */
static clu_form_action decide_change(const clu_form *form, const clu_form_seen *seen,
                                     sl_time_ns now)
{
    const clu_formation *newest = seen->newest;
    bool all_ready = newest->number > form->own.formation;
    uint64_t wanted = form->used_ranks;
    for (uint32_t r = 0; r < form->size; r++) {
        const clu_rank_record *record = &seen->records[r];
        if (has(form->used_ranks, r)) {
            if (!seen->there[r] || record->formation != form->own.formation || record->failed ||
                record->leaving || !settled(seen, r))
                return wait_until(SL_NEVER);
            all_ready = all_ready && record->ready == newest->number;
        } else if (is_free(seen, r) ||
                   (seen->there[r] && record->formation > form->own.formation && !record->leaving &&
                    settled(seen, r))) { /* alone in one that did not come about */
            wanted |= UINT64_C(1) << r;
        }
    }
    if (all_ready || lowest(form->used_ranks) != form->rank)
        return wait_until(SL_NEVER); /* they go over in a moment; or another one proposes */
    if (wanted == form->used_ranks && seen->placement <= form->used_placement)
        return wait_until(SL_NEVER);
    return now < form->retry_at ? wait_until(form->retry_at) : propose(wanted, seen->placement);
}

clu_form_action clu_form_decide(const clu_form *form, const clu_form_seen *seen, sl_time_ns now)
{
    const clu_formation *newest = seen->newest;
    bool own = called(seen, form->rank, form->own.contact);
    if (form->own.leaving)
        return wait_until(SL_NEVER);
    if (newest->number > form->own.tried && own)
        return form->forming == newest->number ? wait_until(SL_NEVER) : act(CLU_FORM_JOIN);
    if (form->forming > 0)
        return wait_until(SL_NEVER);
    if (form->own.formation > 0 && newest->number > form->own.formation &&
        !has(newest->ranks, form->rank))
        return act(CLU_FORM_OUT);
    if (form->own.formation == 0) {
        if (form->own.failed)
            return act(CLU_FORM_DOOMED);
        return decide_start(form, seen);
    }
    return form->own.failed ? decide_failed(form, seen, now) : decide_change(form, seen, now);
}
