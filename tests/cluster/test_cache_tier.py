"""The second cache tier: a decode node whose memory holds two prompts serves four from its file, after kill -9 too, and nothing from a damaged one."""

import os
import re
import threading

from lib import REFERENCE, Cluster, book_text, tokenize, wait_for

SLOT_BYTES = 4096 + 356352  # of the demo model: record, then a page of 7 layers, padded to 4 KiB
PROMPTS = [[0] + tokenize(book_text(420, seed))[:419] for seed in range(4)]  # 7 pages each with what is generated


def ask_all(cluster, what):
    """All prompts one after the other; the tokens that came from a cache."""
    cached = 0
    for index, ids in enumerate(PROMPTS):
        answer = cluster.completion(ids, max_tokens=12, temperature=float(index % 2), top_p=1.0, seed=7 + index, ignore_eos=True)
        assert answer.status == 200 and not answer.error, (what, answer.body, answer.error)
        expected = REFERENCE.run(["--ids", ",".join(map(str, ids)), "--max-tokens", "12", "--temperature", str(float(index % 2)),
                                  "--top-p", "1", "--seed", str(7 + index), "--ignore-eos"])["ids"]
        assert answer.token_ids == expected, (what, index, answer.token_ids, expected)
        cached += answer.usage["prompt_tokens_details"]["cached_tokens"]
    return cached


def fresh_file(name):
    directory = os.path.abspath(os.path.join("build", "test-clusters"))
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, name)
    if os.path.exists(path):
        os.remove(path)
    return path


def lookups(cluster, name, result):
    return cluster.metrics(name).get(f'sluice_kv_tier_lookups_total{{result="{result}"}}', 0)


def pages_used(cluster):
    return cluster.metrics("decode-0").get('sluice_kv_tier_pages{state="used"}', 0)


def damage(path):
    """One bit of each page, records left alone."""
    with open(path, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        for offset in range(4096 + 4096 + 1000, size, SLOT_BYTES):
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 4]))
    return size


def test_evicted_restarted_damaged():
    path = fresh_file("tier.cache")
    with Cluster("cache-tier", "--decode-args", f"--kv-memory 6MiB --kv-disk {path}:16MiB",
                 "--prefill-args=--prefix-cache=false") as cluster:
        assert ask_all(cluster, "cold") == 0
        wait_for(lambda: pages_used(cluster) == 24, "six pages of each prompt in the file")
        cached = ask_all(cluster, "warm")
        assert cached == 4 * 384, cached
        hits = lookups(cluster, "decode-0", "hit")
        assert hits > 0 and lookups(cluster, "decode-0", "miss") >= 4, cluster.metrics("decode-0")
        cluster.wait_at_rest()

        cluster.kill("decode-0")
        wait_for(lambda: not cluster.alive("decode-0"), "the decode node's end")
        cluster.start("decode-0")
        found = wait_for(lambda: re.findall(r"(\d+) of 46 pages are there already", cluster.log("decode-0"))[1:], "the second life")
        assert found == ["24"], found
        cached = ask_all(cluster, "after kill -9")
        assert cached == 4 * 384, cached
        wait_for(lambda: lookups(cluster, "decode-0", "hit") == 24, "24 hits to be counted")

        cluster.kill("decode-0")
        wait_for(lambda: not cluster.alive("decode-0"), "the decode node's end")
        assert damage(path) <= 16 << 20
        cluster.start("decode-0")
        wait_for(lambda: cluster.log("decode-0").count("pages are there already") == 3, "the third life")
        ask_all(cluster, "damaged")
        assert lookups(cluster, "decode-0", "hit") == 0
        wait_for(lambda: "differed from their sums and are dropped" in cluster.log("decode-0"), "a line about it")
        print(f"{hits:.0f} hits in one life, 24 in the next, none of damaged pages")
        cluster.wait_at_rest()
    os.remove(path)


def test_sequences_give_way():
    """Six sequences that need 30 pages in all share 11: some give theirs up and come back, with and without prefill node and file."""
    path = fresh_file("give-way.cache")
    work = [([0] + tokenize(book_text(60 + 5 * index, 40 + index)), float(index % 2), 90 + index) for index in range(6)]
    total = 0
    for name, extra in (("give-way", ["--prefill", "1"]), ("give-way-self", ["--prefill", "0"])):
        answers = [None] * len(work)

        def ask(cluster, index):
            ids, temperature, seed = work[index]
            answers[index] = cluster.completion(ids, max_tokens=170, temperature=temperature, top_p=1.0, seed=seed, ignore_eos=True,
                                                stream=bool(index % 2))
        with Cluster(name, "--decode-args", f"--kv-memory 4MiB --kv-overcommit 4 --mtp-depth 2 --kv-disk {path}:8MiB", "--env",
                     "decode-0:SLUICE_FAULTS=decode.step=slow=12", *extra) as cluster:
            threads = [threading.Thread(target=ask, args=(cluster, index)) for index in range(len(work))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            preempted = cluster.metric("decode-0", "sluice_decode_preempted_total")
            recomputed = cluster.metric("decode-0", "sluice_decode_recomputed_tokens_total")
            cluster.wait_at_rest()
            assert cluster.metrics("decode-0")['sluice_kv_pages{state="promised"}'] == 0
        for (ids, temperature, seed), answer in zip(work, answers):
            assert answer is not None and answer.status == 200 and not answer.error, (name, answer and (answer.body, answer.error))
            expected = REFERENCE.run(["--ids", ",".join(map(str, ids)), "--max-tokens", "170", "--temperature", str(temperature),
                                      "--top-p", "1", "--seed", str(seed), "--ignore-eos"])["ids"]
            assert answer.token_ids == expected, (name, len(ids), answer.token_ids, expected)
        print(f"{name}: {preempted:.0f} gave way, {recomputed:.0f} tokens computed again")
        total += preempted
    assert total > 0
    os.remove(path)
