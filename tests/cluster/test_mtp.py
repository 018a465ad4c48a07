"""Drafts change the number of steps, never a token: depth 0, 1 and 3 give what one process gives."""

import threading

from lib import REFERENCE, Cluster, book_text, tokenize

# (prompt words, max_tokens, temperature, seed): across pages, greedy and seeded, all at once
WORK = [(40, 48, 0.0, 1), (90, 30, 0.0, 2), (150, 48, 0.7, 3), (25, 40, 1.0, 4), (400, 24, 0.0, 5), (33, 2, 0.0, 6), (60, 1, 0.0, 7)]


def ask(cluster, prompt, item, answers, index):
    _, max_tokens, temperature, seed = item
    answers[index] = cluster.completion(prompt, max_tokens=max_tokens, temperature=temperature, top_p=0.9, seed=seed, logprobs=3,
                                        ignore_eos=True, stream=bool(index % 2))


def reference(prompt, item, depth=0):
    _, max_tokens, temperature, seed = item
    return REFERENCE.run(["--ids", ",".join(map(str, prompt)), "--max-tokens", str(max_tokens), "--temperature", str(temperature),
                          "--top-p", "0.9", "--seed", str(seed), "--ignore-eos", "--mtp-depth", str(depth)])


def run(depth, prompts):
    answers = [None] * len(WORK)
    with Cluster(f"mtp-{depth}", "--node-args", f"--mtp-depth {depth}") as cluster:
        threads = [threading.Thread(target=ask, args=(cluster, prompts[i], WORK[i], answers, i)) for i in range(len(WORK))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        cluster.wait_at_rest()
        counts = [cluster.metric("decode-0", f"sluice_mtp_{name}_total") for name in ("drafted", "accepted")]
        steps = cluster.metric("decode-0", "sluice_step_batch_size_count")
    for prompt, item, answer in zip(prompts, WORK, answers):
        assert answer is not None and answer.status == 200 and not answer.error, (depth, item, answer and (answer.body, answer.error))
        expected = reference(prompt, item)["ids"]
        assert answer.token_ids == expected, f"depth {depth}, {item}: {answer.token_ids} instead of {expected}"
        assert answer.finish_reason == "length", (depth, item, answer.finish_reason)
    return answers, counts, steps


def logprobs(answer):
    """Log-probabilities of a completion, streamed or not, as text."""
    parts = [answer.body] if answer.body else answer.chunks
    return [str(value) for part in parts for choice in part.get("choices", []) if choice.get("logprobs")
            for value in choice["logprobs"]["token_logprobs"]]


def test_depth_changes_no_token():
    prompts = [[0] + tokenize(book_text(words, words)) for words, _, _, _ in WORK]
    plain = None
    for depth in (0, 1, 3):
        answers, (drafted, accepted), steps = run(depth, prompts)
        print(f"depth {depth}: {drafted:.0f} drafted, {accepted:.0f} accepted, {steps:.0f} steps")
        if depth == 0:
            plain = answers
            assert drafted == 0 and accepted == 0
            continue
        assert 0 < accepted <= drafted, (depth, drafted, accepted)
        for item, answer, before in zip(WORK, answers, plain):
            assert logprobs(answer) == logprobs(before) and len(logprobs(answer)) == item[1], (depth, item)


def test_one_process_too():
    item = (40, 60, 0.0, 1)
    prompt = [0] + tokenize(book_text(40, 40))
    for depth in (1, 2, 3):
        out = reference(prompt, item, depth)
        assert out["ids"] == reference(prompt, item)["ids"], depth
        assert out["mtp"]["accepted"] > 0 and out["mtp"]["steps"] < 59, out["mtp"]
