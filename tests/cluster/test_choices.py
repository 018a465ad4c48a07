"""n > 1: choice i equals what one process gives with the seed of choice i; the prompt is computed once."""

from lib import REFERENCE, Cluster, book_text, tokenize, wait_for

PROMPT_WORDS = (30, 150)
N = 5


def per_choice(answer):
    """[(token ids, finish reason, seed)] of a completion, streamed or not."""
    out = {}
    for part in [answer.body] if answer.body else answer.chunks:
        for choice in part.get("choices", []):
            ids, finish, seed = out.get(choice["index"], ([], None, None))
            out[choice["index"]] = (ids + (choice.get("token_ids") or []), choice.get("finish_reason") or finish,
                                    choice.get("seed", seed))
    return [out[index] for index in sorted(out)]


def expected(prompt, seed, max_tokens, depth=0):
    return REFERENCE.run(["--ids", ",".join(map(str, prompt)), "--max-tokens", str(max_tokens), "--temperature", "1", "--top-p", "0.9",
                          "--seed", str(seed), "--mtp-depth", str(depth)])


def check(answer, prompt, n, seed, max_tokens):
    assert answer.status == 200 and not answer.error, (answer.body, answer.error)
    choices = per_choice(answer)
    assert len(choices) == n, choices
    assert n == 1 or choices[0][2] == seed, choices
    for index, (ids, finish, own_seed) in enumerate(choices):
        out = expected(prompt, own_seed if n > 1 else seed, max_tokens)
        assert ids == out["ids"] and finish == out["finish_reason"], (index, own_seed, ids, out["ids"])
    assert len({tuple(choice[0]) for choice in choices}) > n // 2, "choices are alike"


def test_each_equals_one_process():
    prompts = [[0] + tokenize(book_text(words, words)) for words in PROMPT_WORDS]
    with Cluster("choices", "--node-args", "--prefix-cache=false --mtp-depth 2") as cluster:
        for prompt in prompts:
            for stream in (False, True):
                before = cluster.metric("prefill-0", "sluice_prompt_tokens_total")
                answer = cluster.completion(prompt, n=N, seed=11, max_tokens=40, temperature=1, top_p=0.9, stream=stream)
                check(answer, prompt, N, 11, 40)
                wait_for(lambda: cluster.metric("prefill-0", "sluice_prompt_tokens_total") == before + len(prompt), "one prefill")
                assert cluster.metric("decode-0", "sluice_prompt_tokens_total") == 0
        # a choice's seed alone gives the same
        alone = cluster.completion(prompts[0], seed=per_choice(answer)[3][2], max_tokens=40, temperature=1, top_p=0.9)
        check(alone, prompts[0], 1, per_choice(answer)[3][2], 40)
        chat = cluster.chat("Who are you?", n=3, max_tokens=12, temperature=1)
        assert [choice["index"] for choice in chat.body["choices"]] == [0, 1, 2], chat.body
        assert chat.usage["completion_tokens"] == sum(len(ids) for ids, _, _ in per_choice(chat)), chat.usage
        cluster.wait_at_rest()


def test_a_full_node_takes_them_one_after_the_other():
    """More choices than slots, and a node that dies while they run: every one is right all the same."""
    prompt = [0] + tokenize(book_text(40, 3))
    with Cluster("choices-faults", "--decode", "2", "--node-args", "--max-sequences 2", "--env",
                 "decode-0:SLUICE_FAULTS=decode.step=slow=20", "--env", "decode-1:SLUICE_FAULTS=decode.step=slow=20") as cluster:
        killed = []

        def kill(answer):
            if len(answer.chunks) > 12 and not killed:
                killed.append(answer.headers["x-sluice-decode-node"])
                cluster.kill(killed[0])
        answer = cluster.completion(prompt, n=N, seed=5, max_tokens=30, temperature=1, top_p=0.9, stream=True, on_chunk=kill)
        check(answer, prompt, N, 5, 30)
        assert killed and answer.done
        cluster.wait_at_rest()


def test_a_client_that_goes_stops_all():
    with Cluster("choices-gone", "--env", "decode-0:SLUICE_FAULTS=decode.step=slow=20") as cluster:
        def leave(answer):
            if len(answer.chunks) > 5:
                raise StopIteration
        cluster.completion([0] + tokenize(book_text(30, 1)), n=4, max_tokens=2000, ignore_eos=True, temperature=1, stream=True,
                           on_chunk=leave)
        cluster.wait_at_rest()
        assert cluster.metric("decode-0", "sluice_generation_tokens_total") < 4 * 2000
