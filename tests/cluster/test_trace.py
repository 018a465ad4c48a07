"""trace and explain: what became of a request, told by all who had it, and why it went where it went; what is not known is said to be so."""

import json
import threading

from lib import Cluster, needle_prompt, wait_for
from test_ctl import SLOW, run_story

QUESTION = "Who are you?"


def told(cluster, command, request):
    """[(process, what, text)] in order of time."""
    found = cluster.ctl_json(command, request)
    times = [e["time_us"] for e in found["events"]]
    assert times == sorted(times) and found["unanswered"] == 0, found
    return [(e["process"], e["what"], e["text"]) for e in found["events"]]


def test_the_way_of_a_request():
    """Arrival, place, chunks, fetch, first token, end: on the router, the prefill node and the decode node; the other router adds nothing."""
    with Cluster("trace-way", "--routers", 2, "--env", "prefill-0:SLUICE_CHUNK_TOKENS=64") as cluster:
        answer = cluster.chat(needle_prompt(300), temperature=0, max_tokens=8)
        request = answer.headers["x-request-id"]
        ends = {("router-0", "done"), ("prefill-0", "fetched"), ("decode-0", "done")}
        events = wait_for(lambda: (lambda seen: seen if ends <= {e[:2] for e in seen} else None)(told(cluster, "trace", request)), "its end")
        by = {}
        for process, what, text in events:
            by.setdefault(process, []).append(what)
        assert set(by) == {"router-0", "prefill-0", "decode-0"}, events
        router = [what for what in by["router-0"] if what in ("arrived", "prepared", "placed", "granted", "prefill asked", "prefilled", "done")]
        assert router == ["arrived", "prepared", "placed", "granted", "prefill asked", "prefilled", "done"] and "first token" in by["router-0"], events
        assert by["prefill-0"][:2] == ["queued", "computing"] and by["prefill-0"].count("chunk") > 2 and "fetched" in by["prefill-0"], events
        assert [w for w in by["decode-0"] if w in ("admitted", "fetching", "running", "first token", "done")] == \
            ["admitted", "fetching", "running", "first token", "done"], events
        why = told(cluster, "explain", request)
        assert [e[1] for e in why] == ["wants", "decode", "prefill"] and "decode-0: is taken" in why[1][2] and "prefill-0: is taken" in why[2][2], why
        table = cluster.ctl("trace", request)
        assert table.returncode == 0 and f"{request}, milliseconds since" in table.stdout and "first token" in table.stdout, table
        assert answer.body["id"] == f"chatcmpl-{request}" and cluster.ctl("trace", answer.body["id"]).stdout == table.stdout
        assert told(cluster, "explain", f"cmpl-{request}") == why
        by_router = cluster.ctl_router("trace", request)
        assert by_router.returncode == 0 and "decode-0" in by_router.stdout, by_router
        assert cluster.ctl("explain", request).stdout.count("is taken") == 2


def test_what_is_not_known():
    """No such request, no such word, a process that does not answer: each is told, and the rest too."""
    with Cluster("trace-unknown", "--decode", 2) as cluster:
        for command in ("trace", "explain"):
            unknown = cluster.ctl(command, "r-0123456789abcdef")
            assert unknown.returncode == 1 and "nobody knows a request r-0123456789abcdef" in unknown.stderr and not unknown.stdout, unknown
            assert cluster.ctl(command).returncode == 2 and cluster.ctl(command, "x" * 100).returncode == 1
        answer = cluster.chat(QUESTION, temperature=0, max_tokens=4)
        request, node = answer.headers["x-request-id"], answer.headers["x-sluice-decode-node"]
        other = "decode-1" if node == "decode-0" else "decode-0"
        cluster.ctl("cordon", other)
        wait_for(lambda: any("cannot be used" in e[2] and e[2].startswith(other) for e in told(
            cluster, "explain", cluster.chat(QUESTION, temperature=0, max_tokens=4).headers["x-request-id"])), "the cordon to be the reason")
        cluster.kill(other, "STOP")
        silent = cluster.ctl("--call-timeout", "1s", "trace", request)
        assert silent.returncode == 1 and f"{other} at" in silent.stderr and "first token" in silent.stdout, silent
        unknown = cluster.ctl("--call-timeout", "1s", "trace", "r-0123456789abcdef")
        assert unknown.returncode == 1 and "nobody who answered knows a request" in unknown.stderr, unknown
        cluster.kill(other, "CONT")


def test_what_is_forgotten():
    """A router remembers so many events; older requests are gone, and it says since when it knows."""
    with Cluster("trace-forgotten") as cluster:
        first = cluster.chat(QUESTION, temperature=0, max_tokens=1).headers["x-request-id"]
        assert told(cluster, "trace", first)

        def ask():
            for _ in range(15):
                assert cluster.chat(QUESTION, temperature=0, max_tokens=1, n=16).status == 200
        while cluster.ctl("trace", first).returncode == 0:
            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        gone = cluster.ctl("trace", first)
        assert "nobody remembers a request" in gone.stderr and "forgotten what was before 20" in gone.stderr, gone
        cluster.wait_at_rest()


def test_a_request_that_moves():
    """The node that it left and the one that took it tell their parts; so does the second choice of the router."""
    with Cluster("trace-moves", "--decode", 2, "--env", SLOW) as cluster:
        thread, outcome = run_story(cluster, 200)
        request = cluster.ctl_json("requests")["requests"][0]["id"]
        node = outcome["node"]
        other = "decode-1" if node == "decode-0" else "decode-0"
        cluster.kill(node)
        thread.join()
        assert len(outcome["answer"].token_ids) == 200
        found = cluster.ctl("--call-timeout", "1s", "trace", request, "--json")
        events = [(e["process"], e["what"], e["text"]) for e in json.loads(found.stdout)["events"]]
        assert any(p == "router-0" and w == "goes on" and other in t for p, w, t in events), events
        assert any(p == other and w == "first token" and "number 0," not in t for p, w, t in events), events
        assert found.returncode in (0, 1)  # the dead node's record may be there still
