"""Expert parallelism: instances of several ranks, of different sizes on the two sides, equal one process; the placement of experts is changed while
they serve, a rank dies and comes back, and no stream is wrong."""

import json
import random
import re
import statistics
import subprocess
import threading
import time

from lib import Cluster, wait_for
from test_one_answer import ask_all, compare, prompts, work_list


def ep_metric(cluster, name, what):
    return cluster.metric(name, f"sluice_ep_{what}")


def check_shares(cluster, sizes):
    """Every rank holds a part of the experts, of three and more all together have some twice; rows went both ways."""
    for role, size in sizes.items():
        names = [node["name"] for node in cluster.nodes(role)]
        shares = {name: ep_metric(cluster, name, "expert_bytes") for name in names}
        instances = {}
        for name, share in shares.items():
            instances.setdefault(name.rpartition("-")[0], []).append(share)
        whole = {sum(parts) for parts in instances.values()}
        assert len(whole) == 1 and all(0 < share < max(whole) for share in shares.values()), shares
        assert all(ep_metric(cluster, name, "ranks") == size for name in names)
        sent = {(name, phase): ep_metric(cluster, name, f'bytes_total{{phase="{phase}"}}') for name in names for phase in ("dispatch", "combine")}
        # A rank that got no request sends no rows, and none is answered: but each takes part, and each instance does both.
        assert all(sent[name, "dispatch"] + sent[name, "combine"] > 0 for name in names), sent
        for instance in instances:
            assert all(sum(value for (name, of), value in sent.items() if of == phase and name.startswith(f"{instance}-")) > 0
                       for phase in ("dispatch", "combine")), sent
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


def ranks_of(cluster):
    return [node["name"] for node in cluster.nodes("decode")]


class Stream(threading.Thread):
    """One streamed answer, and when its tokens came."""

    def __init__(self, cluster, item):
        super().__init__()
        self.cluster, self.item, self.times, self.answer = cluster, item, [], None

    def run(self):
        ids, max_tokens, temperature, seed = self.item
        self.answer = self.cluster.completion(ids, max_tokens=max_tokens, temperature=temperature, top_p=1.0, seed=seed, ignore_eos=True,
                                              stream=True, on_chunk=lambda answer: self.times.append(time.monotonic()))

    def gaps(self):
        return [after - before for before, after in zip(self.times, self.times[1:])]


def start_streams(cluster, work):
    streams = [Stream(cluster, item) for item in work]
    for stream in streams:
        stream.start()
    return streams


def end_streams(streams, what):
    for stream in streams:
        stream.join()
    compare([stream.item for stream in streams], [stream.answer for stream in streams], what)


class Load(threading.Thread):
    """One prompt again and again, streamed, until told; when its tokens came."""

    def __init__(self, cluster, item):
        super().__init__()
        self.cluster, self.item, self.over, self.streams = cluster, item, False, []

    def run(self):
        while not self.over:
            stream = Stream(self.cluster, self.item)
            self.streams.append(stream)
            stream.run()
            if stream.answer.error:
                return


def start_loads(cluster, work):
    loads = [Load(cluster, item) for item in work]
    for load in loads:
        load.start()
    tokens_come(cluster)
    return loads


def end_loads(loads, what):
    """Each answer is what one process says. Returns the streams."""
    for load in loads:
        load.over = True
    for load in loads:
        load.join()
        compare([load.item] * len(load.streams), [stream.answer for stream in load.streams], what)
    return [stream for load in loads for stream in load.streams]


def placement_key(cluster, instance):
    return f"/sluice/v1/{cluster.state['cluster']}/placement/{instance}"


def read_placement(cluster, instance="decode-0"):
    found = json.loads(cluster.etcdctl("get", placement_key(cluster, instance), "-w", "json"))["kvs"][0]
    text = cluster.etcdctl("get", "--print-value-only", placement_key(cluster, instance))
    return json.loads(text), found["mod_revision"]


def write_placement(cluster, table, revision, instance="decode-0"):
    """As an operator would: a transaction that compares the revision. Whether it took place."""
    key = placement_key(cluster, instance)
    text = f'mod("{key}") = "{revision}"\n\nput {key} {json.dumps(json.dumps(table))}\n\n\n'
    done = subprocess.run(["etcdctl", "--endpoints", ",".join(cluster.state["etcd"]), "txn"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[0].strip() == "SUCCESS"


def expert_tokens(cluster, name, expert):
    return cluster.metrics(name).get(f'sluice_expert_tokens_total{{expert="{expert}"}}', 0)


def on_version(cluster, version):
    return all(ep_metric(cluster, name, "placement_version") == version for name in ranks_of(cluster))


def generated(cluster):
    return sum(cluster.metric(name, "sluice_generation_tokens_total") for name in ranks_of(cluster))


def tokens_come(cluster):
    """From now on: some of each stream, more or less."""
    before = generated(cluster)
    wait_for(lambda: generated(cluster) > before + 40, "tokens")


def ranks_loads(cluster):
    """Of decode-0, by `top`, at two looks; None: too few steps in between."""
    looks = [json.loads(line) for line in cluster.ctl("top", "--json", "--interval", "300ms", "--count", "2").stdout.splitlines()]
    loads = [[node.get("expert_load_percent") for node in look["nodes"] if node.get("instance") == "decode-0"] for look in looks]
    return loads if all(None not in load for load in loads) else None


def test_an_expert_moves_by_transaction():
    """Expert 15 goes from rank 3 to rank 0 in every layer while streams run: afterwards steps use it there, and nowhere else."""
    work = [(ids, 40, float(index % 2), 900 + index) for index, ids in enumerate(prompts(8, 5, 60))]
    with Cluster("ep-move", "--decode-ep", 4, "--threads", 1, "--env", "*:SLUICE_FAULTS=decode.step=slow=30") as cluster:
        table, revision = read_placement(cluster)
        assert table["version"] == 1, table
        for ranks in table["layers"]:
            ranks[3][ranks[3].index(15)] = 0
            ranks[0][ranks[0].index(0)] = 15
        table["version"] = 2
        loads = start_loads(cluster, work)
        assert expert_tokens(cluster, "decode-0-3", 15) > 0 and expert_tokens(cluster, "decode-0-0", 15) == 0
        assert not write_placement(cluster, table, revision + 1), "a transaction on a revision that is not there took place"
        begun = time.monotonic()
        assert write_placement(cluster, table, revision)
        wait_for(lambda: on_version(cluster, 2), "the new placement")
        ended = time.monotonic()
        before = expert_tokens(cluster, "decode-0-3", 15)
        for percent in wait_for(lambda: ranks_loads(cluster), "two looks at the ranks' loads"):
            assert len(percent) == 4 and abs(sum(percent) - 400) <= 2, percent  # of the mean
        assert "EXPERTS" in cluster.ctl("top", "--count", "1").stdout
        wait_for(lambda: expert_tokens(cluster, "decode-0-0", 15) > 0, "rank 0 to work on it")
        streams = end_loads(loads, "an expert moved")
        assert expert_tokens(cluster, "decode-0-3", 15) == before, "rank 3 still works on it"
        gaps = [gap for stream in streams for gap in stream.gaps()]
        during = [after - at for stream in streams for at, after in zip(stream.times, stream.times[1:]) if begun <= after and at <= ended]
        print(f"rolled out in {ended - begun:.2f} s; slowest token during it {max(during) * 1e3:.0f} ms, median of all "
              f"{statistics.median(gaps) * 1e3:.0f} ms, slowest of all {max(gaps) * 1e3:.0f} ms", flush=True)
        table["version"] = 3
        table["layers"][0][0] = table["layers"][0][1]  # some experts are nowhere: not followed
        _, revision = read_placement(cluster)
        assert write_placement(cluster, table, revision)
        compare(work[:2], ask_all(cluster, work[:2], 2), "after a table that cannot be")
        assert on_version(cluster, 2)
        cluster.wait_at_rest()


def check_death(cluster, work, victim, what):
    """A rank is killed under load, the others go on in its absence; it comes back. Times in the log, right streams."""
    others = [name for name in ranks_of(cluster) if name != victim]
    before = {name: cluster.log(name).count("steps again") for name in others}
    streams = start_streams(cluster, work)
    tokens_come(cluster)
    killed = time.monotonic()
    cluster.kill(victim)
    wait_for(lambda: all(cluster.log(name).count("steps again") > before[name] for name in others), "the others to step again")
    print(f"{what}: noticed by the test after {time.monotonic() - killed:.2f} s", flush=True)
    for name in others:
        print(f"{name}: {re.findall('steps again.*', cluster.log(name))[-1]}", flush=True)
        assert ep_metric(cluster, name, "ranks") == len(others)
    end_streams(streams, what)
    gaps = [gap for stream in streams for gap in stream.gaps()]
    print(f"{what}: slowest token {max(gaps):.2f} s, median {statistics.median(gaps) * 1e3:.0f} ms", flush=True)


def test_a_rank_of_four_dies_and_comes_back():
    work = [(ids, 60, float(index % 2), 400 + index) for index, ids in enumerate(prompts(12, 5, 60))]
    with Cluster("ep-four", "--decode-ep", 4, "--threads", 1, "--lease", "2s", "--env", "*:SLUICE_FAULTS=decode.step=slow=30") as cluster:
        check_death(cluster, work, "decode-0-2", "rank 2 of four was killed")
        streams = start_streams(cluster, work)
        tokens_come(cluster)
        cluster.start("decode-0-2")
        wait_for(lambda: all(ep_metric(cluster, name, "ranks") == 4 for name in ranks_of(cluster)), "all four to step together")
        end_streams(streams, "rank 2 came back")
        wait_for(lambda: cluster.metric("router-0", 'sluice_usable_nodes{role="decode"}') == 4, "the router to use it")
        compare(work, ask_all(cluster, work, 12), "all four again")
        assert ep_metric(cluster, "decode-0-2", "expert_bytes") > 0 and cluster.metric("decode-0-2", "sluice_expert_tokens_total") > 0
        check_death(cluster, work, "decode-0-0", "rank 0 of four was killed")  # which proposes, as the lowest
        cluster.wait_at_rest()


def test_a_prefill_rank_dies():
    """Prompts of the other ranks are computed on: a step that is run again announces no group of layers twice."""
    work = [(ids, 8, float(index % 2), 600 + index) for index, ids in enumerate(prompts(8, 300, 900))]
    with Cluster("ep-prefill-death", "--prefill-ep", 3, "--threads", 1, "--lease", "2s", "--node-args", "--chunk-tokens 128",
                 "--router-args=--self-prefill=false", "--env", "*:SLUICE_FAULTS=prefill.group=slow=50") as cluster:
        answers = []
        thread = threading.Thread(target=lambda: answers.extend(ask_all(cluster, work, 8)))
        thread.start()
        ranks = [node["name"] for node in cluster.nodes("prefill")]

        def busy():
            return next((name for name in ranks if cluster.log(name).count("prefill.group: slow") > 3), None)
        survivor = wait_for(busy, "a rank to be in the middle of prompts")
        victim = next(name for name in ranks if name != survivor)
        cluster.kill(victim)
        wait_for(lambda: all("steps again" in cluster.log(name) for name in ranks if name != victim), "the others to step again")
        thread.join()
        compare(work, answers, "a prefill rank was killed")
        cluster.wait_at_rest()


def placement(cluster, verb, *arguments):
    done = cluster.ctl("placement", verb, "decode-0", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def full_a_skewed_load_is_spread():
    """The same prompt again and again wants few experts: sluicectl measures that, plans, applies it while streams run; afterwards the ranks are
    loaded more evenly, by what they have really worked on."""
    work = [(prompts(1, 30, 40)[0], 800, 0.0, 7)] * 8  # they outlast what is measured
    with Cluster("ep-skew", "--decode-ep", 4, "--threads", 1, "--router-args=--self-prefill=false", "--env", "*:SLUICE_FAULTS=decode.step=slow=30") as cluster:
        streams = start_streams(cluster, work)
        tokens_come(cluster)
        before = placement(cluster, "show", "--window", "2s")
        assert before["version"] == 1 and len(before["ranks"]) == 4 and all(rank["rows"] > 0 for rank in before["ranks"]), before
        for dry in (placement(cluster, "plan", "--window", "2s"), placement(cluster, "apply", "--dry-run", "--window", "2s")):
            assert not dry["applied"] and dry["worth_it"] and dry["imbalance_after"] < dry["imbalance_before"], dry
        assert placement(cluster, "show")["version"] == 1
        begun = time.monotonic()
        done = placement(cluster, "apply")
        ended = time.monotonic()
        assert done["applied"] and done["moves"] > 0 and done["bytes"] > 0 and done["version"] == 2, done
        after = placement(cluster, "show", "--window", "2s")
        assert after["version"] == 2 and all(rank["placement"] == 2 for rank in after["ranks"]), after
        assert not placement(cluster, "apply")["applied"], "it was worth it twice"
        end_streams(streams, "during a rebalance")
        gaps = [gap for stream in streams for gap in stream.gaps()]
        during = [late - at for stream in streams for at, late in zip(stream.times, stream.times[1:]) if begun <= late and at <= ended]
        print(f"imbalance {before['imbalance_measured']:.3f} -> {after['imbalance_measured']:.3f} measured (planned {done['imbalance_before']:.3f} -> "
              f"{done['imbalance_after']:.3f}), {done['moves']} experts moved, {done['bytes'] / 1e6:.1f} MB, in use after {done['seconds']:.2f} s; "
              f"slowest token during it {max(during) * 1e3:.0f} ms, median {statistics.median(gaps) * 1e3:.0f} ms", flush=True)
        assert after["imbalance_measured"] < before["imbalance_measured"], (before, after)
        audit = cluster.etcdctl("get", "--prefix", f"/sluice/v1/{cluster.state['cluster']}/audit/")
        assert '"placement"' in audit and "version 2" in audit, audit
        cluster.wait_at_rest()
        for words, text in ((("nowhere",), "no placement of an instance nowhere"), (("Wrong",), "lower-case")):
            wrong = cluster.ctl("placement", "show", *words)
            assert wrong.returncode == 1 and text in wrong.stderr, wrong
        by_router = cluster.ctl_router("placement", "show", "decode-0")
        assert by_router.returncode == 1 and "--etcd" in by_router.stderr, by_router
        text = cluster.ctl("placement", "show", "decode-0")
        assert text.returncode == 0 and "RANK" in text.stdout and "decode-0-3" in text.stdout, text


def shuffled(table, source):
    """Another table of that form: every expert somewhere, the rest of the slots by dice."""
    experts, slots, ranks = table["experts"], table["slots"], len(table["layers"][0])
    layers = []
    for _ in table["layers"]:
        order = list(range(experts)) + [source.randrange(experts) for _ in range(ranks * slots - experts)]
        source.shuffle(order)
        layers.append([order[rank * slots:(rank + 1) * slots] for rank in range(ranks)])
    return dict(table, version=table["version"] + 1, layers=layers)


def full_placements():
    """54 prompts in mixed batches while both instances get one placement by dice after the other: every answer is that of one process."""
    source, over, count = random.Random(5), threading.Event(), [0]
    work = work_list(52, 2, 0)

    def shuffle(cluster):
        while not over.is_set():
            for instance, name in (("decode-0", "decode-0-0"), ("prefill-0", "prefill-0-0")):
                table, revision = read_placement(cluster, instance)
                table = shuffled(table, source)
                assert write_placement(cluster, table, revision, instance)
                wait_for(lambda: over.is_set() or ep_metric(cluster, name, "placement_version") == table["version"], "the next placement")
                count[0] += 1

    with Cluster("ep-placements", "--prefill-ep", 3, "--decode-ep", 4, "--threads", 1, "--node-args", "--chunk-tokens 256",
                 "--router-args=--self-prefill=false --progress-timeout 5m") as cluster:
        cluster.patience = 600.0  # a placement every few seconds takes its share of the cores
        thread = threading.Thread(target=shuffle, args=(cluster,))
        thread.start()
        answers = ask_all(cluster, work, 16)
        over.set()
        thread.join()
        compare(work, answers, "under changing placements")
        check_shares(cluster, {"prefill": 3, "decode": 4})
        cluster.wait_at_rest()
    print(f"{len(work)} prompts equal under {count[0]} placements", flush=True)
    assert count[0] > 3, count


def full_sizes():
    """56 prompts in mixed batches, EP 1 to 4 on either side."""
    work = work_list(48, 8, 0)
    for prefill, decode in ((1, 2), (2, 1), (3, 4), (4, 3), (1, 4), (2, 2)):
        run(f"ep-full-{prefill}-{decode}", prefill, decode, work)
        print(f"prefill EP {prefill}, decode EP {decode}: {len(work)} prompts equal", flush=True)
