/* The router's loop with false nodes: placement, streams, losses, cancels, queue, long prompts. */
#include "tests/unit/router/front_kit.h"

TEST(whole_and_streamed_answer)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client c = kit_post(&k, CHAT, BODY(",\"seed\":77,\"max_tokens\":5"));
    KIT_UNTIL(&k, p->runs == 1);
    assert_int_equal(d->admits[0].seed, 77);
    assert_int_equal(d->admits[0].max_tokens, 5);
    assert_int_equal(d->admits[0].token_count, d->admits[0].prompt_count);
    assert_false(d->admits[0].self_prefill);
    kit_tokens(d, 0, 2, NONE);
    kit_tokens(d, 2, 3, LENGTH);
    kit_expect(&k, &c, "\"usage\":{");
    assert_text_contains(c.text.data, "HTTP/1.1 200 OK");
    assert_text_contains(c.text.data, "x-sluice-decode-node: d-a\r\n");
    assert_text_contains(c.text.data, "x-sluice-prefill-node: p-a\r\n");
    assert_text_contains(c.text.data, "x-sluice-seed: 77\r\n");
    assert_text_contains(c.text.data, "x-request-id: r-");
    assert_text_contains(c.text.data, "\"finish_reason\":\"length\"");
    assert_text_contains(c.text.data, "\"completion_tokens\":5");
    assert_text_contains(c.text.data, "\"system_fingerprint\":\"cpu-test\"");
    kit_client_close(&c);

    c = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, p->runs == 2);
    kit_tokens(d, 0, 1, NONE);
    kit_expect(&k, &c, "\"role\":\"assistant\"");
    kit_tokens(d, 1, 4, STOP);
    kit_expect(&k, &c, "data: [DONE]");
    check_tokens(&c, 5);
    KIT_UNTIL(&k, rtr_front_live_count(k.front) == 0);
    assert_int_equal(d->cancels, 0);
    kit_client_close(&c);
    kit_close(&k);
}

TEST(decode_node_dies_mid_stream)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true), *e = kit_add(&k, "d-b", true);
    kit_node *p = kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k) && kit_heard(&k, d) && kit_heard(&k, e));
    kit_client c = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, p->runs == 1);
    kit_node *first = d->admit_count ? d : e, *second = d->admit_count ? e : d;
    kit_tokens(first, 0, 7, NONE);
    kit_expect(&k, &c, "106]");
    kit_kill(first);
    KIT_UNTIL(&k, second->admit_count == 1 && p->runs == 2);
    const kit_admit *a = &first->admits[0], *b = &second->admits[0];
    assert_string_equal(a->request_id, b->request_id);
    assert_int_equal(b->epoch, 2);
    assert_int_equal(b->prompt_count, a->prompt_count);
    assert_int_equal(b->token_count, a->prompt_count + 7);
    assert_int_equal(b->last_token, 106);
    assert_true(a->seed == b->seed);
    kit_tokens(second, 7, 3, STOP);
    kit_expect(&k, &c, "data: [DONE]");
    check_tokens(&c, 10);
    assert_true(migrations(&k, "decode_lost") == 1);
    kit_client_close(&c);
    kit_close(&k);
}

TEST(decode_stream_breaks_and_comes_back)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true);
    kit_node *p = kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client c = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, p->runs == 1);
    kit_tokens(d, 0, 7, NONE);
    kit_expect(&k, &c, "106]");
    rpc_server_call_cancel(d->serve);
    KIT_UNTIL(&k, d->attaches == 1);
    assert_int_equal(d->attach_index, 7);
    assert_int_equal(d->attach_epoch, 1);
    kit_tokens(d, 5, 5, STOP); /* two of them twice */
    kit_expect(&k, &c, "data: [DONE]");
    check_tokens(&c, 10);
    kit_client_close(&c);

    c = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, p->runs == 2);
    kit_tokens(d, 0, 7, NONE);
    kit_expect(&k, &c, "106]");
    rpc_server_call_cancel(d->serve);
    KIT_UNTIL(&k, d->attaches == 2);
    kit_refuse(d, d->admits[1].request_id, 1, SL_NOT_FOUND);
    KIT_UNTIL(&k, d->admit_count == 3 && p->runs == 3);
    assert_int_equal(d->admits[2].token_count, d->admits[1].prompt_count + 7);
    kit_tokens(d, 7, 3, STOP);
    kit_expect(&k, &c, "data: [DONE]");
    check_tokens(&c, 10);
    assert_true(migrations(&k, "decode_lost") == 1);
    kit_client_close(&c);
    kit_close(&k);
}

TEST(a_node_that_fails_is_left_alone)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true);
    kit_node *p = kit_add(&k, "p-a", false), *q = kit_add(&k, "p-b", false);
    p->finish_runs = false;
    KIT_UNTIL(&k, kit_ready(&k) && kit_serving(&k, p) && kit_serving(&k, q));
    for (size_t i = 1; i <= 4; i++) { /* p-a comes first by its name */
        kit_client c = kit_post(&k, CHAT, STREAM);
        if (i <= 3) {
            KIT_UNTIL(&k, p->runs == i && p->run);
            rpc_server_call_finish(p->run, SL_INTERNAL, "a planted failure");
        }
        KIT_UNTIL(&k, q->runs == i);
        kit_tokens(d, 0, 2, STOP);
        kit_expect(&k, &c, "data: [DONE]");
        check_tokens(&c, 2);
        kit_client_close(&c);
    }
    assert_int_equal(p->runs, 3);
    kit_close(&k);
}

static void little_recovery(rtr_shared *shared)
{
    shared->tuning.recovery_tokens_per_s = 1;
}

/* Two requests lose their node: the second waits, a new one does not. */
TEST(recovery_does_not_hold_up_others)
{
    kit k;
    kit_open(&k, little_recovery);
    kit_node *d = kit_add(&k, "d-a", true);
    kit_node *p = kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client a = kit_post(&k, CHAT, STREAM), b = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, p->runs == 2);
    kit_tokens_of(d, 0, 0, 3, NONE);
    kit_tokens_of(d, 1, 0, 3, NONE);
    kit_expect(&k, &a, "102]");
    kit_expect(&k, &b, "102]");
    kit_node *e = kit_add(&k, "d-b", true);
    KIT_UNTIL(&k, kit_heard(&k, e));
    kit_kill(d);
    KIT_UNTIL(&k, e->admit_count == 1);
    assert_int_equal(e->admits[0].epoch, 2);
    kit_client c = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, e->admit_count == 2);
    assert_int_equal(e->admits[1].epoch, 1);
    for (int i = 0; i < 50; i++)
        kit_turn(&k);
    assert_int_equal(e->admit_count, 2);
    kit_client_close(&a);
    kit_client_close(&b);
    kit_client_close(&c);
    kit_close(&k);
}

TEST(prefill_node_dies)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true);
    kit_node *p = kit_add(&k, "p-a", false), *q = kit_add(&k, "p-b", false);
    p->finish_runs = q->finish_runs = false;
    KIT_UNTIL(&k, kit_ready(&k) && kit_serving(&k, p) && kit_serving(&k, q));
    kit_client c = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, p->runs + q->runs == 1);
    kit_node *first = p->runs ? p : q, *second = p->runs ? q : p;
    kit_kill(first);
    KIT_UNTIL(&k, second->runs == 1);
    assert_int_equal(d->admit_count, 2);
    assert_int_equal(d->admits[1].epoch, 2);
    assert_int_equal(second->run_epoch, 2);
    kit_tokens(d, 0, 2, STOP);
    kit_expect(&k, &c, "data: [DONE]");
    check_tokens(&c, 2);
    assert_true(migrations(&k, "prefill_lost") == 1);
    kit_client_close(&c);
    kit_close(&k);
}

TEST(nobody_left_mid_stream)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client c = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, p->runs == 1);
    kit_tokens(d, 0, 1, NONE);
    kit_expect(&k, &c, "[100]");
    kit_kill(d);
    kit_expect(&k, &c, "data: {\"error\":{\"message\":\"no decode node is usable (waited ");
    kit_expect(&k, &c, "\r\n0\r\n\r\n");
    assert_null(strstr(c.text.data, "[DONE]"));
    kit_client_close(&c);
    c = kit_post(&k, CHAT, BODY(""));
    kit_expect(&k, &c, "no decode node is usable");
    assert_text_contains(c.text.data, "HTTP/1.1 503 ");
    assert_text_contains(c.text.data, "retry-after: 5\r\n");
    assert_int_equal(rtr_front_live_count(k.front), 0);
    kit_client_close(&c);
    kit_close(&k);
}

TEST(client_gone_stops_the_work)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    p->finish_runs = false;
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client c = kit_post(&k, CHAT, BODY(""));
    KIT_UNTIL(&k, p->runs == 1);
    kit_client_close(&c); /* in the prefill, before any answer */
    KIT_UNTIL(&k, d->cancels == 1 && p->runs_cancelled == 1);
    p->finish_runs = true;
    c = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, p->runs == 2);
    kit_tokens(d, 0, 1, NONE);
    kit_expect(&k, &c, "[100]");
    kit_client_close(&c); /* mid-stream */
    KIT_UNTIL(&k, d->cancels == 2);
    assert_true(d->admits[1].cancelled);
    kit_tokens(d, 1, 1, NONE); /* still under way: dropped */
    for (int i = 0; i < 10; i++)
        kit_turn(&k);
    assert_int_equal(rtr_front_live_count(k.front), 0);
    assert_true(sl_metric_get(k.shared.metrics.requests, "499") == 2);
    assert_true(sl_metric_get(k.shared.metrics.running, NULL) == 0);
    kit_close(&k);
}

TEST(stop_string_cancels_the_rest)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k));
    sl_buf text;
    sl_buf_init(&text, 0);
    mdl_detok detok;
    mdl_detok_init(&detok, kit_tokenizer);
    for (uint32_t i = 0; i < 3; i++)
        mdl_detok_push(&detok, (int32_t)(100 + i), &text);
    mdl_detok_finish(&detok, &text);
    sl_buf body;
    sl_buf_init(&body, 0);
    sl_buf_puts(&body, "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"stop\":");
    sl_json_write_string(&body, text.data, text.size);
    sl_buf_puts(&body, "}");
    kit_client c = kit_post(&k, CHAT, body.data);
    KIT_UNTIL(&k, p->runs == 1);
    kit_tokens(d, 0, 10, NONE);
    kit_expect(&k, &c, "\"finish_reason\":\"stop\"");
    assert_text_contains(c.text.data, "\"content\":\"\"");
    KIT_UNTIL(&k, d->cancels == 1);
    KIT_UNTIL(&k, rtr_front_live_count(k.front) == 0);
    kit_client_close(&c);
    sl_buf_fini(&body);
    sl_buf_fini(&text);
    kit_close(&k);
}

TEST(gaps_are_errors)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client c = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, p->runs == 1);
    kit_tokens(d, 0, 2, NONE);
    kit_tokens(d, 1, 2, NONE); /* one of them twice: dropped */
    kit_tokens(d, 4, 1, NONE);
    kit_expect(&k, &c, "skipped tokens (expected index 3, got 4)");
    check_tokens(&c, 3);
    KIT_UNTIL(&k, d->cancels == 1);
    kit_client_close(&c);
    kit_close(&k);
}

TEST(refusals_go_elsewhere)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true), *e = kit_add(&k, "d-b", true);
    kit_node *p = kit_add(&k, "p-a", false);
    d->grant = e->grant = false;
    KIT_UNTIL(&k, kit_ready(&k) && kit_heard(&k, d) && kit_heard(&k, e));
    kit_client c = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, d->admit_count + e->admit_count == 1);
    kit_node *first = d->admit_count ? d : e, *second = d->admit_count ? e : d;
    kit_refuse(first, first->admits[0].request_id, 1, SL_FULL);
    KIT_UNTIL(&k, second->admit_count == 1);
    kit_refuse(second, second->admits[0].request_id, 2, SL_UNAVAILABLE);
    KIT_UNTIL(&k, first->admit_count + second->admit_count == 3); /* asked again after a pause */
    kit_node *third = first->admit_count == 2 ? first : second;
    kit_admitted(third, third->admits[1].request_id, 3);
    KIT_UNTIL(&k, p->runs == 1);
    kit_tokens(third, 0, 1, STOP);
    kit_expect(&k, &c, "data: [DONE]");
    kit_client_close(&c);
    c = kit_post(&k, CHAT, BODY(""));
    KIT_UNTIL(&k, first->admit_count + second->admit_count == 4);
    kit_node *fourth = first->admit_count + 0 > (third == first ? 2u : 1u) ? first : second;
    kit_refuse(fourth, fourth->admits[fourth->admit_count - 1].request_id, 1, SL_TOO_LARGE);
    kit_expect(&k, &c, "HTTP/1.1 400 ");
    assert_text_contains(c.text.data, "said no");
    kit_client_close(&c);
    assert_true(migrations(&k, "decode_failed") == 0);
    kit_close(&k);
}

static void long_place(rtr_shared *shared)
{
    shared->tuning.limits.place_timeout_ns = 15 * SL_S_NS;
}

TEST(queue_is_bounded_and_moves_when_room_comes)
{
    kit k;
    kit_open(&k, long_place);
    kit_client c[6];
    for (int i = 0; i < 5; i++)
        c[i] = kit_post(&k, CHAT, STREAM);
    kit_expect(&k, &c[4], "HTTP/1.1 429 Too Many Requests");
    assert_text_contains(c[4].text.data, "retry-after: 1\r\n");
    assert_text_contains(c[4].text.data, "\"code\":\"queue_full\"");
    assert_true(sl_metric_get(k.shared.metrics.waiting, NULL) == 4);
    kit_node *p = kit_add(&k, "p-a", false);
    kit_node *d = kit_add(&k, "d-a", true);
    d->slots_free = 2;
    KIT_UNTIL(&k, d->admit_count == 2); /* two places: the two oldest */
    KIT_UNTIL(&k, p->runs == 2);
    for (int i = 0; i < 20; i++)
        kit_turn(&k);
    d->slots_free = 0;
    kit_tokens_of(d, 0, 0, 1, NONE);
    c[5] = kit_post(&k, CHAT, STREAM);
    for (int i = 0; i < 20; i++)
        kit_turn(&k);
    assert_int_equal(d->admit_count, 2);
    d->slots_free = 1;
    kit_tokens_of(d, 0, 1, 1, STOP);
    KIT_UNTIL(&k, d->admit_count == 3);
    d->slots_free = 8;
    kit_tokens_of(d, 1, 0, 1, STOP);
    KIT_UNTIL(&k, d->admit_count == 5);
    for (size_t i = 2; i < 5; i++)
        kit_tokens_of(d, i, 0, 1, STOP);
    for (int i = 0; i < 6; i++) {
        if (i != 4)
            kit_expect(&k, &c[i], "data: [DONE]");
        kit_client_close(&c[i]);
    }
    assert_true(sl_metric_get(k.shared.metrics.waiting, NULL) == 0);
    kit_close(&k);
}

/* One that lacks room does not hold up those that find some; lower priority numbers come first. */
TEST(small_and_urgent_ones_overtake)
{
    kit k;
    kit_open(&k, long_place);
    kit_node *p = kit_add(&k, "p-a", false);
    kit_node *d = kit_add(&k, "d-a", true);
    d->pages_free = 3;
    kit_client big = kit_post(&k, CHAT, BODY(",\"stream\":true,\"max_tokens\":600"));
    for (int i = 0; i < 20; i++)
        kit_turn(&k);
    assert_int_equal(d->admit_count, 0);
    kit_client c[3];
    c[0] = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, d->admit_count == 1 && p->runs == 1);
    assert_int_equal(d->admits[0].max_tokens, 30);
    d->slots_free = 0;
    kit_tokens_of(d, 0, 0, 1, NONE);
    kit_expect(&k, &c[0], "data: {"); /* the load came with it */
    c[1] = kit_post(&k, CHAT, BODY(",\"stream\":true,\"max_tokens\":31"));
    c[2] = kit_post(&k, CHAT, BODY(",\"stream\":true,\"max_tokens\":32,\"priority\":-3"));
    for (int i = 0; i < 20; i++)
        kit_turn(&k);
    assert_int_equal(d->admit_count, 1);
    d->slots_free = 1;
    kit_tokens_of(d, 0, 1, 1, STOP);
    KIT_UNTIL(&k, d->admit_count == 2);
    assert_int_equal(d->admits[1].max_tokens, 32);
    assert_int_equal(d->admits[1].priority, -3);
    d->slots_free = 8;
    kit_tokens_of(d, 1, 0, 1, STOP);
    KIT_UNTIL(&k, d->admit_count == 3);
    assert_int_equal(d->admits[2].max_tokens, 31);
    d->pages_free = 100;
    kit_tokens_of(d, 2, 0, 1, STOP);
    KIT_UNTIL(&k, d->admit_count == 4);
    assert_int_equal(d->admits[3].max_tokens, 600);
    kit_tokens_of(d, 3, 0, 1, STOP);
    kit_expect(&k, &big, "data: [DONE]");
    kit_client_close(&big);
    for (int i = 0; i < 3; i++) {
        kit_expect(&k, &c[i], "data: [DONE]");
        kit_client_close(&c[i]);
    }
    kit_close(&k);
}

static void wide(rtr_shared *shared)
{
    shared->tuning.limits.token_timeout_ns = 60 * SL_S_NS;
}

/* The rank is never held: it gets its credits while the client sleeps. Then all arrives. */
TEST(slow_client_does_not_hold_the_rank)
{
    enum { TOKENS = 90000, STEP = 500 };
    kit k;
    kit_open(&k, wide);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client c = kit_post(&k, CHAT,
                            BODY(",\"stream\":true,\"return_token_ids\":true,\"max_tokens\":90000,"
                                 "\"logprobs\":true"));
    int small = 32768;
    setsockopt(c.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    KIT_UNTIL(&k, p->runs == 1);
    for (uint32_t at = 0; at < TOKENS; at += STEP) {
        kit_tokens(d, at, STEP, at + STEP == TOKENS ? LENGTH : NONE);
        KIT_UNTIL(&k, d->sent - d->taken < 4);
    }
    KIT_UNTIL(&k, sl_metric_get(k.shared.metrics.running, NULL) == 0);
    assert_int_equal(rtr_front_live_count(k.front), 1); /* only the client is behind */
    kit_expect(&k, &c, "data: [DONE]");
    check_tokens(&c, TOKENS);
    KIT_UNTIL(&k, rtr_front_live_count(k.front) == 0);
    kit_client_close(&c);
    kit_close(&k);
}

TEST(long_prompts_go_to_the_pool)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k));
    sl_buf body;
    sl_buf_init(&body, 0);
    sl_buf_puts(&body, "{\"messages\":[{\"role\":\"user\",\"content\":\"");
    for (int i = 0; i < 20000; i++)
        sl_buf_puts(&body, "word ");
    sl_buf_puts(&body, "\"}],\"max_tokens\":1}");
    kit_client c = kit_post(&k, CHAT, body.data);
    KIT_UNTIL(&k, p->runs == 1);
    assert_true(d->admits[0].prompt_count > 10000);
    kit_tokens(d, 0, 1, LENGTH);
    kit_expect(&k, &c, "\"finish_reason\":\"length\"");
    kit_client_close(&c);
    for (int i = 0; i < 3; i++) { /* clients that do not wait for their encoding */
        c = kit_post(&k, CHAT, body.data);
        kit_client_close(&c);
    }
    KIT_UNTIL(&k, sl_metric_get(k.shared.metrics.requests, "499") == 3);
    KIT_UNTIL(&k, rtr_front_live_count(k.front) == 0);
    body.data[body.size - 1] = 'x';
    c = kit_post(&k, CHAT, body.data);
    kit_expect(&k, &c, "HTTP/1.1 400 ");
    kit_client_close(&c);
    sl_buf_fini(&body);
    kit_close(&k);
}

TEST(nodes_that_must_not_be_used)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k));
    rtr_nodes *nodes = rtr_front_nodes(k.front);
    d->info.state = CLU_MEMBER_STATE_DRAINING;
    kit_announce(&k, d, false);
    assert_false(kit_ready(&k));
    d->info.state = CLU_MEMBER_STATE_READY;
    kit_announce(&k, d, false);
    assert_true(kit_ready(&k));
    rpc_server_set_health(p->server, "", false);
    KIT_UNTIL(&k, !kit_ready(&k));
    rpc_server_set_health(p->server, "", true);
    KIT_UNTIL(&k, kit_ready(&k));
    snprintf(p->info.stamp.weights_version, CLU_TEXT_MAX, "2");
    kit_announce(&k, p, false);
    assert_false(kit_ready(&k));
    snprintf(p->info.stamp.weights_version, CLU_TEXT_MAX, "%s", "");
    kit_announce(&k, p, false);
    assert_true(kit_ready(&k));
    /* suspects are the last resort: all leases lost at once must not stop the service */
    rtr_place_result place;
    kit_node *e = kit_add(&k, "d-0", true);
    KIT_UNTIL(&k, kit_heard(&k, e));
    kit_announce(&k, e, true);
    rtr_nodes_place(nodes, NULL, 1, 1, false, &place);
    assert_string_equal(rtr_nodes_decode_name(nodes, place.decode), "d-a");
    kit_announce(&k, d, true);
    kit_announce(&k, p, true);
    rtr_nodes_place(nodes, NULL, 1, 1, false, &place);
    assert_int_equal(place.lack, RTR_LACK_NONE);
    assert_string_equal(rtr_nodes_decode_name(nodes, place.decode), "d-0");
    /* when many are lost at once they are used like the others */
    kit_announce(&k, e, false);
    kit_announce(&k, p, false);
    rtr_nodes_place(nodes, NULL, 1, 1, false, &place);
    assert_string_equal(rtr_nodes_decode_name(nodes, place.decode), "d-0");
    kit_announce(&k, e, true);
    kit_announce(&k, d, false);
    rtr_nodes_place(nodes, NULL, 1, 1, false, &place);
    assert_string_equal(rtr_nodes_decode_name(nodes, place.decode), "d-a");
    rtr_nodes_set_frozen(nodes, true);
    rtr_nodes_place(nodes, NULL, 1, 1, false, &place);
    assert_string_equal(rtr_nodes_decode_name(nodes, place.decode), "d-0");
    rtr_nodes_set_frozen(nodes, false);
    /* full for now is not too small for ever, and who does not tell its size may be large enough */
    rtr_nodes_place(nodes, NULL, 1000000, 1, false, &place);
    assert_int_equal(place.lack, RTR_LACK_ROOM);
    d->info.pages = e->info.pages = 1000000;
    kit_announce(&k, d, true);
    kit_announce(&k, e, true);
    rtr_nodes_place(nodes, NULL, 1000000, 1, false, &place);
    assert_int_equal(place.lack, RTR_LACK_ROOM);
    rtr_nodes_place(nodes, NULL, 1000001, 1, false, &place);
    assert_int_equal(place.lack, RTR_LACK_SIZE);
    rtr_nodes_remove(nodes, "d-0", e->info.incarnation);
    rtr_nodes_remove(nodes, "d-a", d->info.incarnation + 1); /* another process: not this one */
    assert_true(kit_ready(&k));
    rtr_nodes_remove(nodes, "d-a", d->info.incarnation);
    assert_false(kit_ready(&k));
    kit_close(&k);
}

TEST(another_model_or_process_is_not_used)
{
    kit k;
    kit_open(&k, NULL);
    kit_add(&k, "p-a", false);
    kit_node *d = kit_add(&k, "d-a", true);
    snprintf(d->info.stamp.model_hash, CLU_TEXT_MAX, "other");
    KIT_UNTIL(&k, d->sent);
    for (int i = 0; i < 30; i++)
        kit_turn(&k);
    assert_false(kit_ready(&k));
    kit_client c = kit_post(&k, CHAT, BODY(""));
    kit_expect(&k, &c, "no decode node is usable");
    kit_client_close(&c);
    kit_node *e = kit_add(&k, "d-b", true);
    e->info.incarnation++; /* its hello will name another process than its record */
    KIT_UNTIL(&k, e->sent);
    for (int i = 0; i < 30; i++)
        kit_turn(&k);
    assert_false(kit_ready(&k));
    kit_close(&k);
}

/* A node that left: what it has written counts, and when it ends what stands, requests go on
 * elsewhere. Meanwhile another process may have its name. */
TEST(node_removed_while_in_use)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    p->finish_runs = false;
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client c = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, p->runs == 1);
    rtr_nodes_remove(rtr_front_nodes(k.front), "p-a", p->info.incarnation);
    assert_false(kit_ready(&k));
    kit_node *q = kit_add(&k, "p-b", false);
    rpc_server_call_finish(p->run, SL_UNAVAILABLE, "stopped");
    KIT_UNTIL(&k, q->runs == 1);
    kit_tokens(d, 0, 1, NONE);
    kit_expect(&k, &c, "[100]");
    rtr_nodes_remove(rtr_front_nodes(k.front), "d-a", d->info.incarnation);
    kit_node *e = kit_add(&k, "d-a", true);
    KIT_UNTIL(&k, kit_ready(&k));
    kit_tokens(d, 1, 1, NONE);
    kit_expect(&k, &c, "[101]");
    assert_int_equal(e->admit_count, 0);
    rpc_server_call_finish(d->serve, SL_OK, NULL);
    KIT_UNTIL(&k, e->admit_count == 1);
    assert_int_equal(e->admits[0].token_count, e->admits[0].prompt_count + 2);
    kit_tokens(e, 2, 1, STOP);
    kit_expect(&k, &c, "data: [DONE]");
    check_tokens(&c, 3);
    kit_client_close(&c);
    kit_close(&k);
}

/* The prefill node's word about kept pages may come behind the first tokens: it counts then too. */
TEST(cached_tokens_are_told_behind_the_first_token)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    p->finish_runs = false;
    p->run_computed = 1;
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client c = kit_post(&k, CHAT,
                            BODY(",\"stream\":true,\"return_token_ids\":true,\"max_tokens\":30,"
                                 "\"stream_options\":{\"include_usage\":true}"));
    KIT_UNTIL(&k, p->runs == 1);
    kit_tokens(d, 0, 1, NONE);
    kit_expect(&k, &c, "[100]");
    kit_prefill_event(p, true);
    KIT_UNTIL(&k, !p->run);
    for (int i = 0; i < 30; i++)
        kit_turn(&k);
    kit_tokens(d, 1, 1, STOP);
    kit_expect(&k, &c, "data: [DONE]");
    char cached[32];
    snprintf(cached, sizeof cached, "\"cached_tokens\":%u}", p->run_tokens - 1);
    assert_text_contains(c.text.data, cached);
    check_tokens(&c, 2);
    kit_client_close(&c);
    kit_close(&k);
}

static void self_prefill(rtr_shared *shared)
{
    shared->tuning.self_prefill = true;
}

TEST(without_a_prefill_node_the_rank_prefills)
{
    kit k;
    kit_open(&k, self_prefill);
    kit_node *d = kit_add(&k, "d-a", true);
    KIT_UNTIL(&k, rtr_nodes_ready(rtr_front_nodes(k.front), true));
    kit_client c = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, d->admit_count == 1);
    assert_true(d->admits[0].self_prefill);
    kit_tokens(d, 0, 2, STOP); /* no ticket was granted */
    kit_expect(&k, &c, "data: [DONE]");
    check_tokens(&c, 2);
    assert_text_contains(c.text.data, "x-sluice-prefill-node: d-a\r\n");
    kit_client_close(&c);
    kit_close(&k);
}

static void on_stopped(void *context)
{
    kit *k = context;
    k->stopped = true;
}

TEST(stop_finishes_what_runs)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client c = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, p->runs == 1);
    rtr_front_stop(k.front, sl_now_ns() + 60 * SL_S_NS, on_stopped, &k);
    for (int i = 0; i < 20; i++)
        kit_turn(&k);
    assert_false(k.stopped);
    kit_tokens(d, 0, 2, STOP);
    kit_expect(&k, &c, "data: [DONE]");
    KIT_UNTIL(&k, k.stopped);
    kit_client_close(&c);
    kit_close(&k);
}

TEST(stop_gives_up_at_its_deadline)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client c = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, p->runs == 1);
    rtr_front_stop(k.front, sl_now_ns() + 100 * SL_MS_NS, on_stopped, &k);
    kit_expect(&k, &c, "the router is shutting down");
    KIT_UNTIL(&k, k.stopped && d->cancels == 1);
    kit_client_close(&c);
    kit_close(&k);
}

TEST(paths_and_methods)
{
    static const struct {
        const char *request, *answer, *part;
    } TABLE[] = {
        {"GET /health", "200", "\"ok\""},
        {"HEAD /health", "200", "content-length: 16"},
        {"GET /ready", "503", "not_ready"},
        {"GET /v1/models", "200", "\"id\":\"demo\""},
        {"GET /v1/models/demo", "200", "\"id\":\"demo\""},
        {"GET /v1/models/x", "404", "model_not_found"},
        {"GET /metrics", "200", "sluice_requests_total"},
        {"GET /", "404", "not_found"},
        {"GET /v1/chat/completions", "405", "allow: POST"},
        {"POST /health", "405", "allow: GET, HEAD"},
        {"POST /v1/chat/completions", "400", "no body"},
        {"DELETE /v1/models", "405", "method_not_allowed"},
    };
    kit k;
    kit_open(&k, NULL);
    for (size_t i = 0; i < sizeof TABLE / sizeof TABLE[0]; i++) {
        kit_client c = kit_post(&k, "/tokenize", "{\"prompt\":\"hello world\"}");
        kit_expect(&k, &c, "\"tokens\":[0,");
        sl_buf_clear(&c.text);
        char head[256], status[64];
        snprintf(head, sizeof head, "%s HTTP/1.1\r\nHost: h\r\n\r\n", TABLE[i].request);
        snprintf(status, sizeof status, "HTTP/1.1 %s ", TABLE[i].answer);
        kit_send(&k, c.fd, head, strlen(head));
        kit_expect(&k, &c, status);
        kit_expect(&k, &c, TABLE[i].part);
        kit_client_close(&c);
    }
    kit_client c = kit_post(&k, "/detokenize", "{\"tokens\":[43,562]}");
    kit_expect(&k, &c, "{\"prompt\":\"I am\"}");
    kit_client_close(&c);
    kit_close(&k);
}

/* ---- several choices */

#define THREE BODY(",\"n\":3,\"seed\":7,\"max_tokens\":4")

/* Admissions 0..2 of the node are the three choices of one request. */
static void check_choices(const kit_node *d)
{
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(d->admits[i].seed, mdl_choice_seed(7, i));
        assert_int_equal(d->admits[i].self_prefill, i > 0);
        assert_string_equal(d->admits[i].fork_of, i ? d->admits[0].request_id : "");
        assert_int_equal(d->admits[i].token_count, d->admits[0].token_count);
    }
}

TEST(choices_copy_the_first_ones_prompt)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client c = kit_post(&k, CHAT, THREE);
    KIT_UNTIL(&k, d->admit_count == 3);
    check_choices(d);
    KIT_UNTIL(&k, p->runs == 1);
    kit_tokens_of(d, 2, 0, 4, LENGTH);
    kit_tokens_of(d, 0, 0, 2, STOP);
    KIT_UNTIL(&k, rtr_front_live_count(k.front) == 2); /* the first waits for the others */
    assert_null(c.text.data);
    kit_tokens_of(d, 1, 0, 3, STOP);
    kit_expect(&k, &c, "\"completion_tokens\":9");
    assert_text_contains(c.text.data, "{\"index\":2,\"message\":");
    KIT_UNTIL(&k, rtr_front_live_count(k.front) == 0);
    assert_int_equal(d->cancels, 0);
    kit_client_close(&c);

    /* without a prefill node they follow the Admit at once */
    rtr_tuning tuning = k.shared.tuning;
    tuning.self_prefill = true;
    rtr_front_tune(k.front, &tuning);
    rtr_nodes_remove(rtr_front_nodes(k.front), "p-a", p->info.incarnation);
    d->admit_count = 0;
    c = kit_post(&k, CHAT, THREE);
    KIT_UNTIL(&k, d->admit_count == 3);
    assert_true(d->admits[0].self_prefill);
    assert_string_equal(d->admits[2].fork_of, d->admits[0].request_id);
    for (uint32_t i = 0; i < 3; i++)
        kit_tokens_of(d, i, 0, 1, STOP);
    kit_expect(&k, &c, "\"completion_tokens\":3");
    KIT_UNTIL(&k, rtr_front_live_count(k.front) == 0);
    kit_client_close(&c);
    kit_close(&k);
}

TEST(a_choice_refused_goes_the_usual_way)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client c = kit_post(&k, CHAT, THREE);
    KIT_UNTIL(&k, d->admit_count == 3);
    kit_refuse(d, d->admits[1].request_id, d->admits[1].epoch, SL_FULL);
    KIT_UNTIL(&k, d->admit_count == 4 && p->runs == 2);
    assert_string_equal(d->admits[3].request_id, d->admits[1].request_id);
    assert_string_equal(d->admits[3].fork_of, "");
    assert_false(d->admits[3].self_prefill);
    assert_int_equal(d->admits[3].seed, mdl_choice_seed(7, 1));
    kit_tokens_of(d, 0, 0, 1, STOP);
    kit_tokens_of(d, 2, 0, 1, STOP);
    kit_tokens_of(d, 3, 0, 1, STOP);
    kit_expect(&k, &c, "\"completion_tokens\":3");
    kit_client_close(&c);
    kit_close(&k);
}

/* The first one's prompt is lost when the others have ended: they do not begin again. */
TEST(choices_that_ended_stay_ended)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client c = kit_post(&k, CHAT, THREE);
    KIT_UNTIL(&k, d->admit_count == 3 && p->runs == 1);
    kit_tokens_of(d, 1, 0, 2, STOP);
    kit_tokens_of(d, 2, 0, 1, STOP);
    KIT_UNTIL(&k, rtr_front_live_count(k.front) == 1);
    kit_refuse(d, d->admits[0].request_id, d->admits[0].epoch, SL_DEADLINE);
    KIT_UNTIL(&k, d->admit_count == 4 && p->runs == 2);
    assert_string_equal(d->admits[3].request_id, d->admits[0].request_id);
    assert_int_equal(rtr_front_live_count(k.front), 1);
    kit_tokens_of(d, 3, 0, 3, STOP);
    kit_expect(&k, &c, "\"completion_tokens\":6");
    KIT_UNTIL(&k, rtr_front_live_count(k.front) == 0);
    assert_int_equal(d->admit_count, 4);
    kit_client_close(&c);
    kit_close(&k);
}

/* One that fails ends all; a client that goes as well; each rank hears of each choice. */
TEST(choices_end_together)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true);
    kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client c = kit_post(&k, CHAT, BODY(",\"n\":3,\"stream\":true,\"max_tokens\":4"));
    KIT_UNTIL(&k, d->admit_count == 3);
    kit_tokens_of(d, 1, 0, 1, NONE);
    kit_expect(&k, &c, "{\"index\":1,\"delta\":{\"content\"");
    kit_tokens_of(d, 1, 2, 1, NONE); /* a gap */
    kit_expect(&k, &c, "skipped tokens");
    KIT_UNTIL(&k, d->cancels == 3 && rtr_front_live_count(k.front) == 0);
    assert_true(sl_metric_get(k.shared.metrics.running, NULL) == 0);
    kit_client_close(&c);
    c = kit_post(&k, CHAT, THREE);
    KIT_UNTIL(&k, d->admit_count == 6);
    kit_tokens_of(d, 3, 0, 4, LENGTH); /* the lead is done and waits */
    KIT_UNTIL(&k, sl_metric_get(k.shared.metrics.running, NULL) == 2);
    assert_int_equal(rtr_front_live_count(k.front), 3);
    kit_client_close(&c);
    KIT_UNTIL(&k, d->cancels == 5 && rtr_front_live_count(k.front) == 0);
    kit_close(&k);
}

TEST(choices_survive_the_rank_alone)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client c = kit_post(&k, CHAT, THREE);
    KIT_UNTIL(&k, d->admit_count == 3 && p->runs == 1);
    kit_tokens_of(d, 0, 0, 4, LENGTH);
    kit_tokens_of(d, 2, 0, 2, NONE);
    KIT_UNTIL(&k, sl_metric_get(k.shared.metrics.running, NULL) == 2);
    kit_node *other = kit_add(&k, "d-b", true);
    KIT_UNTIL(&k, kit_heard(&k, other));
    kit_kill(d);
    KIT_UNTIL(&k, other->admit_count == 2 && p->runs == 3);
    for (size_t i = 0; i < 2; i++) {
        bool last = strcmp(other->admits[i].request_id, d->admits[2].request_id) == 0;
        assert_int_equal(other->admits[i].seed, mdl_choice_seed(7, last ? 2 : 1));
        assert_int_equal(other->admits[i].token_count - other->admits[i].prompt_count,
                         last ? 2 : 0);
        assert_string_equal(other->admits[i].fork_of, "");
        kit_tokens_of(other, i, last ? 2 : 0, last ? 2 : 4, LENGTH);
    }
    kit_expect(&k, &c, "\"completion_tokens\":12");
    kit_client_close(&c);
    kit_close(&k);
}

/* A rank of before hand-outs: an error that says so, instead of an answer without. */
TEST(hand_outs_that_do_not_come)
{
    kit k;
    kit_open(&k, NULL);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client c = kit_post(&k, CHAT, BODY(",\"sluice\":{\"routing\":true},\"max_tokens\":4"));
    KIT_UNTIL(&k, p->runs == 1);
    kit_tokens(d, 0, 1, NONE);
    kit_expect(&k, &c, "does not hand out what was asked for");
    KIT_UNTIL(&k, d->cancels == 1 && rtr_front_live_count(k.front) == 0);
    kit_client_close(&c);
    kit_close(&k);
}

static void long_default(rtr_shared *shared)
{
    shared->api.max_tokens_default = 500;
}

/* A max_tokens that nobody asked for fits into the largest cache; one that was asked for is told.
 */
TEST(the_default_fits_into_the_cache)
{
    kit k;
    kit_open(&k, long_default);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    d->info.pages = 2;
    kit_announce(&k, d, false);
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client c = kit_post(&k, CHAT, BODY(""));
    KIT_UNTIL(&k, p->runs == 1);
    assert_int_equal(d->admits[0].max_tokens, 128 - d->admits[0].prompt_count);
    kit_client_close(&c);
    c = kit_post(&k, CHAT, BODY(",\"max_tokens\":7"));
    KIT_UNTIL(&k, p->runs == 2);
    assert_int_equal(d->admits[1].max_tokens, 7);
    kit_client_close(&c);
    kit_close(&k);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(whole_and_streamed_answer),
    cmocka_unit_test(decode_node_dies_mid_stream),
    cmocka_unit_test(decode_stream_breaks_and_comes_back),
    cmocka_unit_test(a_node_that_fails_is_left_alone),
    cmocka_unit_test(recovery_does_not_hold_up_others),
    cmocka_unit_test(prefill_node_dies),
    cmocka_unit_test(nobody_left_mid_stream),
    cmocka_unit_test(client_gone_stops_the_work),
    cmocka_unit_test(stop_string_cancels_the_rest),
    cmocka_unit_test(gaps_are_errors),
    cmocka_unit_test(refusals_go_elsewhere),
    cmocka_unit_test(queue_is_bounded_and_moves_when_room_comes),
    cmocka_unit_test(small_and_urgent_ones_overtake),
    cmocka_unit_test(slow_client_does_not_hold_the_rank),
    cmocka_unit_test(long_prompts_go_to_the_pool),
    cmocka_unit_test(nodes_that_must_not_be_used),
    cmocka_unit_test(another_model_or_process_is_not_used),
    cmocka_unit_test(node_removed_while_in_use),
    cmocka_unit_test(cached_tokens_are_told_behind_the_first_token),
    cmocka_unit_test(without_a_prefill_node_the_rank_prefills),
    cmocka_unit_test(stop_finishes_what_runs),
    cmocka_unit_test(stop_gives_up_at_its_deadline),
    cmocka_unit_test(paths_and_methods),
    cmocka_unit_test(choices_copy_the_first_ones_prompt),
    cmocka_unit_test(a_choice_refused_goes_the_usual_way),
    cmocka_unit_test(choices_that_ended_stay_ended),
    cmocka_unit_test(choices_end_together),
    cmocka_unit_test(choices_survive_the_rank_alone),
    cmocka_unit_test(hand_outs_that_do_not_come),
    cmocka_unit_test(the_default_fits_into_the_cache),
};
API_TEST_MAIN(TESTS)
