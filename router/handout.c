/* See handout.h. */
#include "router/handout.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/json.h"
#include "router/limits.h"

#define VERSIONS_MAX 256u /* of the weights, in one answer */
#define VERSION_SIZE 32u

typedef struct version {
    uint32_t from; /* token */
    char text[VERSION_SIZE];
} version;

struct rtr_handout {
    rtr_handout_options o;
    mdl_routing_layout layout;
    uint32_t vocab_size;
    sl_buf rows;
    sl_buf masks;
    size_t *mask_ends; /* [capacity] */
    uint32_t count, capacity;
    version versions[VERSIONS_MAX];
    uint32_t version_count;
};

rtr_handout *rtr_handout_create(const rtr_handout_options *options)
{
    rtr_handout *handout = sl_alloc(1, sizeof *handout, "router hand-out");
    handout->o = *options;
    handout->vocab_size = (uint32_t)options->shape->vocab_size;
    mdl_routing_layout_init(options->shape, &handout->layout);
    sl_buf_init(&handout->rows, options->bytes_max);
    sl_buf_init(&handout->masks, options->bytes_max);
    return handout;
}

void rtr_handout_destroy(rtr_handout *handout)
{
    if (!handout)
        return;
    sl_buf_fini(&handout->rows);
    sl_buf_fini(&handout->masks);
    sl_free(handout->mask_ends);
    sl_free(handout);
}

static sl_status check(const rtr_handout *h, const Sluice__V1__TokenRun *run, sl_err *err)
{
    if ((h->o.routing && run->routing.len == 0) || (h->o.masks && run->n_sampling_masks == 0) ||
        !run->weights_version[0])
        return sl_fail(err, SL_UNSUPPORTED,
                       "sluice: the decode node does not hand out what was asked for");
    if (h->o.routing && run->routing.len != run->n_ids * h->layout.row_bytes)
        return sl_fail(err, SL_CORRUPT, "routing of %zu bytes for %zu tokens of %u",
                       run->routing.len, run->n_ids, h->layout.row_bytes);
    if (h->o.masks && run->n_sampling_masks != run->n_ids)
        return sl_fail(err, SL_CORRUPT, "%zu sampling masks for %zu tokens", run->n_sampling_masks,
                       run->n_ids);
    return sl_ok();
}

static void note_version(rtr_handout *h, const char *text)
{
    if (h->version_count > 0 && strcmp(h->versions[h->version_count - 1].text, text) == 0)
        return;
    sl_assert(h->version_count < VERSIONS_MAX);
    version *v = &h->versions[h->version_count++];
    v->from = h->count;
    snprintf(v->text, sizeof v->text, "%s", text);
}

static sl_status take_masks(rtr_handout *h, const Sluice__V1__TokenRun *run, uint32_t skip,
                            uint32_t count, sl_err *err)
{
    if (h->count + count > h->capacity) {
        h->capacity = 2 * (h->count + count);
        h->mask_ends =
            sl_realloc(h->mask_ends, h->capacity, sizeof *h->mask_ends, "router hand-out");
    }
    for (uint32_t i = 0; i < count; i++) {
        const ProtobufCBinaryData *mask = &run->sampling_masks[skip + i];
        if (!mdl_mask_check((sl_span){mask->data, mask->len}, h->vocab_size))
            return sl_fail(err, SL_CORRUPT, "sampling mask of token %u is malformed",
                           run->first_index + skip + i);
        sl_buf_append(&h->masks, mask->data, mask->len);
        h->mask_ends[h->count + i] = h->masks.size;
    }
    return sl_ok();
}

sl_status rtr_handout_take(rtr_handout *h, const Sluice__V1__TokenRun *run, uint32_t skip,
                           uint32_t count, sl_err *err)
{
    sl_assert(skip + count <= run->n_ids);
    SL_TRY(check(h, run, err));
    if (h->version_count == VERSIONS_MAX)
        return sl_fail(err, SL_INTERNAL, "too many changes of weights in one request");
    note_version(h, run->weights_version);
    if (h->o.routing)
        sl_buf_append(&h->rows, run->routing.data + (size_t)skip * h->layout.row_bytes,
                      (size_t)count * h->layout.row_bytes);
    if (h->o.masks)
        SL_TRY(take_masks(h, run, skip, count, err));
    if (h->rows.overflow || h->masks.overflow)
        return sl_fail(err, SL_TOO_LARGE,
                       "sluice: more than %llu MiB to hand out; lower max_tokens",
                       (unsigned long long)(h->o.bytes_max >> 20));
    h->count += count;
    return sl_ok();
}

/* [[first token, "version"], ..] of tokens [from, to) */
static void write_versions(const rtr_handout *h, uint32_t from, uint32_t to, sl_buf *out)
{
    bool first = true;
    sl_buf_puts(out, ",\"weights_versions\":[");
    for (uint32_t i = 0; i < h->version_count; i++) {
        uint32_t begin = h->versions[i].from;
        uint32_t end = i + 1 < h->version_count ? h->versions[i + 1].from : h->count;
        if (begin >= to || end <= from)
            continue;
        sl_buf_printf(out, "%s[%u,", first ? "" : ",", begin > from ? begin : from);
        sl_json_write_string(out, h->versions[i].text, strlen(h->versions[i].text));
        sl_buf_putc(out, ']');
        first = false;
    }
    sl_buf_putc(out, ']');
}

static void write_blob(const char *name, const sl_buf *bytes, sl_buf *out)
{
    sl_buf_printf(out, ",\"%s\":\"", name);
    sl_buf_base64(out, bytes->data, bytes->size);
    sl_buf_putc(out, '"');
}

void rtr_handout_write(const rtr_handout *h, uint32_t from, uint32_t to, sl_buf *out)
{
    sl_assert(from <= to && to <= h->count);
    sl_buf bytes;
    sl_buf_init(&bytes, 0);
    sl_buf_printf(out, "\"first_token\":%u", from);
    write_versions(h, from, to, out);
    if (h->o.routing) {
        mdl_routing_header(&h->layout, to - from, &bytes);
        sl_buf_append(&bytes, h->rows.data + (size_t)from * h->layout.row_bytes,
                      (size_t)(to - from) * h->layout.row_bytes);
        write_blob("routing", &bytes, out);
    }
    sl_buf_clear(&bytes);
    if (h->o.masks) {
        size_t begin = from ? h->mask_ends[from - 1] : 0, end = to ? h->mask_ends[to - 1] : 0;
        mdl_mask_header(h->vocab_size, to - from, &bytes);
        sl_buf_append(&bytes, h->masks.data + begin, end - begin);
        write_blob("sampling_mask", &bytes, out);
    }
    sl_buf_fini(&bytes);
}
