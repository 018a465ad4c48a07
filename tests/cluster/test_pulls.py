"""A prefill node fetches the pages that the decode node or another one has, rather than to compute them. What goes wrong with that costs computing,
never a byte."""

import threading

from lib import REFERENCE, Cluster, needle_prompt, wait_for

PULL = "--router-args=--pull-min 128"


def reference(prompt, tokens):
    return REFERENCE.run(["--chat", "--max-tokens", str(tokens), "--temperature", "0", "--ignore-eos", prompt])["ids"]


def pulls(cluster, outcome):
    return cluster.metrics("router-0").get(f'sluice_prefix_pulls_total{{outcome="{outcome}"}}', 0)


def ask(cluster, prompt, tokens=20):
    answer = cluster.chat(prompt, temperature=0, stream=True, max_tokens=tokens, ignore_eos=True)
    assert answer.done and answer.token_ids == reference(prompt, tokens), answer.error
    return answer


def test_lost_prefill_goes_on_from_what_the_decode_node_has():
    with Cluster("pulls-lost", "--prefill", 2, "--env", "prefill-0:SLUICE_FAULTS=prefill.group=hold@4", "--node-args", "--chunk-tokens 128",
                 PULL) as cluster:
        prompt, outcome = needle_prompt(900), {}
        thread = threading.Thread(target=lambda: outcome.update(answer=ask(cluster, prompt)))
        thread.start()
        wait_for(lambda: "fault prefill.group: hold" in cluster.log("prefill-0"), "prefill-0 to be held")
        wait_for(lambda: cluster.metric("decode-0", "sluice_kv_received_bytes_total") > 600e3, "pages on the decode node")
        cluster.kill("prefill-0")
        thread.join()
        assert outcome["answer"].done
        fetched = cluster.metric("router-0", "sluice_prefix_pulled_tokens_total")
        computed = cluster.metric("prefill-1", "sluice_prompt_tokens_total")
        received = cluster.metric("prefill-1", "sluice_kv_received_bytes_total")
        print(f"{fetched:.0f} tokens fetched ({received:.0f} bytes), {computed:.0f} computed")
        assert pulls(cluster, "fetched") == 1 and fetched >= 128 and received > 0 and computed > 0
        cluster.wait_at_rest()


def restart_prefill(cluster):
    """Its cache is empty then; the decode node's is not."""
    cluster.kill("prefill-0")
    wait_for(lambda: cluster.metrics("router-0").get('sluice_usable_nodes{role="prefill"}') == 0, "the router to notice")
    cluster.start("prefill-0")
    wait_for(lambda: cluster.metrics("router-0").get('sluice_usable_nodes{role="prefill"}') == 1, "the prefill node again")
    wait_for(lambda: cluster.log("router-0").count("node prefill-0 is connected") == 2, "a stream to it")


def test_prefix_is_fetched_from_the_decode_node():
    with Cluster("pulls-prefix", PULL) as cluster:
        prompt = needle_prompt(600)
        ask(cluster, prompt)
        restart_prefill(cluster)
        ask(cluster, prompt)
        computed, fetched = cluster.metric("prefill-0", "sluice_prompt_tokens_total"), cluster.metric("router-0", "sluice_prefix_pulled_tokens_total")
        print(f"{fetched:.0f} tokens fetched, {computed:.0f} computed; {pulls(cluster, 'known'):.0f} known")
        assert fetched >= 512 and computed < 200, (fetched, computed)
        ask(cluster, prompt)
        assert pulls(cluster, "known") > 0  # now the prefill node has them
        cluster.wait_at_rest()


def test_pulling_can_be_turned_off():
    with Cluster("pulls-off", "--router-args=--pull-min 0") as cluster:
        prompt = needle_prompt(600)
        ask(cluster, prompt)
        restart_prefill(cluster)
        ask(cluster, prompt)
        assert cluster.metric("router-0", "sluice_prefix_pulls_total") == 0
        assert cluster.metric("prefill-0", "sluice_prompt_tokens_total") > 600
        cluster.wait_at_rest()


# ---- from nodes that the router has seen to have it ----


def usable(cluster, role):
    return cluster.metrics("router-0").get(f'sluice_usable_nodes{{role="{role}"}}')


def cordon(cluster, name, role):
    left = usable(cluster, role) - 1
    assert cluster.ctl("cordon", name, "--reason", "busy").returncode == 0
    wait_for(lambda: usable(cluster, role) == left, f"{name} to be left alone")


def lose(cluster, name, role):
    left = usable(cluster, role) - 1
    cluster.kill(name)
    wait_for(lambda: usable(cluster, role) == left, f"the router to notice that {name} is gone")


def known_to(cluster, prompt, prefill="prefill-0", decode="decode-0"):
    """These two have the prompt's pages, the others do not."""
    answer = ask(cluster, prompt)
    assert answer.headers["x-sluice-prefill-node"] == prefill and answer.headers["x-sluice-decode-node"] == decode
    cluster.wait_at_rest()


def fetched_by(cluster, name, source, at_least):
    """What prefill node `name` did instead of computing."""
    computed, received = cluster.metric(name, "sluice_prompt_tokens_total"), cluster.metric(name, "sluice_kv_received_bytes_total")
    fetched = cluster.metric("router-0", "sluice_prefix_pulled_tokens_total")
    print(f"{fetched:.0f} tokens fetched from {source} ({received:.0f} bytes), {computed:.0f} computed")
    assert pulls(cluster, "fetched") == 1 and fetched >= at_least and computed < 200 and received > 0


def test_prefix_is_fetched_from_another_prefill_node():
    with Cluster("pulls-prefill", "--prefill", 2, "--decode", 2, PULL) as cluster:
        prompt = needle_prompt(900)
        known_to(cluster, prompt)
        lose(cluster, "decode-0", "decode")
        cordon(cluster, "prefill-0", "prefill")
        answer = ask(cluster, prompt)
        assert answer.headers["x-sluice-prefill-node"] == "prefill-1"
        fetched_by(cluster, "prefill-1", "prefill-0", 900)
        ask(cluster, prompt)  # it has them now
        assert pulls(cluster, "fetched") == 1 and cluster.metric("prefill-1", "sluice_prompt_tokens_total") < 400
        cluster.wait_at_rest()


def test_prefix_is_fetched_from_another_decode_node():
    with Cluster("pulls-decode", "--prefill", 2, "--decode", 2, PULL) as cluster:
        prompt = needle_prompt(900)
        known_to(cluster, prompt)
        lose(cluster, "prefill-0", "prefill")
        cordon(cluster, "decode-0", "decode")
        answer = ask(cluster, prompt)
        assert answer.headers["x-sluice-decode-node"] == "decode-1"
        fetched_by(cluster, "prefill-1", "decode-0", 900)
        cluster.wait_at_rest()


def test_pages_that_a_node_has_lost_are_computed():
    """Another prompt has taken their place, which the router cannot know: the node says so."""
    with Cluster("pulls-stale", "--prefill", 2, "--node-args", "--chunk-tokens 128 --kv-memory 12MiB", PULL) as cluster:
        prompt = needle_prompt(900)
        known_to(cluster, prompt)
        known_to(cluster, needle_prompt(1700, seed=2))
        cordon(cluster, "prefill-0", "prefill")
        ask(cluster, prompt)
        computed = cluster.metric("prefill-1", "sluice_prompt_tokens_total")
        assert pulls(cluster, "stale") == 1 and pulls(cluster, "fetched") == 0 and computed > 900, computed
        assert "not known here any more" in cluster.log("prefill-0")
        cluster.wait_at_rest()


def test_source_killed_while_it_offers():
    with Cluster("pulls-killed", "--prefill", 2, PULL) as cluster:
        prompt, outcome = needle_prompt(900), {}
        known_to(cluster, prompt)
        lose(cluster, "decode-0", "decode")
        cluster.start("decode-0")
        wait_for(lambda: usable(cluster, "decode") == 1, "the decode node again")
        cordon(cluster, "prefill-0", "prefill")
        cluster.kill("prefill-0", "STOP")
        thread = threading.Thread(target=lambda: outcome.update(answer=ask(cluster, prompt)))
        thread.start()
        wait_for(lambda: cluster.metrics("prefill-1").get('sluice_kv_open{kind="recvs"}') == 1, "a fetch by prefill-1")
        cluster.kill("prefill-0")
        thread.join()
        assert outcome["answer"].done and pulls(cluster, "failed") == 1 and pulls(cluster, "fetched") == 0
        assert cluster.metric("prefill-1", "sluice_prompt_tokens_total") > 900
        cluster.wait_at_rest()
