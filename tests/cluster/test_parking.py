"""The stream between router and decode node breaks and comes back: the same bytes, nothing computed twice; one that does not come back holds nothing."""

import os
import subprocess

from lib import Cluster, Skip, wait_for
from test_faults import MIGRATIONS, STORY, in_background, reference_chat

TOKENS = 120
SLOW = ("--env", "*:SLUICE_FAULTS=decode.step=slow=40")  # four times the stream breaks and comes back before the story ends


def story(cluster, on_chunk=None):
    return cluster.chat(STORY, on_chunk, temperature=1, top_p=1, seed=5, stream=True, max_tokens=TOKENS, ignore_eos=True)


def begun(cluster):
    return wait_for(lambda: cluster.metric("decode-0", "sluice_generation_tokens_total") >= 10, "some tokens")


def check(cluster, answer, attaches):
    expected = reference_chat(STORY, TOKENS, "--temperature", "1", "--top-p", "1", "--seed", "5", "--ignore-eos")
    assert answer.done and answer.token_ids == expected["ids"], answer.error
    assert cluster.metric("router-0", MIGRATIONS) == 0
    assert cluster.metric("router-0", "sluice_request_attaches_total") == attaches
    assert cluster.metrics("decode-0")['sluice_decode_parked_total{outcome="attached"}'] == attaches
    assert cluster.metric("prefill-0", "sluice_prompt_tokens_total") > 0
    cluster.wait_at_rest()


def test_stopped_decode_node_goes_on():
    """SIGSTOP until the router's keep-alive has given the stream up, then SIGCONT."""
    with Cluster("park-stop", *SLOW, "--router-args", "--attach-timeout 20s") as cluster:
        result = in_background(lambda: story(cluster))
        begun(cluster)
        cluster.kill("decode-0", "STOP")
        wait_for(lambda: "node decode-0: stream broke" in cluster.log("router-0"), "the broken stream")
        cluster.kill("decode-0", "CONT")
        check(cluster, result(), 1)


def reset_connections(cluster):
    """Ends the router's TCP connections to the decode node, as a box between them would."""
    control = cluster.node("decode-0")["control"].rpartition(":")[2]
    subprocess.run(["ss", "-K", "-t", "dport", "=", f":{control}"], capture_output=True)


def test_connection_reset_again_and_again():
    with Cluster("park-reset", *SLOW) as cluster:
        if os.geteuid() != 0:
            raise Skip("needs root to end connections of others")
        broken = []

        def on_chunk(answer):
            if len(answer.token_ids) > 20 * (len(broken) + 1) and len(broken) < 4:
                broken.append(len(answer.token_ids))
                reset_connections(cluster)
                wait_for(lambda: cluster.metric("router-0", "sluice_request_attaches_total") == len(broken), "the stream again")
        try:
            answer = story(cluster, on_chunk)
        except AssertionError:
            if "stream broke" in cluster.log("router-0"):
                raise
            raise Skip("this kernel does not end connections (ss -K)")
        check(cluster, answer, 4)


def test_router_killed():
    """Its requests wait for it, then hold nothing; the next life of the router is served at once."""
    with Cluster("park-router", *SLOW, "--node-args", "--park-timeout 1s") as cluster:
        result = in_background(lambda: failing(cluster))
        begun(cluster)
        cluster.kill("router-0")
        assert result() is None
        wait_for(lambda: cluster.metrics("decode-0")['sluice_decode_parked_total{outcome="freed"}'] == 1, "the parked sequence's end")
        cluster.start("router-0")
        assert cluster.chat("Who are you?", temperature=0).status == 200
        cluster.wait_at_rest()


def failing(cluster):
    try:
        return story(cluster).done or None
    except OSError:
        return None
