"""Other weights on instances of several ranks, in place: all ranks go over between the same two steps, or none does."""

import json
import os
import threading

from lib import MODEL, Cluster, book_text, grpc, protobuf, tokenize, wait_for
from test_reload import METHOD, check_by_version, find_tensor, model_copy, reference

EXPERTS = range(16)
SLOW = "*:SLUICE_FAULTS=decode.step=slow=20"


def changed_experts(name, layer):
    """The demo model with the outputs of all experts of a layer negated: whoever computes one of them by the old weights is seen."""
    directory = model_copy(name)
    for expert in EXPERTS:
        path, offset, size = find_tensor(directory, f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight")
        with open(path, "r+b") as file:
            file.seek(offset)
            values = bytes(value ^ 0x80 for value in file.read(size))
            file.seek(offset)
            file.write(values)
    return directory


def reload_each(cluster, directories, version, deadline_ms=30000):
    """{node: (status, text)} of calls made at once, in place; status None: the node ended before it answered."""
    told = {}

    def one(node, directory):
        try:
            told[node] = grpc(cluster.node(node)["control"], METHOD, protobuf(f1=directory, f2=version, f3=deadline_ms, f4=1), 120)[:2]
        except AssertionError as fault:
            told[node] = (None, str(fault))
    threads = [threading.Thread(target=one, args=item) for item in directories.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


class Streams:
    """Streams under way, whose tokens must be those of the versions that they name."""

    def __init__(self, cluster, count, tokens):
        self.cluster, self.prompts = cluster, [[0] + tokenize(book_text(30 + 40 * i, 7 + i)) for i in range(count)]
        self.answers, self.got, self.tokens = {}, [0] * count, tokens
        self.threads = [threading.Thread(target=self.one, args=(index,)) for index in range(count)]
        for thread in self.threads:
            thread.start()

    def one(self, index):
        def on_chunk(answer):
            self.got[index] = len(answer.token_ids)
        self.answers[index] = self.cluster.completion(self.prompts[index], on_chunk, max_tokens=self.tokens, temperature=0, ignore_eos=True,
                                                      stream=True, sluice={"sampling_mask": True})

    def all_get(self, count):
        """So many tokens more, each stream."""
        before = list(self.got)
        wait_for(lambda: self.answers or all(now >= then + count for now, then in zip(self.got, before)), f"{count} more tokens of each stream")
        assert not self.answers, "a stream has ended early"

    def end(self, models):
        """The set of versions that drew tokens."""
        seen = set()
        for thread in self.threads:
            thread.join()
        for index, answer in self.answers.items():
            assert answer.done and len(answer.token_ids) == self.tokens, (answer.error, len(answer.token_ids))
            parts = [c["choices"][0] for c in answer.chunks if c.get("choices")]
            seen |= set(check_by_version(parts, answer.token_ids, self.prompts[index], models))
        return seen


def versions(cluster, names):
    return {cluster.members()[name]["stamp"]["weights_version"] for name in names}


def test_two_ranks_go_over_together():
    """Under load, then paused, on both sides: each token is what its version says after all tokens before it, whichever rank computed its experts."""
    first, second = changed_experts("reload-ranks-1", 1), changed_experts("reload-ranks-2", 3)
    with Cluster("reload-ranks", "--prefill-ep", 2, "--decode-ep", 2, "--threads", 1, "--env", SLOW) as cluster:
        streams = Streams(cluster, 3, 160)
        streams.all_get(4)
        rolling = cluster.ctl("weights", "reload", "--model", first)
        assert rolling.returncode == 1 and "one rank of several: in place only (--in-place), all ranks at once" in rolling.stderr, rolling.stderr
        assert rolling.stderr.count("in place only") == 4 and "none was changed" in rolling.stderr, rolling.stderr
        doctor = cluster.ctl("doctor").stdout
        assert doctor.count("2 nodes are ready, all of one instance: if it fails there is no other") == 2, doctor
        placed = cluster.ctl_json("weights", "reload", "--model", first, "--in-place")
        assert placed["left"] == 0 and len(placed["nodes"]) == 4, placed
        streams.all_get(4)
        assert cluster.ctl("weights", "pause").returncode == 0
        assert cluster.ctl_json("weights", "reload", "--model", MODEL, "--in-place")["left"] == 0
        assert cluster.ctl_json("weights", "reload", "--model", second, "--in-place")["left"] == 0
        assert cluster.ctl("weights", "resume").returncode == 0
        assert streams.end({"1": MODEL, "2": first, "4": second}) == {"1", "2", "4"}  # nothing was drawn under 3
        records = cluster.members()
        nodes = [name for name in records if not name.startswith("router")]
        assert len({json.dumps(records[name]["stamp"], sort_keys=True) for name in nodes}) == 1, records
        prompt = streams.prompts[2]
        assert cluster.completion(prompt, max_tokens=24, temperature=0, ignore_eos=True).token_ids == reference(second, prompt)
        cluster.wait_at_rest()


def test_one_that_cannot_keeps_all_from_it():
    """A rank without the directory, one that is not asked, ranks with different weights: all stay as they were, and say why; then it goes well."""
    first, second = changed_experts("reload-refuse-1", 1), changed_experts("reload-refuse-2", 1)
    path, offset, _ = find_tensor(second, "model.layers.2.input_layernorm.weight")  # both ranks have it
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\x31\x32")
    ranks = ("decode-0-0", "decode-0-1")
    with Cluster("reload-refuse", "--decode-ep", 2, "--threads", 1, "--env", SLOW) as cluster:
        streams = Streams(cluster, 3, 120)
        streams.all_get(3)
        told = reload_each(cluster, {ranks[1]: first}, 2, 500)
        assert told[ranks[1]][0] == 4 and "rank 0 does not load version 2: all ranks of an instance must be told to at once" in told[ranks[1]][1], told
        told = reload_each(cluster, {ranks[0]: first, ranks[1]: "/nowhere"}, 2)
        assert told[ranks[0]][0] != 0 and "rank 1 does not take version 2 (its log says why)" in told[ranks[0]][1], told
        assert told[ranks[1]][0] != 0 and "/nowhere" in told[ranks[1]][1], told
        told = reload_each(cluster, {ranks[0]: first, ranks[1]: second}, 2)
        for text in (told[ranks[0]], told[ranks[1]]):
            assert text[0] != 0 and "ranks 0 and 1 have loaded different model.layers.2.input_layernorm.weight" in text[1], told
        assert versions(cluster, ranks) == {"1"} and all(cluster.alive(name) for name in ranks)
        assert streams.end({"1": MODEL}) == {"1"}
        streams = Streams(cluster, 3, 120)
        streams.all_get(3)
        assert all(status == 0 for status, _ in reload_each(cluster, {name: first for name in (*ranks, "prefill-0")}, 2).values())
        assert streams.end({"1": MODEL, "2": first}) == {"1", "2"}
        assert versions(cluster, ranks) == {"2"}
        cluster.wait_at_rest()


def test_a_rank_is_lost_amid_the_exchange():
    """The group fails on one rank when the others have gone over: it follows when they meet again. Then a rank dies there before any has: none goes
    over, and the two that are left say so. Streams go on all the while, by the version that they name."""
    first, second = changed_experts("reload-amid-1", 1), changed_experts("reload-amid-2", 3)
    ranks = [f"decode-0-{rank}" for rank in range(3)]
    slow = "SLUICE_FAULTS=decode.step=slow=20"
    with Cluster("reload-amid", "--decode-ep", 3, "--threads", 1, "--lease", "2s", "--node-args", "--ep-timeout 10s", "--env", SLOW,
                 "--env", f"{ranks[1]}:{slow};reload.exchange=fail@1", "--env", f"{ranks[2]}:{slow};reload.exchange=exit@2") as cluster:
        streams = Streams(cluster, 2, 140)
        streams.all_get(3)
        told = reload_each(cluster, {name: first for name in (*ranks, "prefill-0")}, 2)
        assert "whether other ranks have version 2 is heard when the ranks meet again" in cluster.log(ranks[1])
        had = told[ranks[0]][0] == 0  # else its cut came before the others had all they wait for: nobody has it, and all are told so
        assert all((told[name][0] == 0) == had for name in ranks), told
        version = 2 if had else 1
        assert versions(cluster, ranks) == {str(version)}
        streams.all_get(3)
        told = reload_each(cluster, {name: second for name in ranks}, version + 1)
        assert told[ranks[2]][0] is None, told
        assert all(f"a rank died amid the change, and none has version {version + 1}: ask again" in told[name][1] for name in ranks[:2]), told
        wait_for(lambda: not cluster.alive(ranks[2]), "the rank that dies")
        assert streams.end({"1": MODEL, "2": first}) == {"1", str(version)} and versions(cluster, ranks[:2]) == {str(version)}
        cluster.wait_at_rest()


def full_a_rank_dies_before_and_after():
    """While the others wait for one to load it dies: they keep the old ones and go on without it. After a reload the same: what they load for it
    is of the new ones. Started again with other weights it is not taken in, with the right ones it is."""
    first = changed_experts("reload-death", 1)
    ranks = [f"decode-0-{rank}" for rank in range(3)]
    with Cluster("reload-death", "--decode-ep", 3, "--threads", 1, "--lease", "2s", "--node-args", "--ep-timeout 10s", "--env", SLOW) as cluster:
        streams = Streams(cluster, 3, 150)
        streams.all_get(3)
        told = {}
        waiting = threading.Thread(target=lambda: told.update(reload_each(cluster, {name: first for name in ranks[:2]}, 2)))
        waiting.start()
        wait_for(lambda: all("waiting for the other ranks" in cluster.log(name) for name in ranks[:2]), "two ranks to have loaded")
        cluster.kill(ranks[2])
        waiting.join()
        assert all(status != 0 and "ranks or placement changed meanwhile: ask again" in text for status, text in told.values()), told
        assert streams.end({"1": MODEL}) == {"1"} and versions(cluster, ranks[:2]) == {"1"}
        cluster.start(ranks[2])
        usable = 'sluice_usable_nodes{role="decode"}'
        wait_for(lambda: cluster.metric("router-0", usable) == 3, "the rank to be taken in")
        streams = Streams(cluster, 3, 150)
        streams.all_get(3)
        everybody = {name: first for name in (*ranks, "prefill-0")}
        told = reload_each(cluster, everybody, 2)
        assert all(status == 0 for status, _ in told.values()), told
        cluster.kill(ranks[2])
        assert "2" in streams.end({"1": MODEL, "2": first})
        prompt = streams.prompts[2]
        assert cluster.completion(prompt, max_tokens=24, temperature=0, ignore_eos=True).token_ids == reference(first, prompt)
        cluster.start(ranks[2])
        wait_for(lambda: not cluster.alive(ranks[2]), "the rank with the old weights to give up")
        assert "have loaded different" in cluster.log(ranks[2]), cluster.log(ranks[2])[-2000:]
        set_arguments(cluster, ranks[2], {"--model": first, "--weights-version": "2"})
        cluster.start(ranks[2])
        wait_for(lambda: cluster.metric("router-0", usable) == 3, "the rank to be taken in with the new weights")
        streams = Streams(cluster, 3, 30)
        assert streams.end({"2": first}) == {"2"}
        cluster.wait_at_rest()


def set_arguments(cluster, name, values):
    path = os.path.join(cluster.directory, "cluster.json")
    state = json.load(open(path))
    argv = next(node for node in state["nodes"] if node["name"] == name)["argv"]
    for option, value in values.items():
        if option in argv:
            argv[argv.index(option) + 1] = value
        else:
            argv += [option, value]
    json.dump(state, open(path, "w"))
