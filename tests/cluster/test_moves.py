"""A decode node drains: its requests go on at another one, with their pages. What goes wrong with that costs computing, never a byte."""

import threading

from lib import REFERENCE, Cluster, needle_prompt, wait_for

SLOW = "decode.step=slow=30"
TOKENS = 200


class Story:
    """A streamed answer under way."""

    def __init__(self, cluster, index):
        self.prompt, self.seed, self.answer, self.node = needle_prompt(150 + 40 * index, seed=index), index, None, None
        self.cluster, self.begun = cluster, threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def on_chunk(self, answer):
        if len(answer.token_ids) >= 5 and not self.begun.is_set():
            self.node = answer.headers["x-sluice-decode-node"]
            self.begun.set()

    def run(self):
        self.answer = self.cluster.chat(self.prompt, self.on_chunk, temperature=1, top_p=1, seed=self.seed, stream=True, max_tokens=TOKENS,
                                        ignore_eos=True)
        self.begun.set()

    def check(self):
        self.thread.join()
        expected = REFERENCE.run(["--chat", "--max-tokens", str(TOKENS), "--temperature", "1", "--top-p", "1", "--seed", str(self.seed),
                                  "--ignore-eos", self.prompt])
        assert self.answer.done and self.answer.token_ids == expected["ids"], (self.seed, self.answer.error)


def begin(cluster, count):
    stories = [Story(cluster, index) for index in range(count)]
    for story in stories:
        assert story.begun.wait(60) and story.node, story.answer
    return stories


def migrations(cluster, reason):
    return cluster.metrics("router-0")[f'sluice_request_migrations_total{{reason="{reason}"}}']


def tokens(cluster, how):
    return cluster.metrics("router-0")[f'sluice_request_migrated_tokens_total{{how="{how}"}}']


def drain(cluster, name):
    cluster.kill(name, "TERM")
    wait_for(lambda: migrations(cluster, "drained") > 0, "a request to move")


def test_drained_requests_take_their_pages_along():
    with Cluster("moves", "--decode", 2, "--env", f"*:SLUICE_FAULTS={SLOW}") as cluster:
        stories = begin(cluster, 4)
        there = sum(story.node == "decode-0" for story in stories)
        computed = cluster.metric("prefill-0", "sluice_prompt_tokens_total")
        fetched = cluster.metric("decode-1", "sluice_kv_received_bytes_total")
        drain(cluster, "decode-0")
        wait_for(lambda: not cluster.alive("decode-0"), "the drained node's end")
        for story in stories:
            story.check()
        moved, kept, again = migrations(cluster, "drained"), tokens(cluster, "kept"), tokens(cluster, "computed")
        fetched = cluster.metric("decode-1", "sluice_kv_received_bytes_total") - fetched
        print(f"{moved:.0f} of {there} requests moved: {kept:.0f} tokens' pages and {fetched:.0f} bytes fetched, {again:.0f} tokens computed")
        assert 0 < moved == cluster.metric("router-0", "sluice_request_migrations_total") <= there
        assert kept >= moved * 128 and again <= moved * 64 and fetched > 0
        assert cluster.metric("prefill-0", "sluice_prompt_tokens_total") == computed
        assert "requests unfinished" not in cluster.log("decode-0")
        cluster.wait_at_rest()


def one_moves(name, fault, *arguments):
    """The node that drains meets the fault when it hands the pages over: (the router's metrics, the router's and that node's logs)."""
    with Cluster(name, "--decode", 2, "--env", f"decode-0:SLUICE_FAULTS={SLOW}{fault}", "--env", f"decode-1:SLUICE_FAULTS={SLOW}{fault}",
                 *arguments) as cluster:
        story, = begin(cluster, 1)
        drain(cluster, story.node)
        story.check()
        assert migrations(cluster, "drained") == 1
        wait_for(lambda: not cluster.alive(story.node), "the drained node's end")
        cluster.wait_at_rest()
        return cluster.metrics("router-0"), cluster.log("router-0"), cluster.log(story.node)


def test_source_dies_while_it_hands_over():
    # The router may hear first of it from the source's call that broke or, as a failed fetch, from the node that fetches.
    metrics, log, _ = one_moves("moves-killed", ";prefill.group=exit@1")
    assert "prefill on decode-" in log or "(transfer_failed)" in log, log
    assert sum(value for key, value in metrics.items() if key.startswith("sluice_request_migrations_total")) == 2


def test_source_stalls_while_it_hands_over():
    metrics, _, _ = one_moves("moves-stalls", ";prefill.group=slow=5000", "--router-args", "--progress-timeout 2s --attempts 8")
    assert metrics['sluice_request_migrations_total{reason="prefill_stalled"}'] >= 1, metrics


def test_source_knows_nothing_any_more():
    # The router may hear first of it from the source or, as a fetch that was cancelled, from the node that fetches.
    metrics, _, log = one_moves("moves-gone", "", "--node-args=--prefix-cache=false --chunk-tokens 64")
    assert "are not known here any more" in log, log
    assert metrics['sluice_request_migrated_tokens_total{how="kept"}'] == 0, metrics


def test_moving_can_be_turned_off():
    with Cluster("moves-off", "--decode", 2, "--env", f"*:SLUICE_FAULTS={SLOW}", "--router-args=--move-drained=false") as cluster:
        story, = begin(cluster, 1)
        cluster.kill(story.node, "TERM")
        story.check()
        assert cluster.metric("router-0", "sluice_request_migrations_total") == 0
        wait_for(lambda: not cluster.alive(story.node), "the drained node's end")
