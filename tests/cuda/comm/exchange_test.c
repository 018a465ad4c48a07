/* Layers over NCCL: kernels against their plain form, one rank, as many ranks as there are devices,
 * against the group in host memory and against one sum; and what goes wrong. Needs a device and
 * says so loudly when there is none. exchange_test [FILTER] */
#include "tests/cuda/comm/ranks.h"

#include "comm/device_fake.h"
#include "kernels/kernels.h"

enum { WAIT_MS = 3000, RANKS_MOST = 8 };

static const dk_shape small = {
    .rows_max = 40, .chosen = 4, .experts = 16, .row = 64, .scale = 8, .output = 96};
static const dk_shape whole = {/* V3.2 */
                               .rows_max = 128, .chosen = 8,  .experts = 256,
                               .row = 7168,     .scale = 224, .output = 14336};
static uint32_t device_count;

/* ---- a rank: "rank RANK SIZE DEVICE WAIT_MS WHAT" */

/* One answer: the device's sum over what came back, the CPU's, and the CPU's over outputs that
 * never went anywhere are the same bits. */
static sl_status sums_check(dk_rank *k, sl_err *err)
{
    const dk_shape *s = &k->shape;
    uint32_t rows = k->row_count, hidden = s->output / 2, entries = rows * s->chosen;
    size_t bytes = (size_t)s->rows_max * s->output;
    uint16_t *home = sl_alloc(entries + 1, s->output, "home"), *want = sl_alloc(1, bytes, "want");
    uint16_t *back = sl_alloc(1, bytes, "back"), *device = sl_alloc(1, bytes, "device");
    uint32_t *places = sl_alloc(entries + 1, sizeof(uint32_t), "places");
    float *weights = sl_alloc(entries + 1, sizeof(float), "weights");
    void *d_weights, *d_out;
    for (uint32_t i = 0; i < entries; i++) {
        places[i] = i;
        weights[i] = (float)sl_keyed_uniform(5, i, 6);
        dk_expert(k, k->rows + (size_t)(i / s->chosen) * s->row,
                  k->scales + (size_t)(i / s->chosen) * s->scale, k->experts[i],
                  (uint8_t *)home + (size_t)i * s->output);
    }
    krn_combine(NULL, home, places, weights, s->chosen, NULL, rows, hidden, want);
    krn_combine(NULL, (uint16_t *)k->returns, k->places, weights, s->chosen, NULL, rows, hidden,
                back);
    dk_api_ok(k, k->api->memory_create((entries + 1) * sizeof(float), &d_weights));
    dk_api_ok(k, k->api->memory_create(bytes, &d_out));
    sl_status status = dk_put(k, d_weights, weights, entries * sizeof(float), err);
    const krn_cuda_combine_params combine = {.outputs = com_device_returns(k->device),
                                             .places = k->d_places,
                                             .weights = d_weights,
                                             .out = d_out,
                                             .rows = rows,
                                             .chosen = s->chosen,
                                             .hidden = hidden};
    assert_int_equal(gpu->combine(&combine, k->stream), KRN_CUDA_OK);
    if (sl_is_ok(status))
        status = dk_put(k, device, d_out, (size_t)rows * s->output, err);
    if (sl_is_ok(status)) {
        assert_memory_equal(back, want, (size_t)rows * s->output);
        assert_memory_equal(device, want, (size_t)rows * s->output);
    }
    k->api->memory_destroy(d_weights);
    k->api->memory_destroy(d_out);
    void *all[] = {home, want, back, device, places, weights};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        sl_free(all[i]);
    return status;
}

static int other_id(const uint8_t id[COM_DEVICE_ID_BYTES], uint32_t rank, uint32_t count,
                    com_link *out_link)
{
    uint8_t changed[COM_DEVICE_ID_BYTES];
    memcpy(changed, id, sizeof(changed));
    changed[0] ^= 0x55; /* in what tells communicators apart */
    return nccl->link_create(changed, rank, count, out_link);
}

static uint32_t newer_version(void)
{
    return nccl->library_version() + 1;
}

/* "layers N": by both ways, with sums; "whole N": of V3.2's size; "for-ever": until it fails;
 * "other-id", "newer": rank 1 is not like the others. */
static int rank_main(char **argv)
{
    static dk_rank k;
    static com_device_api api;
    sl_err err = {0};
    com_stats stats = {0};
    rank_arguments a = rank_arguments_read(argv);
    bool big = strncmp(a.what, "whole", 5) == 0, endless = strcmp(a.what, "for-ever") == 0;
    uint32_t layers = endless ? UINT32_MAX : (uint32_t)atoi(a.what + strcspn(a.what, " "));
    uint32_t layer = 0;
    rank_group(&k, &a, big ? &whole : &small);
    api = *nccl;
    k.api = &api;
    if (a.rank == 1 && strcmp(a.what, "other-id") == 0)
        api.link_create = other_id;
    if (a.rank == 1 && strcmp(a.what, "newer") == 0)
        api.library_version = newer_version;
    dk_buffers(&k);
    sl_time_ns begun = sl_now_ns();
    uint64_t within_ms = strcmp(a.what, "other-id") == 0 ? WAIT_MS : DK_CONNECT_S * 1000;
    sl_status status = rank_device(&k, &a, within_ms, &err);
    tell("open %d %llu ms", status.code, (unsigned long long)((sl_now_ns() - begun) / SL_MS_NS));
    for (; layer < layers && sl_is_ok(status); layer++) {
        status = dk_layer(&k, layer % DK_LAYERS, 1 + a.rank + layer * 64ull, 0, !endless, &err);
        if (sl_is_ok(status) && !endless)
            status = sums_check(&k, &err);
        if (endless && layer == 3)
            tell("running");
    }
    sl_time_ns ended = sl_now_ns();
    if (k.device)
        com_device_stats_get(k.device, &stats);
    tell("%d %u %llu %llu %llu %s", status.code, layer, (unsigned long long)stats.dispatch_bytes,
         (unsigned long long)stats.combine_bytes, (unsigned long long)ended,
         sl_is_ok(status) ? "" : err.text);
    rank_rest();
    com_device_close(k.device);
    k.device = NULL;
    gpu->stream_destroy(k.stream);
    dk_free(&k);
    return sl_alloc_live() == 0 ? 0 : 3;
}

/* ---- the test */

typedef struct result {
    int code;
    unsigned layers;
    unsigned long long dispatched, combined, ended;
    char line[LINE];
} result;

static result rank_result(child *c)
{
    result r;
    child_line(c, r.line, LINE);
    r.line[strcspn(r.line, "\n")] = '\0';
    assert_int_equal(sscanf(r.line, "%d %u %llu %llu %llu", &r.code, &r.layers, &r.dispatched,
                            &r.combined, &r.ended),
                     5);
    return r;
}

static void exchange(uint32_t size, const char *what, uint32_t layers)
{
    child children[RANKS_MOST];
    char line[LINE];
    ranks_start(children, size, device_count, 20000, what);
    for (uint32_t r = 0; r < size; r++) {
        child_line(&children[r], line, LINE);
        printf("rank %u of %u: %s", r, size, line);
    }
    for (uint32_t r = 0; r < size; r++) {
        result got = rank_result(&children[r]);
        if (got.code != 0)
            fail_msg("rank %u: %s", r, got.line);
        assert_int_equal(got.layers, layers);
        assert_int_equal(got.dispatched > 0, size > 1);
        assert_int_equal(got.combined > 0, size > 1);
        printf("rank %u of %u, %s: %llu bytes of rows and %llu of outputs to others\n", r, size,
               what, got.dispatched, got.combined);
    }
    ranks_end(children, size, size);
}

TEST(one_rank)
{
    exchange(1, "layers 30", 30);
    exchange(1, "whole 3", 3);
}

/* Not tested on one device. */
static bool several(void)
{
    if (device_count < 2)
        printf("SKIPPED, NOTHING WAS TESTED: one device\n");
    return device_count >= 2;
}

TEST(as_many_ranks_as_devices)
{
    for (uint32_t size = 2; size <= device_count && size <= RANKS_MOST; size *= 2) {
        exchange(size, "layers 30", 30);
        exchange(size, "whole 6", 6);
    }
    (void)several();
}

/* All ranks that live fail, one of them with `code` and these words; returns when the last did. */
static sl_time_ns all_fail(child *children, uint32_t size, uint32_t but, int code,
                           const char *words)
{
    bool found = false;
    sl_time_ns last = 0;
    for (uint32_t r = 0; r < size; r++) {
        if (r == but)
            continue;
        result got = rank_result(&children[r]);
        printf("rank %u: %s\n", r, got.line);
        assert_int_not_equal(got.code, 0);
        found |= got.code == code && strstr(got.line, words);
        last = got.ended > last ? got.ended : last;
    }
    ranks_end(children, size, but);
    if (!found)
        fail_msg("nobody says %d, \"%s\"", code, words);
    return last;
}

static void fault(int signal_number, uint32_t wait_ms, int code, const char *words)
{
    child children[RANKS_MOST];
    char line[LINE];
    uint32_t size = device_count < RANKS_MOST ? device_count : RANKS_MOST;
    ranks_start(children, size, device_count, wait_ms, "for-ever");
    for (uint32_t r = 0; r < size; r++)
        for (int i = 0; i < 2; i++)
            child_line(&children[r], line, LINE); /* open, running */
    assert_string_equal(line, "running\n");
    sl_time_ns since = sl_now_ns();
    kill(children[1].pid, signal_number);
    sl_time_ns last = all_fail(children, size, 1, code, words);
    printf("%s: over after %.1f ms\n", strsignal(signal_number), (double)(last - since) / 1e6);
}

TEST(a_killed_rank_ends_the_others_waits)
{
    if (several())
        fault(SIGKILL, 20000, SL_UNAVAILABLE, "rank 1 is gone");
}

TEST(a_stopped_rank_is_found_at_the_deadline)
{
    if (several())
        fault(SIGSTOP, WAIT_MS, SL_DEADLINE, "did not end in time (nccl)");
}

/* Two ranks that cannot have a communicator: `code` on one, and neither hangs. */
static void refused(const char *what, int code, const char *words)
{
    child children[2];
    char line[LINE];
    ranks_start(children, 2, device_count, WAIT_MS, what);
    for (uint32_t r = 0; r < 2; r++) {
        child_line(&children[r], line, LINE);
        printf("rank %u, %s: %s", r, what, line);
    }
    (void)all_fail(children, 2, 2, code, words);
}

TEST(ranks_with_another_id_do_not_meet)
{
    refused("other-id", SL_DEADLINE, "a communicator did not end in time (nccl)");
}

TEST(another_version_of_nccl_is_refused)
{
    refused("newer", SL_INCOMPATIBLE, "this one");
}

/* What NCCL says to it is an error, not a wait. */
TEST(two_ranks_on_one_device_are_refused)
{
    uint32_t count = device_count;
    device_count = 1;
    refused("layers 1", SL_IO, "nccl: a communicator");
    device_count = count;
}

TEST(another_object_or_version_is_refused)
{
    const com_device_api *api = NULL;
    sl_err err;
    assert_code(com_nccl_load(beside("libsluice_cuda.so"), &api, &err), SL_INCOMPATIBLE);
    assert_code(com_nccl_load(beside("libsluice_none.so"), &api, &err), SL_UNSUPPORTED);
    assert_null(api);
    assert_int_equal(nccl->device_open(100), COM_DEVICE_INVALID);
    assert_int_equal(nccl->device_open(0), COM_DEVICE_OK);
}

/* ---- kernels: once on the device, once by plain loops */

typedef struct twin {
    const com_device_api *api;
    com_stream stream;
    dk_rank kit; /* for its rows */
    com_device_rows_params p;
} twin;

static void *twin_memory(const twin *t, uint64_t bytes)
{
    void *at;
    assert_int_equal(t->api->memory_create(bytes + 16, &at), COM_DEVICE_OK);
    return at;
}

static void twin_wait(const twin *t)
{
    com_event event;
    uint32_t done = 0;
    assert_int_equal(t->api->event_create(&event), COM_DEVICE_OK);
    assert_int_equal(t->api->event_record(event, t->stream), COM_DEVICE_OK);
    while (!done)
        assert_int_equal(t->api->event_done(event, &done), COM_DEVICE_OK);
    t->api->event_destroy(event);
}

static void *twin_put(const twin *t, const void *data, uint64_t bytes)
{
    void *at = twin_memory(t, bytes);
    assert_int_equal(t->api->copy(at, data, bytes, t->stream), COM_DEVICE_OK);
    twin_wait(t);
    return at;
}

static void same(const twin *a, const void *on_a, const twin *b, const void *on_b, uint64_t bytes)
{
    void *x = sl_alloc(1, bytes + 1, "x"), *y = sl_alloc(1, bytes + 1, "y");
    assert_int_equal(a->api->copy(x, on_a, bytes, a->stream), COM_DEVICE_OK);
    assert_int_equal(b->api->copy(y, on_b, bytes, b->stream), COM_DEVICE_OK);
    twin_wait(a);
    twin_wait(b);
    assert_memory_equal(x, y, bytes);
    sl_free(x);
    sl_free(y);
}

/* Slots of a random placement: an expert on 1 to `ranks` of them. */
static uint32_t twin_slots(const dk_shape *s, uint32_t ranks, uint32_t *firsts, uint8_t *slot_ranks)
{
    uint32_t at = 0;
    for (uint32_t e = 0; e < s->experts; e++) {
        uint32_t copies = 1 + (uint32_t)(dk_mix(e * 3 + ranks) % ranks);
        firsts[e] = at;
        for (uint32_t i = 0; i < copies; i++)
            slot_ranks[at++] = (uint8_t)((e + i) % ranks);
    }
    firsts[s->experts] = at;
    return at;
}

static void twin_fill(twin *t, const dk_shape *s, uint32_t ranks, uint32_t rows,
                      const dk_rank *data)
{
    uint32_t entries = rows * s->chosen, firsts[COM_EXPERTS_MAX + 1];
    uint32_t turns[COM_EXPERTS_MAX];
    uint8_t slot_ranks[COM_EXPERTS_MAX * RANKS_MOST];
    uint32_t slots = twin_slots(s, ranks, firsts, slot_ranks);
    for (uint32_t e = 0; e < s->experts; e++)
        turns[e] = UINT32_MAX - e; /* goes round */
    uint64_t out = com_device_region(rows * ranks, entries, s->row, s->scale) + 256 * ranks;
    void *zeros = sl_alloc(1, out, "zeros");
    t->p = (com_device_rows_params){
        .rows = twin_put(t, data->rows, (uint64_t)rows * s->row),
        .scales = twin_put(t, data->scales, (uint64_t)rows * s->scale),
        .experts = twin_put(t, data->experts, entries * 4ull),
        .firsts = twin_put(t, firsts, sizeof(firsts)),
        .slot_ranks = twin_put(t, slot_ranks, slots),
        .turns = twin_put(t, turns, sizeof(turns)),
        .choices = twin_memory(t, entries),
        .counts = twin_memory(t, ranks * sizeof(com_device_count)),
        .sources = twin_memory(t, (uint64_t)ranks * rows * 4),
        .regions = twin_memory(t, ranks * sizeof(uint64_t)),
        .out = twin_put(t, zeros, out), /* gaps between regions are nobody's */
        .out_places = twin_memory(t, entries * 4ull),
        .epoch = 0x1122334455667788ull,
        .sequence = 5,
        .layer = 2,
        .row_count = rows,
        .chosen = s->chosen,
        .expert_count = s->experts,
        .rank_count = ranks,
        .row_bytes = s->row,
        .scale_bytes = s->scale,
    };
    sl_free(zeros);
    assert_int_equal(t->api->count(&t->p, t->stream), COM_DEVICE_OK);
    assert_int_equal(t->api->pack(&t->p, t->stream), COM_DEVICE_OK);
}

static void twin_free(const twin *t)
{
    const void *all[] = {t->p.rows,       t->p.scales,  t->p.experts, t->p.firsts,
                         t->p.slot_ranks, t->p.turns,   t->p.choices, t->p.counts,
                         t->p.sources,    t->p.regions, t->p.out,     t->p.out_places};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        t->api->memory_destroy((void *)all[i]);
}

static void rows_of(twin *a, twin *b, const dk_shape *s, uint32_t ranks, uint32_t rows)
{
    dk_rank data = {.shape = *s};
    uint32_t entries = rows * s->chosen;
    data.rows = sl_alloc(s->rows_max, s->row, "rows");
    data.scales = sl_alloc(s->rows_max, s->scale, "scales");
    data.experts = sl_alloc(s->rows_max, s->chosen * 4, "experts");
    data.shape.rows_max = s->rows_max;
    (void)dk_fill(&data, 10); /* all rows */
    twin_fill(a, s, ranks, rows, &data);
    twin_fill(b, s, ranks, rows, &data);
    twin_wait(a);
    twin_wait(b);
    same(a, a->p.choices, b, b->p.choices, entries);
    same(a, a->p.counts, b, b->p.counts, ranks * sizeof(com_device_count));
    same(a, a->p.turns, b, b->p.turns, s->experts * 4ull);
    same(a, a->p.regions, b, b->p.regions, ranks * sizeof(uint64_t));
    same(a, a->p.out_places, b, b->p.out_places, entries * 4ull);
    same(a, a->p.out, b, b->p.out,
         com_device_region(rows * ranks, entries, s->row, s->scale) + 256 * ranks);
    twin_free(a);
    twin_free(b);
    sl_free(data.rows);
    sl_free(data.scales);
    sl_free(data.experts);
}

static void outputs_of(twin *a, twin *b, uint32_t entries, uint32_t own_first, uint32_t own_count)
{
    const uint32_t bytes = 112;
    uint8_t *outputs = sl_alloc(entries + 1, bytes, "outputs");
    uint32_t *places = sl_alloc(entries + 1, sizeof(uint32_t), "places");
    for (uint64_t i = 0; i < (uint64_t)entries * bytes; i++)
        outputs[i] = (uint8_t)dk_mix(i);
    for (uint32_t i = 0; i < entries; i++)
        places[i] = entries - 1 - i;
    twin *const twins[] = {a, b};
    com_device_outputs_params p[2];
    for (int i = 0; i < 2; i++) {
        p[i] = (com_device_outputs_params){
            .outputs = twin_put(twins[i], outputs, (uint64_t)entries * bytes),
            .places = twin_put(twins[i], places, entries * 4ull),
            .out = twin_memory(twins[i], (uint64_t)entries * bytes),
            .own = twin_memory(twins[i], (uint64_t)entries * bytes),
            .entry_count = entries,
            .own_first = own_first,
            .own_count = own_count,
            .output_bytes = bytes,
        };
        assert_int_equal(twins[i]->api->gather(&p[i], twins[i]->stream), COM_DEVICE_OK);
        twin_wait(twins[i]);
    }
    same(a, p[0].out, b, p[1].out, (uint64_t)(entries - own_count) * bytes);
    same(a, p[0].own, b, p[1].own, (uint64_t)own_count * bytes);
    for (int i = 0; i < 2; i++) {
        const void *all[] = {p[i].outputs, p[i].places, p[i].out, p[i].own};
        for (size_t j = 0; j < sizeof(all) / sizeof(all[0]); j++)
            twins[i]->api->memory_destroy((void *)all[j]);
    }
    sl_free(outputs);
    sl_free(places);
}

TEST(kernels_write_what_plain_loops_write)
{
    const dk_shape shapes[] = {
        small, whole, {.rows_max = 3000, .chosen = 6, .experts = 64, .row = 48}};
    twin a = {.api = nccl}, b = {.api = &com_device_fake};
    b.stream = com_device_fake_stream_create();
    assert_int_equal(nccl->device_open(0), COM_DEVICE_OK);
    assert_int_equal(gpu->stream_create(&a.stream), KRN_CUDA_OK);
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
        for (uint32_t ranks = 1; ranks <= RANKS_MOST; ranks += ranks < 3 ? 1 : 5) {
            rows_of(&a, &b, &shapes[i], ranks, shapes[i].rows_max);
            rows_of(&a, &b, &shapes[i], ranks, 1);
        }
    rows_of(&a, &b, &small, 3, 0);
    outputs_of(&a, &b, 0, 0, 0);
    outputs_of(&a, &b, 1000, 0, 1000);
    outputs_of(&a, &b, 1000, 0, 0);
    outputs_of(&a, &b, 1001, 17, 300);
    outputs_of(&a, &b, 999, 600, 399);
    com_device_rows_params odd = {.row_count = 1, .row_bytes = 24, .rank_count = 1};
    assert_int_equal(nccl->pack(&odd, a.stream), COM_DEVICE_INVALID);
    com_device_outputs_params uneven = {.output_bytes = 8};
    assert_int_equal(nccl->gather(&uneven, a.stream), COM_DEVICE_INVALID);
    gpu->stream_destroy(a.stream);
    com_device_fake_stream_destroy(b.stream);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(another_object_or_version_is_refused),
    cmocka_unit_test(kernels_write_what_plain_loops_write),
    cmocka_unit_test(one_rank),
    cmocka_unit_test(as_many_ranks_as_devices),
    cmocka_unit_test(a_killed_rank_ends_the_others_waits),
    cmocka_unit_test(a_stopped_rank_is_found_at_the_deadline),
    cmocka_unit_test(ranks_with_another_id_do_not_meet),
    cmocka_unit_test(another_version_of_nccl_is_refused),
    cmocka_unit_test(two_ranks_on_one_device_are_refused),
};

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc > 1 && strcmp(argv[1], "rank") == 0)
        return rank_main(argv);
    device_count = devices_find();
    if (device_count == 0)
        return 0;
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name(__FILE__, tests, NULL, NULL);
}
