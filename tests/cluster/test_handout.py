"""Routing, sampling masks and weights versions: what the cluster hands out equals what one process does, byte for byte."""

import base64
import struct

from lib import REFERENCE, Cluster, book_text, tokenize, wait_for

WANT = {"routing": True, "sampling_mask": True}
# (prompt words, max_tokens, temperature, top_p, seed): short, over pages, greedy, uncut, a prompt that ends with its page
WORK = [(40, 40, 1.0, 0.9, 1), (150, 30, 0.7, 0.95, 2), (25, 24, 0.0, 1.0, 3), (60, 20, 1.0, 1.0, 4), (0, 20, 1.0, 0.5, 5)]


def prompt_of(words):
    return [0] + tokenize(book_text(words, words)) if words else ([0] + tokenize(book_text(120, 9)))[:128]


def rows(blob, magic):
    """Rows of one blob, and its header's numbers."""
    data = base64.b64decode(blob)
    assert data[:4] == magic and struct.unpack("<H", data[4:6])[0] == 1, data[:16]
    count = struct.unpack("<I", data[12:16])[0]
    out, at = [], 16
    if magic == b"SLRT":
        _, layers, chosen = struct.unpack("<HHH", data[6:12])
        assert (layers, chosen) == (5, 4), (layers, chosen)
        size = layers * chosen * 6
        out = [data[16 + i * size:16 + (i + 1) * size] for i in range(count)]
        at += count * size
    else:
        vocab = struct.unpack("<I", data[6:10])[0]
        for _ in range(count):
            kind, ids = data[at], struct.unpack("<I", data[at + 1:at + 5])[0]
            size = 5 + (0, 4 * ids, (vocab + 7) // 8)[kind]
            out.append(data[at:at + size])
            at += size
    assert at == len(data) and len(out) == count, (at, len(data), count)
    return out


def handed_out(parts):
    """{choice: (routing rows, masks, versions)} of a body or of chunks."""
    out = {}
    for part in parts:
        for choice in part.get("choices", []):
            routing, masks, versions = out.setdefault(choice["index"], ([], [], []))
            got = choice.get("sluice")
            ids = choice.get("token_ids") or []
            if not got:
                assert not ids, choice
                continue
            assert got["first_token"] == len(routing), (got["first_token"], len(routing))
            routing += rows(got["routing"], b"SLRT")
            masks += rows(got["sampling_mask"], b"SLSM")
            versions += [version for _, version in got["weights_versions"]]
            assert len(routing) == len(masks) == got["first_token"] + len(ids)
    return out


def reference(prompt, item):
    _, max_tokens, temperature, top_p, seed = item
    out = REFERENCE.run(["--ids", ",".join(map(str, prompt)), "--max-tokens", str(max_tokens), "--temperature", str(temperature),
                         "--top-p", str(top_p), "--seed", str(seed), "--ignore-eos", "--handout"])
    return out["ids"], rows(out["sluice"]["routing"], b"SLRT"), rows(out["sluice"]["sampling_mask"], b"SLSM")


def check(cluster, item, stream, on_chunk=None, **fields):
    words, max_tokens, temperature, top_p, seed = item
    prompt = prompt_of(words)
    answer = cluster.completion(prompt, on_chunk=on_chunk, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed,
                                ignore_eos=True, stream=stream, sluice=WANT, **fields)
    assert answer.status == 200 and not answer.error, (answer.body, answer.error)
    got = handed_out([answer.body] if answer.body else answer.chunks)
    ids, routing, masks = reference(prompt, item)
    assert answer.token_ids == ids or fields.get("n"), (item, answer.token_ids, ids)
    assert got[0][0] == routing and got[0][1] == masks, (item, "hand-outs differ")
    assert len(routing) == max_tokens and set(got[0][2]) == {"1"}, got[0][2]
    return answer, got


def run(depth):
    with Cluster(f"handout-{depth}", "--node-args", f"--mtp-depth {depth}") as cluster:
        for index, item in enumerate(WORK):
            check(cluster, item, bool(index % 2))
        check(cluster, WORK[4], True)  # every page of the prompt is known now, its last row is computed all the same
        check(cluster, WORK[0], False)
        _, got = check(cluster, WORK[1], True, n=3)
        assert len(got) == 3 and got[1][0][0] == got[0][0][0] and got[1][0] != got[0][0], "the choices draw from one row first"
        if depth:
            assert cluster.metric("decode-0", "sluice_mtp_accepted_total") > 0
        plain = cluster.completion(prompt_of(30), max_tokens=4)
        assert "sluice" not in plain.body["choices"][0], plain.body
        bad, _, body = cluster.request("POST", "/v1/completions", {"prompt": "x", "sluice": {"rooting": True}})
        assert bad == 400 and b"rooting" in body, body
        cluster.wait_at_rest()


def test_equals_one_process():
    run(0)


def test_equals_one_process_with_drafts():
    run(2)


def test_over_a_migration_and_without_prefill_node():
    """The rows of a retry are computed by others, and a decode node may compute the prompt itself."""
    with Cluster("handout-migration", "--decode", "2", "--router-args", "--self-prefill=true ", "--node-args", "--mtp-depth 1",
                 "--env", "decode-0:SLUICE_FAULTS=decode.step=slow=20", "--env", "decode-1:SLUICE_FAULTS=decode.step=slow=20") as cluster:
        killed = []

        def kill(answer):
            if len(answer.token_ids) > 8 and not killed:
                killed.append(answer.headers["x-sluice-decode-node"])
                cluster.kill(killed[0])
        check(cluster, WORK[0], True, kill)
        assert killed
        cluster.start(killed[0])
        cluster.kill("prefill-0")
        wait_for(lambda: cluster.metric("router-0", 'sluice_usable_nodes{role="prefill"}') == 0, "decode nodes only")
        check(cluster, WORK[1], True)
        check(cluster, WORK[1], False, n=2)
        cluster.wait_at_rest()


def full_many_at_once():
    """Hand-outs of a step that do not fit into one message: bitmaps of twelve choices, four drafts each."""
    prompt, n = prompt_of(40), 12
    with Cluster("handout-many", "--node-args", "--mtp-depth 3") as cluster:
        answers = [cluster.completion(prompt, n=n, max_tokens=60, temperature=1.5, top_p=0.999, seed=8, ignore_eos=True, stream=stream,
                                      sluice=WANT) for stream in (False, True)]
        got = [handed_out([answer.body] if answer.body else answer.chunks) for answer in answers]
        assert len(got[0]) == n and all(got[0][i][:2] == got[1][i][:2] for i in range(n))
        seeds = {choice["index"]: choice["seed"] for choice in answers[0].body["choices"]}
        sizes = [len(mask) for _, masks, _ in got[0].values() for mask in masks]
        assert max(sizes) > 1000 and sum(sizes) > 4 * 65536, (max(sizes), sum(sizes))
        for index in (0, 11):
            _, routing, masks = reference(prompt, (40, 60, 1.5, 0.999, seeds[index]))
            assert got[0][index][0] == routing and got[0][index][1] == masks, index
        cluster.wait_at_rest()


def test_over_giving_way():
    """Choices that take each other's pages away: who comes back by its tokens hands out the same rows."""
    prompt, n = prompt_of(60), 6
    with Cluster("handout-tight", "--kv-memory", "4MiB", "--node-args", "--mtp-depth 1", "--decode-args", "--kv-overcommit 8") as cluster:
        answer = cluster.completion(prompt, n=n, max_tokens=240, temperature=1, top_p=0.9, seed=21, ignore_eos=True, stream=True,
                                    sluice={**WANT, "prompt_routing": True}, prompt_logprobs=1)
        assert answer.status == 200 and answer.done and not answer.error, answer.error
        got = handed_out(answer.chunks)
        seeds = {choice["index"]: choice["seed"] for chunk in answer.chunks for choice in chunk["choices"] if "seed" in choice}
        assert len(got) == len(seeds) == n
        preempted = cluster.metric("decode-0", "sluice_decode_preempted_total")
        assert preempted > 0, "the cache was large enough"
        print(f"{preempted:.0f} gave way")
        for index in (0, 3, 5):
            _, routing, masks = reference(prompt, (60, 240, 1.0, 0.9, seeds[index]))
            assert got[index][0] == routing and got[index][1] == masks, index
        cluster.wait_at_rest()
