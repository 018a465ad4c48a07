"""weights pause and resume: nodes rest between two steps, nothing is lost and nothing is taken for stuck, whatever happens meanwhile."""

import json
import threading

from lib import PATIENCE, REFERENCE, Cluster, needle_prompt, tokenize, wait_for
from test_ctl import SLOW, STORY, run_story
from test_trace import told

QUESTION = "Who are you?"
# Shorter than the pauses here: whoever took a pause for a node that is stuck, or for a lack of nodes, would give up.
PATIENT_MS = int(4000 * PATIENCE / 60)
IMPATIENT = (f"--router-args=--token-timeout {PATIENT_MS}ms --progress-timeout {PATIENT_MS}ms --queue-timeout {PATIENT_MS}ms "
             f"--place-timeout {PATIENT_MS // 2}ms")
LONG_MS = PATIENT_MS * 2 + PATIENT_MS // 4  # more than a search for a place and any silence may last
PROMPT_MS = PATIENT_MS * 2  # for a whole prompt, where that matters


def states(cluster):
    return {m["name"]: m["state"] for m in cluster.ctl_json("members")["members"]}


def story(cluster, tokens):
    """What the story is when nothing disturbs it."""
    return cluster.chat(STORY, temperature=0, stream=True, max_tokens=tokens, ignore_eos=True).token_ids


def ask_later(cluster, prompt=QUESTION, **fields):
    """(thread, outcome) of a request that is under way, maybe waiting."""
    outcome = {}
    thread = threading.Thread(target=lambda: outcome.update(answer=cluster.chat(prompt, temperature=0, max_tokens=8, **fields)))
    thread.start()
    return thread, outcome


def waiting_for(cluster, ms, state="queued"):
    """A request waits, and has for so long."""
    return wait_for(lambda: [r for r in cluster.ctl_json("requests")["requests"] if r["state"] == state and r["age_ms"] > ms],
                    f"a request that is {state} for {ms} ms")


def migrations(cluster):
    return sum(value for key, value in cluster.metrics("router-0").items() if key.startswith("sluice_request_migrations_total"))


def audit(cluster):
    return [(e["kind"], e["subject"]) for e in cluster.ctl_json("events", "--limit", "1000")["events"] if e["kind"].startswith("weights")]


def test_all_rest_and_go_on():
    """A stream and a new request live through a pause of the whole cluster that is longer than all they would wait for otherwise."""
    with Cluster("pause-all", "--env", SLOW, IMPATIENT) as cluster:
        expected = story(cluster, 200)
        answer = cluster.chat(QUESTION, temperature=0, max_tokens=8).content
        thread, outcome = run_story(cluster, 200)
        dry = cluster.ctl_json("weights", "pause", "--dry-run")
        assert {(n["node"], n["requests"]) for n in dry["nodes"]} == {("prefill-0", 0), ("decode-0", 1)} and dry["dry_run"], dry
        assert states(cluster)["decode-0"] == "ready"
        done = cluster.ctl_json("weights", "pause")
        assert done["paused"] and all(n["changed"] for n in done["nodes"]) and len(done["nodes"]) == 2, done
        drawn = cluster.metric("decode-0", "sluice_generation_tokens_total")
        later, asked = ask_later(cluster)
        waiting_for(cluster, LONG_MS)
        assert {states(cluster)[n] for n in ("prefill-0", "decode-0")} == {"paused"}, states(cluster)
        assert cluster.ctl_router("members").stdout.count(" paused ") == 2
        assert cluster.request("GET", "/health")[0] == 200 and cluster.request("GET", "/ready")[0] == 200
        assert cluster.metric("decode-0", "sluice_generation_tokens_total") == drawn and thread.is_alive() and later.is_alive()
        assert not cluster.check_ledger()["violations"]
        again = cluster.ctl_json("weights", "pause", "decode-0")
        assert again["paused"] and not again["nodes"][0]["changed"], again
        back = cluster.ctl_json("weights", "resume")
        assert back["resumed"] and all(n["changed"] and n["pause_us"] > PATIENT_MS * 1000 for n in back["nodes"]), back
        thread.join()
        later.join()
        assert outcome["answer"].token_ids == expected and asked["answer"].content == answer
        assert migrations(cluster) == 0
        assert not any(n["changed"] for n in cluster.ctl_json("weights", "resume")["nodes"])
        wait_for(lambda: sorted(audit(cluster)) == sorted([("weights pause", "prefill-0"), ("weights pause", "decode-0"),
                 ("weights pause", "decode-0"), ("weights resume", "prefill-0"), ("weights resume", "decode-0")]), "the audit")
        cluster.wait_at_rest()


def test_what_runs_may_end_first():
    """Mode wait: the story ends, what came later waits; too late on one node: it is paused on none."""
    with Cluster("pause-wait", "--env", SLOW, IMPATIENT) as cluster:
        expected = story(cluster, 220)
        thread, outcome = run_story(cluster, 220)  # ends after four commands
        late = cluster.ctl("weights", "pause", "--mode", "wait", "--timeout", "300ms")
        assert late.returncode == 1 and "sluicectl: decode-0" in late.stderr and "the others go on" in late.stderr, late
        assert "what runs did not end in time" in late.stderr, late
        assert {states(cluster)[n] for n in ("prefill-0", "decode-0")} == {"ready"}
        paused = {}
        pausing = threading.Thread(target=lambda: paused.update(result=cluster.ctl_json("weights", "pause", "--mode", "wait")))
        pausing.start()
        wait_for(lambda: states(cluster)["decode-0"] == "pausing", "the beginning of the pause")
        later, asked = ask_later(cluster)
        thread.join()
        pausing.join()
        assert outcome["answer"].token_ids == expected and paused["result"]["paused"], paused
        assert all(n["requests"] == 0 for n in paused["result"]["nodes"]), paused
        waiting_for(cluster, LONG_MS)
        assert cluster.ctl("weights", "resume").returncode == 0
        later.join()
        assert asked["answer"].status == 200
        cluster.wait_at_rest()


def test_a_pause_is_bounded():
    """Nobody ends it: it ends by itself, which is told and recorded; ending it once more is no error."""
    with Cluster("pause-bound", "--env", SLOW) as cluster:
        expected = story(cluster, 120)
        thread, outcome = run_story(cluster, 120)
        done = cluster.ctl_json("weights", "pause", "decode-0", "--for", "1s")
        assert done["nodes"][0]["hold_ms"] == 1000 and done["nodes"][0]["requests"] == 1, done
        thread.join()
        assert outcome["answer"].token_ids == expected
        over = cluster.ctl("weights", "resume", "decode-0")
        assert over.returncode == 0 and "was not paused (any more)" in over.stdout, over
        events = wait_for(lambda: [e for e in cluster.ctl_json("events")["events"] if e["kind"] == "weights resume"], "the record")
        assert events[0]["actor"] == "node decode-0" and "over in time" in events[0]["text"], events
        assert migrations(cluster) == 0
        cluster.wait_at_rest()


def test_a_pause_is_drawn_out():
    """Who waits counts from the end that is said last: paused for seconds, then for a minute."""
    with Cluster("pause-longer", "--env", SLOW, IMPATIENT) as cluster:
        assert cluster.ctl("weights", "pause", "--for", "4s").returncode == 0  # within these the next three lines
        later, asked = ask_later(cluster)
        waiting_for(cluster, 0)
        assert cluster.ctl("weights", "pause", "--for", "60s").returncode == 0
        waiting_for(cluster, 4000 + LONG_MS)
        assert cluster.ctl("weights", "resume").returncode == 0
        later.join()
        assert asked["answer"].status == 200, asked["answer"].text
        cluster.wait_at_rest()


def test_chosen_nodes():
    """Others do the work; what is paused changes no role; a drain ends the pause, and what was kept moves."""
    with Cluster("pause-chosen", "--decode", 2, "--env", SLOW) as cluster:
        expected = story(cluster, 200)
        thread, outcome = run_story(cluster, 200)
        node = outcome["node"]
        other = "decode-1" if node == "decode-0" else "decode-0"
        assert cluster.ctl("weights", "pause", node).returncode == 0
        for _ in range(3):
            assert cluster.chat(QUESTION, temperature=0, max_tokens=4).headers["x-sluice-decode-node"] == other
        role = cluster.ctl("role", node, "hybrid")
        assert role.returncode == 1 and "weights resume comes first" in role.stderr, role.stderr
        assert "does not answer" not in role.stderr, role.stderr
        assert states(cluster)[node] == "paused" and thread.is_alive()
        drained = cluster.ctl("drain", node)
        assert drained.returncode == 0 and drained.stdout == f"{node} has left\n", drained
        thread.join()
        assert outcome["answer"].token_ids == expected
        gone = cluster.ctl("weights", "pause", node)
        assert gone.returncode == 1 and f"no member {node}" in gone.stderr, gone.stderr
        cluster.check_ledger()


def test_killed_while_paused():
    """What a paused node had goes on elsewhere once something works again, and not before; the pause was the process's, not the name's."""
    with Cluster("pause-kill", "--decode", 2, "--env", SLOW, IMPATIENT) as cluster:
        expected = story(cluster, 150)
        thread, outcome = run_story(cluster, 150)
        node = outcome["node"]
        assert cluster.ctl("weights", "pause").returncode == 0
        cluster.kill(node)
        waiting_for(cluster, LONG_MS)
        cluster.start(node)
        wait_for(lambda: states(cluster).get(node) == "ready", "the node's next life")
        assert cluster.ctl("weights", "resume").returncode == 0
        thread.join()
        assert outcome["answer"].token_ids == expected and not outcome["answer"].error
        cluster.wait_at_rest()


def test_router_restarts_while_paused():
    """A router that was not there learns of the pause from the nodes: it lets requests wait."""
    with Cluster("pause-router", IMPATIENT) as cluster:
        assert cluster.ctl("weights", "pause").returncode == 0
        cluster.kill("router-0")
        wait_for(lambda: not cluster.alive("router-0"), "the router's end")
        cluster.start("router-0")
        wait_for(lambda: cluster.ctl_router("members").stdout.count(" paused ") == 2, "the router to know")
        later, asked = ask_later(cluster)
        waiting_for(cluster, LONG_MS)
        assert cluster.ctl("weights", "resume").returncode == 0
        later.join()
        assert asked["answer"].status == 200
        cluster.wait_at_rest()


def test_prompt_half_way():
    """A prefill node rests in the middle of a prompt, its decode node too or not: the prompt waits for longer than a prompt may take, and goes on where it was."""
    with Cluster("pause-prefill", "--env", "prefill-0:SLUICE_FAULTS=prefill.group=slow=60", "--env", "prefill-0:SLUICE_CHUNK_TOKENS=64",
                 f"{IMPATIENT} --prefill-timeout {PROMPT_MS}ms") as cluster:
        for i, nodes in enumerate((("prefill-0",), ())):
            prompt = [i] + tokenize(needle_prompt(400))
            outcome = {}
            thread = threading.Thread(target=lambda prompt=prompt, outcome=outcome: outcome.update(
                answer=cluster.completion(prompt, max_tokens=12, temperature=0)))
            thread.start()
            waiting_for(cluster, 0, "prefilling")
            assert cluster.ctl("weights", "pause", *nodes).returncode == 0
            waiting_for(cluster, PROMPT_MS + PATIENT_MS, "prefilling")
            assert cluster.ctl("weights", "resume", *nodes).returncode == 0
            thread.join()
            assert outcome["answer"].token_ids == REFERENCE.ids(prompt, 12)
            assert migrations(cluster) == 0
        cluster.wait_at_rest()


def test_prompt_too_late():
    """A prompt that takes longer than it may, without a pause, is given up; the trace says why."""
    with Cluster("pause-late", "--env", "prefill-0:SLUICE_FAULTS=prefill.group=slow=200", "--env", "prefill-0:SLUICE_CHUNK_TOKENS=64",
                 "--router-args=--prefill-timeout 100ms") as cluster:
        late = cluster.completion([0] + tokenize(needle_prompt(400)), max_tokens=12, temperature=0)
        assert late.status == 503 and "given up after 3 attempts" in late.error["message"], late.error  # which side was heard last is chance
        seen = wait_for(lambda: (lambda seen: seen if any("deadline" in text for _, _, text in seen) else None)(
            told(cluster, "trace", late.headers["x-request-id"])), "the reason in the trace")
        assert not any(": ok" in text for _, what, text in seen if what == "stalled"), seen
        cluster.wait_at_rest()


def test_two_operators():
    """Both ask for one node's pause: who fails elsewhere takes back his own asking only, whoever was first; who does not wait makes those who do fail."""
    with Cluster("pause-two", "--env", SLOW) as cluster:
        def ask(*arguments):
            outcome = {}
            asked = len([e for e in audit(cluster) if e == ("weights pause", "decode-0")]) + 1
            thread = threading.Thread(target=lambda: outcome.update(result=cluster.ctl("weights", "pause", *arguments)))
            thread.start()
            wait_for(lambda: len([e for e in audit(cluster) if e == ("weights pause", "decode-0")]) == asked, "it to be asked")
            return thread, outcome

        whole = story(cluster, 300)
        for first_fails in (False, True):
            expected = whole[:150]
            thread, outcome = run_story(cluster, 150)
            cluster.kill("prefill-0", "STOP")
            sound = ("decode-0", "--mode", "wait")
            fails = ("decode-0", "prefill-0", "--mode", "wait", "--timeout", f"{int(PATIENCE / 2)}s")
            askers = [ask(*arguments) for arguments in ((fails, sound) if first_fails else (sound, fails))]
            failed, had = (askers if first_fails else askers[::-1])
            thread.join()
            assert outcome["answer"].token_ids == expected
            had[0].join()
            result = had[1]["result"]
            assert result.returncode == 0, result
            assert ("was paused already" if first_fails else "is paused") in result.stdout, result
            failed[0].join()
            result = failed[1]["result"]
            assert result.returncode == 1 and "a pause that others asked for stands" in result.stderr and "go on" not in result.stderr, result
            assert states(cluster)["decode-0"] == "paused"
            cluster.kill("prefill-0", "CONT")
            assert cluster.ctl("weights", "resume").returncode == 0
            wait_for(lambda: {states(cluster).get(n) for n in ("prefill-0", "decode-0")} == {"ready"}, "all to work")  # its lease may be lost

        thread, outcome = run_story(cluster, 300)  # ends after all commands from here on
        waits = ask("decode-0", "--mode", "wait")
        keeps = cluster.ctl("weights", "pause", "decode-0")
        assert keeps.returncode == 0 and "is paused, with 1 requests" in keeps.stdout, keeps
        waits[0].join()
        result = waits[1]["result"]
        assert result.returncode == 1 and "keeps what runs: nothing is waited for" in result.stderr and "the others" not in result.stderr, result
        late = cluster.ctl("weights", "pause", "decode-0", "--mode", "wait")
        assert late.returncode == 1 and "paused with 1 requests, which do not end" in late.stderr, late
        assert states(cluster)["decode-0"] == "paused"
        assert cluster.ctl("weights", "resume").returncode == 0
        # who waits for less is answered by then, and takes no time from those before
        patient = ask("decode-0", "--mode", "wait")
        hurried = cluster.ctl("weights", "pause", "decode-0", "--mode", "wait", "--timeout", "1ms")
        assert hurried.returncode == 1 and "what runs did not end in time" in hurried.stderr and "the others" not in hurried.stderr, hurried
        thread.join()
        patient[0].join()
        assert patient[1]["result"].returncode == 0 and outcome["answer"].token_ids == whole, patient
        assert cluster.ctl("weights", "resume").returncode == 0
        cluster.wait_at_rest()


def test_cancelled_while_paused():
    """What is kept can be cancelled, or its client go: its pages are free although nothing works."""
    with Cluster("pause-cancel", "--env", SLOW) as cluster:
        thread, outcome = run_story(cluster, 400)
        assert cluster.ctl("weights", "pause").returncode == 0
        row = cluster.ctl_json("requests")["requests"][0]
        assert cluster.ctl("cancel", row["id"]).returncode == 0
        thread.join()
        assert "cancelled by" in outcome["answer"].error["message"]
        cluster.wait_at_rest()
        assert cluster.ctl("weights", "resume").returncode == 0
        assert cluster.chat(QUESTION, temperature=0, max_tokens=4).status == 200


def test_a_rank_of_several():
    """One rank of an instance rests: it takes part in the others' steps, so that their requests go on; its own wait."""
    with Cluster("pause-ep", "--decode-ep", 2, "--env", SLOW) as cluster:
        expected = story(cluster, 100)
        thread, outcome = run_story(cluster, 100)
        rank = outcome["node"]
        assert cluster.ctl("weights", "pause", rank).returncode == 0
        answers = [cluster.chat(QUESTION, temperature=0, max_tokens=8) for _ in range(2)]
        assert all(a.status == 200 and a.headers["x-sluice-decode-node"] != rank for a in answers), answers
        assert thread.is_alive()
        assert cluster.ctl("weights", "resume").returncode == 0
        thread.join()
        assert outcome["answer"].token_ids == expected
        cluster.wait_at_rest()


def test_misuse():
    with Cluster("pause-misuse") as cluster:
        for arguments, code, text in ((("pause", "router-0"), 1, "is a router"), (("pause", "decode-9"), 1, "no member decode-9"),
                                      (("pause", "--mode", "abort"), 2, "keep"), (("pause", "--for", "25h"), 2, "--for: must be 1ms to 24h"),
                                      (("pause", "--for", "1194h"), 2, "--for: must be"), (("pause", "--for", "0s"), 2, "--for: must be"),
                                      (("pause", "--for", "0.1ms"), 2, "--for: must be"), (("pause", "--timeout", "0.1ms"), 2, "--timeout: must be 0s, or 1ms to"),
                                      (("pause", "--timeout", "1194h"), 2, "--timeout: must be"),
                                      (("resume", "--for", "1s"), 2, "--for goes with weights pause"), (("pause", "--watch"), 2, "--watch")):
            wrong = cluster.ctl("weights", *arguments)
            assert wrong.returncode == code and text in wrong.stderr, (arguments, wrong)
        assert {states(cluster)[n] for n in ("prefill-0", "decode-0")} == {"ready"}
        assert cluster.ctl("weights", "pause", "decode-0", "decode-0").stdout.count("decode-0") == 1
        sound = cluster.ctl("doctor")  # nothing is broken
        assert sound.returncode == 0 and "sluicectl weights resume decode-0" in sound.stdout and "requests wait" in sound.stdout, sound
        dry = cluster.ctl("weights", "resume", "--dry-run")
        assert dry.returncode == 0 and "would resume decode-0, which is paused: 0 requests" in dry.stdout, dry
        assert cluster.ctl("weights", "resume").returncode == 0
        assert cluster.chat(QUESTION, temperature=0, max_tokens=4).status == 200


class RawStream:
    """A streamed chat, line by line, comments too."""

    def __init__(self, cluster, messages, **fields):
        self.connection = cluster.connection()
        body = {"model": "demo", "messages": [{"role": "user", "content": messages}], "stream": True, "return_token_ids": True, **fields}
        self.connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        self.ids, self.comments, self.done = [], 0, False

    def begin(self):
        """Waits for the head."""
        self.response = self.connection.getresponse()
        return self.response

    def read_until(self, condition):
        while not condition() and not self.done:
            line = self.response.readline()
            assert line, "the stream ended"
            self.comments += line == b": keep-alive\n"
            self.done = line == b"data: [DONE]\n"
            if line.startswith(b"data: {"):
                self.ids += [token for choice in json.loads(line[6:])["choices"] for token in choice.get("token_ids") or []]
        assert condition(), "the stream ended"


def test_silent_streams_are_kept_alive():
    """Paused, a stream is sent comments, and so is one that waits for a place: its head comes without nodes. Both get their answers then."""
    with Cluster("pause-silent", "--env", SLOW, "--router-args", "--keep-alive 100ms") as cluster:
        expected = story(cluster, 150)
        answer = cluster.chat(QUESTION, temperature=0, max_tokens=8, stream=True).token_ids
        running = RawStream(cluster, STORY, temperature=0, max_tokens=150, ignore_eos=True)
        running.begin()
        running.read_until(lambda: len(running.ids) >= 3)
        assert cluster.ctl_json("weights", "pause")["paused"]
        before = running.comments
        waiting = RawStream(cluster, QUESTION, temperature=0, max_tokens=8)
        head = waiting.begin()
        assert head.status == 200 and head.getheader("x-request-id") and not head.getheader("x-sluice-decode-node"), head.getheaders()
        running.read_until(lambda: running.comments >= before + 3)
        waiting.read_until(lambda: waiting.comments >= 3)
        assert not waiting.ids
        cluster.ctl_json("weights", "resume")
        for stream, ids in ((running, expected), (waiting, answer)):
            stream.read_until(lambda: stream.done)
            assert stream.ids == ids, (stream.ids, ids)
        cluster.wait_at_rest()
