"""Log-probabilities and routing of the prompt: what one process says, wherever the prompt is computed and whatever is cached."""

import base64
import threading

from lib import REFERENCE, Cluster, book_text, tokenize, wait_for

WORDS = (30, 160, 400)


def prompt_of(words):
    return [0] + tokenize(book_text(words, words))


def reference(prompt):
    return REFERENCE.run(["--ids", ",".join(map(str, prompt)), "--max-tokens", "8", "--temperature", "0", "--ignore-eos",
                          "--prompt-logprobs", "3", "--prompt-routing"])


def ask(cluster, prompt, **fields):
    return cluster.completion(prompt, max_tokens=8, temperature=0, ignore_eos=True, prompt_logprobs=3,
                              sluice={"prompt_routing": True}, **fields)


def told(answer):
    """(prompt_logprobs of each choice that has them, prompt_routing) of an answer, streamed or not."""
    lists, routing = [], None
    for part in [answer.body] if answer.body else answer.chunks:
        routing = (part.get("sluice") or {}).get("prompt_routing", routing)
        lists += [choice["prompt_logprobs"] for choice in part.get("choices", []) if "prompt_logprobs" in choice]
    return lists, routing


def check(answer, prompt, choices=1):
    assert answer.status == 200 and not answer.error, (answer.body, answer.error)
    expected = reference(prompt)
    if choices == 1:
        assert answer.token_ids == expected["ids"], (answer.token_ids, expected["ids"])
    lists, routing = told(answer)
    assert len(lists) == choices, len(lists)
    assert routing == expected["prompt_routing"], "routing differs"
    assert len(base64.b64decode(routing)) == 16 + len(prompt) * 5 * 4 * 6
    for got in lists:
        assert len(got) == len(prompt) and got[0] is None, (len(got), len(prompt))
        for entry, want in zip(got[1:], expected["prompt_logprobs"][1:]):
            pairs = {str(top["id"]): (top["logprob"], rank + 1) for rank, top in enumerate(want["top"])}
            pairs[str(want["id"])] = (want["logprob"], want["rank"])
            assert {key: (value["logprob"], value["rank"]) for key, value in entry.items()} == pairs, (entry, want)


def test_equal_one_process_cached_or_not():
    with Cluster("prompt-rows", "--node-args", "--chunk-tokens 96") as cluster:
        for index, words in enumerate(WORDS):
            prompt = prompt_of(words)
            plain = cluster.completion(prompt, max_tokens=8, temperature=0, ignore_eos=True)  # its pages are known from now on
            assert plain.token_ids == reference(prompt)["ids"]
            check(ask(cluster, prompt, stream=bool(index % 2)), prompt)
            check(ask(cluster, prompt), prompt)
        check(ask(cluster, prompt_of(30), n=3), prompt_of(30), 3)
        check(ask(cluster, prompt_of(30), n=2, stream=True), prompt_of(30), 2)
        chat = cluster.chat("Who are you?", prompt_logprobs=0, max_tokens=3)
        assert len(chat.body["prompt_logprobs"]) == chat.usage["prompt_tokens"], chat.body
        bad, _, body = cluster.request("POST", "/v1/completions", {"prompt": "x", "prompt_logprobs": 99})
        assert bad == 400 and b"prompt_logprobs" in body, body
        bad, _, body = cluster.request("POST", "/v1/completions",
                                       {"prompt": [5] * 20000, "prompt_logprobs": 20, "max_tokens": 1})
        assert bad == 400 and b"at most" in body, body
        cluster.wait_at_rest()


def test_echo():
    text = "The old man walked along the river and looked at the stones in the garden before the night came."
    with Cluster("echo") as cluster:
        ids = [0] + tokenize(text)
        expected = reference(ids)
        for stream in (False, True):
            answer = cluster.completion(text, max_tokens=8, temperature=0, ignore_eos=True, echo=True, logprobs=3, stream=stream)
            assert answer.text.startswith(text) and len(answer.text) > len(text), answer.text
            parts = [answer.body] if answer.body else answer.chunks
            lists = [choice["logprobs"] for part in parts for choice in part["choices"] if choice.get("logprobs")]
            logprobs = [value for one in lists for value in one["token_logprobs"]]
            offsets = [value for one in lists for value in one["text_offset"]]
            assert logprobs[0] is None and len(logprobs) == len(ids) + 8, (len(logprobs), len(ids))
            assert logprobs[1:len(ids)] == [entry["logprob"] for entry in expected["prompt_logprobs"][1:]]
            assert offsets[:2] == [0, 0] and offsets[len(ids)] == len(text), offsets


def test_after_a_loss_and_without_prefill_node():
    """A prefill node dies in the middle: the next one tells the rest. Then the decode node computes the prompt itself."""
    prompt = prompt_of(500)
    with Cluster("prompt-rows-loss", "--prefill", "2", "--router-args", "--self-prefill=true ", "--node-args", "--chunk-tokens 64",
                 "--env", "prefill-0:SLUICE_FAULTS=prefill.group=hold@5", "--env",
                 "prefill-1:SLUICE_FAULTS=prefill.group=hold@5") as cluster:
        outcome = {}
        thread = threading.Thread(target=lambda: outcome.update(answer=ask(cluster, prompt, stream=True)))
        thread.start()
        held = wait_for(lambda: [name for name in ("prefill-0", "prefill-1") if "fault prefill.group: hold" in cluster.log(name)],
                        "a node in the middle of the prompt")
        other = "prefill-1" if held == ["prefill-0"] else "prefill-0"
        cluster.kill(held[0])
        wait_for(lambda: "fault prefill.group: hold" in cluster.log(other), "the other node")
        cluster.kill(other, "USR2")
        thread.join()
        check(outcome["answer"], prompt)
        cluster.kill(other)
        wait_for(lambda: cluster.metric("router-0", 'sluice_usable_nodes{role="prefill"}') == 0, "decode nodes only")
        check(ask(cluster, prompt), prompt)
        check(ask(cluster, prompt_of(160), n=2), prompt_of(160), 2)
        cluster.wait_at_rest()
