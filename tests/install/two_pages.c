/* The smallest program that uses libkvtransfer: two contexts, two pages, over real UCX. Built by
 * run.py against an installed copy. */
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include <base/sum.h>
#include <kvtransfer/kvtransfer.h>

enum { PAGES = 2, PAGE_BYTES = 65536, KEY = 7 };
static uint8_t from[PAGES][PAGE_BYTES], to[PAGES][PAGE_BYTES];

static void on_event(void *context, const kvt_event *event)
{
    if (event->type == KVT_EVENT_SEND_CLOSED || event->type == KVT_EVENT_RECV_CLOSED) {
        if (event->code != SL_OK)
            fprintf(stderr, "closed: %s\n", event->text);
        *(int *)event->cookie = event->code == SL_OK ? 1 : -1;
    }
}

static int fail(const char *what, const sl_err *err)
{
    fprintf(stderr, "%s: %s\n", what, err->text);
    return 1;
}

int main(void)
{
    sl_err err;
    int sent = 0, received = 0;
    kvt_context *p = NULL, *d = NULL;
    kvt_send *send = NULL;
    kvt_recv *recv = NULL;
    kvt_region region_p = {from, sizeof from}, region_d = {to, sizeof to};
    kvt_options options_p = {.name = "p", .regions = &region_p, .region_count = 1};
    kvt_options options_d = {
        .name = "d", .listen = "127.0.0.1:0", .regions = &region_d, .region_count = 1};
    for (unsigned i = 0; i < sizeof from; i++)
        from[i / PAGE_BYTES][i % PAGE_BYTES] = (uint8_t)(i * 31 + i / 256);
    if (!sl_is_ok(kvt_context_create(&options_p, &p, &err)) ||
        !sl_is_ok(kvt_context_create(&options_d, &d, &err)))
        return fail("create", &err);

    kvt_nonce nonce = {1, 2};
    void *pages[PAGES] = {to[0], to[1]};
    kvt_piece_slice slice = {0, PAGE_BYTES};
    sl_time_ns deadline = sl_now_ns() + 60 * SL_S_NS;
    kvt_recv_options in = {.nonce = nonce,
                           .deadline = deadline,
                           .block_count = PAGES,
                           .group_count = 1,
                           .pages = pages,
                           .slices = &slice,
                           .sum_key = KEY,
                           .cookie = &received};
    kvt_send_options out = {.address = kvt_context_address(d),
                            .nonce = nonce,
                            .deadline = deadline,
                            .block_count = PAGES,
                            .group_count = 1,
                            .cookie = &sent};
    if (!sl_is_ok(kvt_recv_open(d, &in, &recv, &err)) ||
        !sl_is_ok(kvt_send_open(p, &out, &send, &err)))
        return fail("open", &err);
    for (uint32_t i = 0; i < PAGES; i++) {
        uint64_t sum = sl_sum64(KEY, kvt_sum_tweak(i, 0), from[i], PAGE_BYTES);
        if (!sl_is_ok(kvt_send_announce(send, i, 0, from[i], PAGE_BYTES, sum, &err)))
            return fail("announce", &err);
    }
    kvt_commit commit = {.tokens = 128, .final = true};
    if (!sl_is_ok(kvt_send_commit(send, &commit, &err)))
        return fail("commit", &err);
    while (!sent || !received) {
        struct pollfd fds[2] = {{.fd = kvt_fd(p), .events = POLLIN},
                                {.fd = kvt_fd(d), .events = POLLIN}};
        poll(fds, 2, 1000);
        kvt_poll(p, on_event, NULL);
        kvt_poll(d, on_event, NULL);
    }
    kvt_send_release(send);
    kvt_recv_release(recv);
    kvt_context_destroy(p);
    kvt_context_destroy(d);
    bool equal = memcmp(from, to, sizeof from) == 0;
    puts(equal && sent == 1 && received == 1 ? "equal" : "different");
    return equal ? 0 : 1;
}
