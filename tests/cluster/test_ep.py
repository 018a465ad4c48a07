"""Expert parallelism: instances of several ranks, of different sizes on the two sides, equal one process; a rank that dies ends its instance,
and no stream is wrong."""

import threading

from lib import Cluster, wait_for
from test_one_answer import ask_all, compare, prompts, work_list


def ep_metric(cluster, name, what):
    return cluster.metric(name, f"sluice_ep_{what}")


def check_shares(cluster, sizes):
    """Every rank holds a part of the experts, all of them together each expert once; rows went both ways."""
    for role, size in sizes.items():
        names = [node["name"] for node in cluster.nodes(role)]
        shares = {name: ep_metric(cluster, name, "expert_bytes") for name in names}
        instances = {}
        for name, share in shares.items():
            instances.setdefault(name.rpartition("-")[0], []).append(share)
        whole = {sum(parts) for parts in instances.values()}
        assert len(whole) == 1 and all(0 < share < max(whole) for share in shares.values()), shares
        for name in names:
            sent = {phase: ep_metric(cluster, name, f'bytes_total{{phase="{phase}"}}') for phase in ("dispatch", "combine")}
            assert cluster.metric(name, "sluice_ep_ranks") == size and all(value > 0 for value in sent.values()), (name, sent)
        print(f"{role}: expert bytes {shares}", flush=True)


def run(name, prefill, decode, work, together=16):
    with Cluster(name, "--prefill-ep", prefill, "--decode-ep", decode, "--threads", 1, "--node-args", "--chunk-tokens 256",
                 "--router-args=--self-prefill=false") as cluster:
        compare(work, ask_all(cluster, work, together), f"prefill EP {prefill}, decode EP {decode}")
        check_shares(cluster, {role: size for role, size in (("prefill", prefill), ("decode", decode)) if size > 1})
        cluster.wait_at_rest()
        return {node["name"]: node["pid"] for role in ("prefill", "decode") for node in cluster.nodes(role)}


def test_two_ranks_feed_three():
    run("ep-2-3", 2, 3, work_list(7, 1, 0))


def test_a_rank_dies():
    """The other rank of its instance ends by itself; what ran there goes on in the other instance, byte for byte; both come back."""
    work = [(ids, 40, float(index % 2), 300 + index) for index, ids in enumerate(prompts(8, 5, 60))]
    with Cluster("ep-death", "--decode", 2, "--decode-ep", 2, "--threads", 1, "--node-args", "--ep-timeout 10s", "--lease", "2s",
                 "--env", "*:SLUICE_FAULTS=decode.step=slow=50") as cluster:
        answers = []
        thread = threading.Thread(target=lambda: answers.extend(ask_all(cluster, work, 8)))
        thread.start()
        ranks = ("decode-0-0", "decode-0-1")
        wait_for(lambda: sum(cluster.metric(name, "sluice_generation_tokens_total") for name in ranks) > 10, "tokens of decode-0")
        cluster.kill("decode-0-1")
        thread.join()
        compare(work, answers, "a rank was killed")
        wait_for(lambda: not cluster.alive("decode-0-0"), "the other rank to end")
        assert "instance failed" in cluster.log("decode-0-0"), cluster.log("decode-0-0")
        for name in ranks:
            cluster.start(name)
        wait_for(lambda: cluster.metric("router-0", 'sluice_usable_nodes{role="decode"}') == 4, "both instances")
        compare(work[:4], ask_all(cluster, work[:4], 4), "after it came back")


def full_sizes():
    """56 prompts in mixed batches, EP 1 to 4 on either side."""
    work = work_list(48, 8, 0)
    for prefill, decode in ((1, 2), (2, 1), (3, 4), (4, 3), (1, 4), (2, 2)):
        run(f"ep-full-{prefill}-{decode}", prefill, decode, work)
        print(f"prefill EP {prefill}, decode EP {decode}: {len(work)} prompts equal", flush=True)
