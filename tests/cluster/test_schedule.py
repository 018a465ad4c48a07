"""Who is served first: lower priority numbers, then short prompts before long ones; one answer all the same."""

import os
import signal
import threading

from lib import REFERENCE, Cluster, book_text, tokenize, wait_for

# (name, tokens, priority): the first one is under way when the others come
WORK = [("first", 900, 0), ("long", 1100, 0), ("short", 60, 0), ("urgent", 500, -1)]


def test_order_of_prompts():
    text = tokenize(book_text(1100, 3))
    order, answers = [], {}
    with Cluster("schedule", "--prefill-args=--chunk-tokens 128", "--env", "prefill-0:SLUICE_FAULTS=prefill.group=hold@1") as cluster:

        def ask(name, tokens, priority):
            def on_chunk(answer):
                if answer.token_ids and name not in order:
                    order.append(name)
            answers[name] = cluster.completion([0] + text[:tokens - 1], on_chunk, max_tokens=8, temperature=0, ignore_eos=True,
                                               stream=True, priority=priority)
        threads = [threading.Thread(target=ask, args=item) for item in WORK]
        threads[0].start()
        wait_for(lambda: "fault prefill.group: hold" in cluster.log("prefill-0"), "the first prompt's first chunk")
        for thread in threads[1:]:
            thread.start()
        wait_for(lambda: cluster.metric("prefill-0", "sluice_running_requests") +
                 cluster.metric("prefill-0", "sluice_waiting_requests") == len(WORK), "all prompts at the prefill node")
        os.kill(cluster.node("prefill-0")["pid"], signal.SIGUSR2)
        for thread in threads:
            thread.join()
        cluster.wait_at_rest()
    for name, tokens, _ in WORK:
        answer = answers[name]
        assert answer.status == 200 and not answer.error, (name, answer.body, answer.error)
        expected = REFERENCE.run(["--ids", ",".join(map(str, [0] + text[:tokens - 1])), "--max-tokens", "8", "--temperature", "0.0",
                                  "--ignore-eos"])["ids"]
        assert answer.token_ids == expected, (name, answer.token_ids, expected)
    print(f"first tokens in this order: {', '.join(order)}")
    # Which of two prompts that are ready at once shows first is up to the clients' threads.
    assert sorted(order[:2]) == ["short", "urgent"] and order[2:] == ["first", "long"], order
