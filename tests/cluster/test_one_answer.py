"""The cluster's tokens equal those of one process, exactly: chunks, batches, seeds."""

import os
import random
import signal
import threading

from lib import REFERENCE, Cluster, book_text, tokenize, wait_for

SEED = 20


def prompts(count, shortest, longest):
    """Token id prompts of mixed lengths, always the same ones."""
    source = random.Random(SEED + longest)
    text = [tokenize(book_text(longest, seed)) for seed in range(3)]
    out = []
    for index in range(count):
        length = source.randint(shortest, longest)
        words = text[index % 3]
        begin = source.randrange(max(1, len(words) - length))
        out.append([0] + words[begin:begin + length - 1])
    return out


def work_list(short, middle, long):
    """(prompt ids, max_tokens, temperature, seed)"""
    work = []
    for index, ids in enumerate(prompts(short, 5, 800) + prompts(middle, 801, 2500) + prompts(long, 6000, 6000)):
        work.append((ids, 24 if index % 3 else 40, float(index % 2), 1000 + index))
    return work


def ask(cluster, item, answers, index):
    ids, max_tokens, temperature, seed = item
    answers[index] = cluster.completion(ids, max_tokens=max_tokens, temperature=temperature, top_p=1.0, seed=seed, ignore_eos=True,
                                        stream=bool(index % 2))


def ask_all(cluster, work, together):
    answers = [None] * len(work)
    for begin in range(0, len(work), together):
        threads = [threading.Thread(target=ask, args=(cluster, work[i], answers, i))
                   for i in range(begin, min(begin + together, len(work)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return answers


def compare(work, answers, what):
    for (ids, max_tokens, temperature, seed), answer in zip(work, answers):
        assert answer is not None and answer.status == 200 and not answer.error, (what, answer and (answer.body, answer.error))
        out = REFERENCE.run(["--ids", ",".join(map(str, ids)), "--max-tokens", str(max_tokens), "--temperature", str(temperature),
                             "--top-p", "1", "--seed", str(seed), "--ignore-eos"])
        assert answer.token_ids == out["ids"], f"{what}: {len(ids)} tokens, temperature {temperature}, seed {seed}: " \
                                               f"{answer.token_ids} instead of {out['ids']}"


def largest_batch(cluster):
    """Upper bound of the fullest bucket that was used."""
    values = cluster.metrics("decode-0")
    buckets = sorted((float(key.split('le="')[1].rstrip('"}').replace("+Inf", "inf")), value)
                     for key, value in values.items() if key.startswith("sluice_step_batch_size_bucket"))
    total = buckets[-1][1]
    return next(bound for bound, count in buckets if count == total)


def run(name, chunk, work, together, prefix_cache=True):
    """One pass over the work, `together` requests at a time; the largest batch that was seen."""
    arguments = ["--node-args", f"--chunk-tokens {chunk} --prefix-cache={'true' if prefix_cache else 'false'}"]
    if together > 1:  # slow steps (drafts make them few) let the batch fill: prompts arrive one after the other
        arguments += ["--env", "decode-0:SLUICE_FAULTS=decode.step=slow=200"]
    with Cluster(name, *arguments) as cluster:
        cluster.patience *= 4  # an answer in one piece comes when all prompts before it are computed
        compare(work, ask_all(cluster, work, together), f"chunk {chunk}, {together} at a time")
        batch = largest_batch(cluster)
        cluster.wait_at_rest()
    return batch


def test_subset_alone_and_together():
    work = work_list(8, 1, 0)
    run("one-answer-64", 64, work[::2], 1)
    run("one-answer-256", 256, work, 12, prefix_cache=False)


def test_sixteen_share_a_batch():
    """The prefill node is held until all sixteen wait there; then they arrive together and decode side by side."""
    work = [(ids, 40, float(index % 2), 500 + index) for index, ids in enumerate(prompts(16, 5, 60))]
    with Cluster("one-answer-batch", "--node-args", "--chunk-tokens 2048", "--env", "prefill-0:SLUICE_FAULTS=prefill.group=hold@1",
                 "--env", "decode-0:SLUICE_FAULTS=decode.step=slow=200") as cluster:
        answers = []
        thread = threading.Thread(target=lambda: answers.extend(ask_all(cluster, work, 16)))
        thread.start()
        wait_for(lambda: cluster.metric("prefill-0", "sluice_running_requests") +
                 cluster.metric("prefill-0", "sluice_waiting_requests") == 16, "sixteen prompts at the prefill node")
        wait_for(lambda: "fault prefill.group: hold" in cluster.log("prefill-0"), "the first of them to be held")
        os.kill(cluster.node("prefill-0")["pid"], signal.SIGUSR2)
        thread.join()
        compare(work, answers, "16 together")
        batch = largest_batch(cluster)
        print(f"16 prompts equal; largest batch between {batch / 2 + 1:.0f} and {batch:.0f}")
        assert batch >= 16, batch
        cluster.wait_at_rest()


def test_through_transit_pages():
    """Pages go through memory apart from the cache, as with a GPU's, and there are fewer than the prompts ask for."""
    work = [(ids, 16, float(index % 2), 700 + index) for index, ids in enumerate(prompts(12, 150, 600))]
    with Cluster("one-answer-transit", "--node-args", "--kv-transit 4MiB --context-max 700 --chunk-tokens 128") as cluster:
        compare(work, ask_all(cluster, work, 12), "12 through 11 pages")
        refused = cluster.metric("router-0", 'sluice_decode_refusals_total{node="decode-0"}')
        assert refused > 0, "nobody waited for a transit page"
        cluster.wait_at_rest()


def test_by_sockets():
    """The cache goes by plain sockets between the nodes: the same answers, and by no other way."""
    work = work_list(5, 1, 0)
    with Cluster("one-answer-sockets", "--node-args", "--kv-transport tcp --chunk-tokens 256") as cluster:
        for name in ("prefill-0", "decode-0"):
            assert ", kv tcp:127.0.0.1:" in cluster.log(name), cluster.log(name)
        compare(work, ask_all(cluster, work, 6), "6 together by sockets")
        assert cluster.metric("decode-0", "sluice_kv_received_pieces_total") > 0, "the pieces came from the prefill node"
        cluster.wait_at_rest()


def full_all():
    """40 prompts <= 800, 8 <= 2,500, 2 of 6,000; greedy and seeded; chunks 64, 256, 1,024; alone and 16 at once."""
    work = work_list(40, 8, 2)
    for chunk in (64, 256, 1024):
        run(f"one-answer-full-{chunk}", chunk, work, 1, prefix_cache=chunk == 256)
        batch = run(f"one-answer-full-{chunk}-16", chunk, work, 16, prefix_cache=chunk == 256)
        print(f"chunk {chunk}: {len(work)} prompts equal, alone and 16 at once; largest batch at most {batch:.0f}", flush=True)
