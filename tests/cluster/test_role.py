"""Another role for a running node: no request fails, the weights stay, the new role works; what cannot be is refused."""

import threading
import time

from lib import Cluster, wait_for
from test_ctl import SLOW, run_story
from test_scale import Load


def states(cluster):
    return {m["name"]: (m["role"], m["state"]) for m in cluster.ctl_json("members")["members"]}


def first_use(cluster, load, node, role, header):
    """Seconds from the command to the first request that the node served in its new role."""
    seen = set()
    start = time.monotonic()
    changed = cluster.ctl("role", node, role)
    assert changed.returncode == 0 and f"is {role} after" in changed.stdout, (changed.stdout, changed.stderr)

    def used():
        answer = cluster.chat("Who are you?", temperature=0, max_tokens=4)
        assert answer.status == 200, answer.body
        seen.add(answer.headers[header])
        return load.wrong or node in seen
    wait_for(used, f"a request on {node} as {role}")
    print(f"{node} {role}: first request {time.monotonic() - start:.2f} s after the command")


def test_roles_change_under_load():
    """decode -> prefill -> hybrid -> decode, while clients ask: all answers are right, and the process is the same."""
    with Cluster("role-load", "--decode", 3) as cluster:
        process = {m["name"]: m["incarnation"] for m in cluster.ctl_json("members")["members"]}
        with Load(cluster, 2) as load:
            cluster.ctl("cordon", "prefill-0")  # so that the new prefill node is the one that is used
            first_use(cluster, load, "decode-2", "prefill", "x-sluice-prefill-node")
            assert states(cluster)["decode-2"] == ("prefill", "ready"), states(cluster)
            cluster.ctl("uncordon", "prefill-0")
            cluster.ctl("cordon", "decode-0")
            cluster.ctl("cordon", "decode-1")
            first_use(cluster, load, "decode-2", "hybrid", "x-sluice-decode-node")
            cluster.ctl("uncordon", "decode-0")
            first_use(cluster, load, "prefill-0", "decode", "x-sluice-decode-node")
            first_use(cluster, load, "prefill-0", "prefill", "x-sluice-prefill-node")
            first_use(cluster, load, "decode-2", "decode", "x-sluice-decode-node")
        assert process == {m["name"]: m["incarnation"] for m in cluster.ctl_json("members")["members"]}
        assert [e["text"] for e in cluster.ctl_json("events", "--limit", "1000")["events"] if e["kind"] == "role"][0] == "decode -> prefill"
        cluster.ctl("uncordon", "decode-1")
        cluster.wait_at_rest()


def test_running_streams_move_first():
    """Streams of a decode node that becomes a prefill node go on elsewhere, with the same tokens."""
    with Cluster("role-streams", "--decode", 2, "--env", SLOW) as cluster:
        expected = cluster.chat("Tell me a story about a bear named Wendy.", temperature=0, max_tokens=150, ignore_eos=True, stream=True).token_ids
        thread, outcome = run_story(cluster, 150)
        changed = cluster.ctl("role", outcome["node"], "prefill")
        assert changed.returncode == 0, changed.stderr
        thread.join()
        assert outcome["answer"].token_ids == expected
        assert states(cluster)[outcome["node"]] == ("prefill", "ready")
        cluster.wait_at_rest()


def test_what_cannot_be():
    """No such role, a router, requests that do not end in time: told, and the node stays what it was and serves on."""
    with Cluster("role-refused", "--env", SLOW) as cluster:
        assert "want prefill, decode or hybrid" in cluster.ctl("role", "decode-0", "boss").stderr
        assert "is a router" in cluster.ctl("role", "router-0", "decode").stderr
        assert cluster.ctl("role", "decode-0").returncode == 2
        assert "is decode after" in cluster.ctl("role", "decode-0", "decode").stdout
        thread, outcome = run_story(cluster, 300)  # ends after four commands
        late = cluster.ctl("role", "decode-0", "prefill", "--timeout", "300ms")
        assert late.returncode == 1 and "had not ended in time: the node stays decode" in late.stderr, late.stderr
        assert "does not answer" not in late.stderr, late.stderr
        second = {}
        changing = threading.Thread(target=lambda: second.update(result=cluster.ctl("role", "decode-0", "hybrid")))
        changing.start()
        wait_for(lambda: states(cluster)["decode-0"][1] == "changing role", "the change")
        twice = cluster.ctl("role", "decode-0", "prefill")
        assert twice.returncode == 1 and "a change to hybrid is under way" in twice.stderr, twice.stderr
        thread.join()
        changing.join()
        assert len(outcome["answer"].token_ids) == 300 and second["result"].returncode == 0, second
        assert states(cluster)["decode-0"] == ("hybrid", "ready")
        assert cluster.chat("Who are you?", temperature=0, max_tokens=4).status == 200
        cluster.wait_at_rest()
