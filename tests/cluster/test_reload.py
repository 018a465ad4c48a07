"""ReloadWeights: other weights in place. What fails leaves the old ones serving; nothing that runs is broken."""

import json
import os
import shutil
import struct
import subprocess
import threading

from lib import BIN, MODEL, REFERENCE, ROOT, RUN_ARGS, Cluster, book_text, grpc, protobuf, tokenize, wait_for

METHOD = "sluice.v1.Node/ReloadWeights"
NODES = ("prefill-0", "decode-0")


def model_copy(name):
    directory = os.path.join(ROOT, "build", "test-models", name)
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(MODEL, directory)
    return directory


def find_tensor(directory, name):
    """(file, offset of its bytes, how many)"""
    for entry in sorted(os.listdir(directory)):
        if not entry.endswith(".safetensors"):
            continue
        path = os.path.join(directory, entry)
        with open(path, "rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(size))
        if name in header:
            begin, end = header[name]["data_offsets"]
            return path, 8 + size + begin, end - begin
    raise AssertionError(name)


def changed_model(name):
    """The demo model with a final norm that turns its answers around."""
    directory = model_copy(name)
    path, offset, size = find_tensor(directory, "model.norm.weight")
    with open(path, "r+b") as file:
        file.seek(offset)
        values = bytearray(file.read(size))
        for index in range(1, size, 4):  # the sign of every other bf16
            values[index] ^= 0x80
        file.seek(offset)
        file.write(values)
    return directory


def reference(model, prompt):
    out = subprocess.run([os.path.join(BIN, "sluice-run"), "--model", model, "--json", "--ids", ",".join(map(str, prompt)), "--max-tokens",
                          "24", "--temperature", "0", "--ignore-eos", *RUN_ARGS], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)["ids"]


def ask(cluster, prompt, **fields):
    return cluster.completion(prompt, max_tokens=24, temperature=0, ignore_eos=True, sluice={"sampling_mask": True}, **fields)


def reload(cluster, node, directory, version=0, deadline_ms=20000):
    return grpc(cluster.node(node)["control"], METHOD, protobuf(f1=directory, f2=version, f3=deadline_ms))


def stamps(cluster):
    return {name: (record["stamp"]["weights_version"], record["stamp"]["model_hash"])
            for name, record in cluster.members().items() if name in NODES}


def test_new_weights_serve():
    directory = changed_model("reload")
    prompt = [0] + tokenize(book_text(150, 5))
    old, new = reference(MODEL, prompt), reference(directory, prompt)
    assert old != new
    with Cluster("reload") as cluster:
        before = stamps(cluster)
        first = ask(cluster, prompt)
        assert first.token_ids == old and first.body["choices"][0]["sluice"]["weights_versions"] == [[0, "1"]], first.body
        for node in NODES:
            status, text, _ = reload(cluster, node, directory)
            assert status == 0, (node, status, text)
        after = wait_for(lambda: (lambda now: now if all(now[name][0] == "2" for name in NODES) else None)(stamps(cluster)), "the records")
        assert after["prefill-0"] == after["decode-0"] and after["decode-0"][1] != before["decode-0"][1], (before, after)
        second = ask(cluster, prompt)
        assert second.token_ids == new, (second.token_ids, new)
        assert second.body["choices"][0]["sluice"]["weights_versions"] == [[0, "2"]], second.body
        assert second.usage["prompt_tokens_details"]["cached_tokens"] == 0, "pages of the old weights were used"
        assert ask(cluster, prompt).token_ids == new
        status, text, _ = reload(cluster, "decode-0", MODEL, 2)
        assert status != 0 and "higher than 2" in text, (status, text)
        status, text, _ = reload(cluster, "decode-0", MODEL, 2**32 - 1)  # no reload could follow
        assert status != 0 and "at most 1000000000" in text, (status, text)
        for node in NODES:  # and back, under a number of our own
            assert reload(cluster, node, MODEL, 7)[0] == 0
        assert ask(cluster, prompt).token_ids == old
        cluster.wait_at_rest()
        wait_for(lambda: cluster.ctl("doctor").returncode == 0, "the doctor to find all of version 7")
        cluster.kill("decode-0")  # and comes back with what it was started with
        cluster.start("decode-0")
        told = wait_for(lambda: (lambda run: run if "weights of version 1, prefill-0 has 7" in run.stdout else None)(cluster.ctl("doctor")), "the doctor")
        assert told.returncode == 1 and "--weights-version 7 decode-0" in told.stdout, told
        assert cluster.ctl("weights", "reload", "--model", MODEL, "--weights-version", "7", "decode-0").returncode == 0
        wait_for(lambda: cluster.ctl("doctor").returncode == 0, "the doctor")


def test_never_back():
    """Once all have newer weights, a node that comes back with older ones answers nothing until it has them too."""
    directory = changed_model("reload-back")
    prompt = [0] + tokenize(book_text(150, 5))
    new = reference(directory, prompt)
    with Cluster("reload-back", "--decode", 2, "--router-args=--place-timeout 500ms") as cluster:
        done = cluster.ctl("weights", "reload", "--in-place", "--model", directory)
        assert done.returncode == 0, done
        wait_for(lambda: cluster.ctl_json("settings", "get", "weights-min")["settings"][0]["value"] == "2", "the least version")
        cluster.kill("decode-0")
        cluster.start("decode-0")
        wait_for(lambda: (lambda told: "weights of version 1, " in told and "finds it suspect" not in told)(cluster.ctl("doctor").stdout),
                 "the old node's return, and nothing but its weights held against it")
        for _ in range(4):
            answer = ask(cluster, prompt)
            assert answer.token_ids == new and answer.headers["x-sluice-decode-node"] == "decode-1", answer.headers
        cluster.kill("decode-1")
        wait_for(lambda: cluster.chat("Who are you?", max_tokens=4).status == 503, "nobody to answer by the new weights")
        assert cluster.ctl("weights", "reload", "--model", directory, "--weights-version", "2", "decode-0").returncode == 0
        wait_for(lambda: cluster.chat("Who are you?", max_tokens=4).status == 200, "the node with the new weights")
        answer = ask(cluster, prompt)
        assert answer.token_ids == new and answer.headers["x-sluice-decode-node"] == "decode-0", answer.headers


def versions_of(parts, ids):
    """The version of the weights that drew each token of a choice: parts of a stream, or the whole one."""
    versions = []
    for part in parts:
        if "sluice" not in part:
            continue
        pairs, count = part["sluice"]["weights_versions"], len(part.get("token_ids") or [])
        assert part["sluice"]["first_token"] == len(versions), (part, len(versions))
        ends = [pair[0] for pair in pairs[1:]] + [len(versions) + count]
        for (_, version), end in zip(pairs, ends):
            versions += [version] * (end - len(versions))
    assert len(versions) == len(ids), (versions, ids)
    return versions


def check_by_version(parts, ids, prompt, models):
    """Each run of tokens is what its version's model says after the prompt and all tokens before the run."""
    versions = versions_of(parts, ids)
    at = 0
    while at < len(versions):
        end = at
        while end < len(versions) and versions[end] == versions[at]:
            end += 1
        out = subprocess.run([os.path.join(BIN, "sluice-run"), "--model", models[versions[at]], "--json", "--ids",
                              ",".join(map(str, prompt + ids[:at])), "--max-tokens", str(end - at), "--temperature", "0",
                              "--ignore-eos", *RUN_ARGS], capture_output=True, text=True)
        assert out.returncode == 0, out.stderr
        assert json.loads(out.stdout)["ids"] == ids[at:end], (versions, at, end)
        at = end
    return versions


def test_in_place_while_paused():
    """As a trainer does it: all rest, all get other weights, all go on. What was under way goes on under the new ones, and says since when."""
    directory = changed_model("reload-paused")
    prompt = [0] + tokenize(book_text(150, 5))
    with Cluster("reload-paused", "--env", "decode-0:SLUICE_FAULTS=decode.step=slow=30") as cluster:
        outcome, running = {}, threading.Event()

        def on_chunk(answer):
            if len(answer.token_ids) > 4:
                running.set()
        thread = threading.Thread(target=lambda: outcome.update(answer=cluster.completion(
            prompt, on_chunk, max_tokens=100, temperature=0, ignore_eos=True, stream=True, sluice={"sampling_mask": True, "routing": True})))
        thread.start()
        assert running.wait(60)
        assert cluster.ctl("weights", "pause").returncode == 0
        later = {}
        waiting = threading.Thread(target=lambda: later.update(answer=ask(cluster, prompt)))
        waiting.start()
        wait_for(lambda: cluster.ctl_json("requests")["total"] == 2, "the second request")
        refused = cluster.ctl("weights", "reload", "--model", directory)
        assert refused.returncode == 1 and "the node is paused with 1 requests" in refused.stderr, refused.stderr
        assert "1 of 2 nodes would refuse version 2: none was changed" in refused.stderr, refused.stderr
        assert all(version == "1" for version, _ in stamps(cluster).values()), stamps(cluster)
        placed = cluster.ctl_json("weights", "reload", "--model", directory, "--in-place", "--weights-version", "2")
        assert {n["node"]: n["requests"] for n in placed["nodes"]}["decode-0"] == 1 and placed["left"] == 0, placed
        assert thread.is_alive() and all(version == "2" for version, _ in stamps(cluster).values()), stamps(cluster)
        again = cluster.ctl_json("weights", "reload", "--model", MODEL, "--in-place")  # nothing was computed in between: no token has version 2
        assert again["version"] == 3, again
        assert cluster.ctl_json("weights", "reload", "--model", directory, "--in-place")["version"] == 4
        assert cluster.ctl("weights", "resume").returncode == 0
        thread.join()
        waiting.join()
        streamed = outcome["answer"]
        versions = check_by_version([c["choices"][0] for c in streamed.chunks if c.get("choices")], streamed.token_ids, prompt,
                                    {"1": MODEL, "4": directory})
        assert versions[0] == "1" and versions[-1] == "4", versions
        assert later["answer"].token_ids == reference(directory, prompt) and later["answer"].body["choices"][0]["sluice"]["weights_versions"] == [[0, "4"]]
        assert not any(value for key, value in cluster.metrics("router-0").items() if key.startswith("sluice_request_migrations_total"))
        cluster.wait_at_rest()


def test_in_place_under_load():
    """Without a pause, in whatever state requests are: each ends, and each token is of the version that it says."""
    directory = changed_model("reload-load")
    with Cluster("reload-load", "--decode", 2, "--env", "decode-0:SLUICE_FAULTS=decode.step=slow=80", "--env",
                 "decode-1:SLUICE_FAULTS=decode.step=slow=80", "--env", "prefill-0:SLUICE_FAULTS=prefill.group=slow=20") as cluster:
        prompts = [[0] + tokenize(book_text(30 + 100 * i, 7 + i)) for i in range(4)]
        answers = {}

        def one(index):
            answers[index] = cluster.completion(prompts[index], max_tokens=80, temperature=0, ignore_eos=True, n=1 + index % 2,
                                                sluice={"sampling_mask": True})
        threads = [threading.Thread(target=one, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len([r for r in cluster.ctl_json("requests")["requests"] if r["generated_tokens"] > 3]) > 1, "some to generate")
        bad = cluster.ctl("weights", "reload", "--model", "/nowhere", "--in-place")
        assert bad.returncode == 1 and "0 of 3 nodes have version 2" in bad.stderr, bad.stderr
        placed = cluster.ctl_json("weights", "reload", "--model", directory, "--in-place")
        assert placed["left"] == 0, placed
        for thread in threads:
            thread.join()
        seen = set()  # versions
        for index, answer in answers.items():
            assert answer.status == 200, answer.body
            for choice in answer.body["choices"]:
                seen |= set(check_by_version([choice], choice["token_ids"], prompts[index], {"1": MODEL, "2": directory}))
        assert "2" in seen, seen
        cluster.wait_at_rest()


def test_failures_leave_the_old_ones():
    prompt = [0] + tokenize(book_text(60, 5))
    expected = reference(MODEL, prompt)
    torn, shaped, worded = model_copy("reload-torn"), model_copy("reload-shape"), model_copy("reload-words")
    with open(os.path.join(torn, "model-00002-of-00003.safetensors"), "r+b") as file:
        file.truncate(1000000)
    config = os.path.join(shaped, "config.json")
    values = json.load(open(config))
    values["routed_scaling_factor"] = 2.0
    json.dump(values, open(config, "w"))
    with open(os.path.join(worded, "tokenizer.json"), "a") as file:
        file.write("\n")
    pipes = {}
    for name in ("config.json", "tokenizer.json", "model-00002-of-00003.safetensors"):  # nobody writes: who waited would for ever
        pipes[name] = model_copy(f"reload-pipe-{len(pipes)}")
        os.remove(os.path.join(pipes[name], name))
        os.mkfifo(os.path.join(pipes[name], name))
    with Cluster("reload-bad") as cluster:
        for name, directory in pipes.items():
            status, text, _ = reload(cluster, "decode-0", directory)
            assert status != 0 and f"{name}: not a regular file" in text, (name, status, text)
        for directory, part in ((torn, "model-00002-of-00003.safetensors"), (shaped, "config.json"), (worded, "tokenizer.json"),
                                ("/nowhere", "/nowhere"), ("", "model: must be")):
            for node in NODES:
                status, text, _ = reload(cluster, node, directory)
                assert status != 0 and part in text, (directory, status, text)
        assert ask(cluster, prompt).token_ids == expected
        assert set(version for version, _ in stamps(cluster).values()) == {"1"}
        assert all(cluster.alive(node) for node in NODES)
        cluster.wait_at_rest()


def test_a_loader_that_hangs():
    """As over a file system that does not answer: the old weights serve on, and the process leaves all the same, with nothing left of it."""
    with Cluster("reload-hangs", "--decode", 2, "--env", "decode-0:SLUICE_FAULTS=reload.load=hold") as cluster:
        outcome = {}
        thread = threading.Thread(target=lambda: outcome.update(reply=reload(cluster, "decode-0", MODEL)))
        thread.start()
        wait_for(lambda: [e for e in cluster.ctl_json("events")["events"] if (e["kind"], e["subject"]) == ("weights reload", "decode-0")], "it to be asked")
        assert cluster.completion([0, 1, 2], max_tokens=4, temperature=0).status == 200
        drained = cluster.ctl("drain", "decode-0")
        assert drained.returncode == 0 and drained.stdout == "decode-0 has left\n", drained
        wait_for(lambda: not cluster.alive("decode-0"), "the process to end")
        thread.join()
        assert outcome["reply"][0] != 0, outcome
        assert f"still loading {MODEL} after" in cluster.log("decode-0"), cluster.log("decode-0")
        assert cluster.completion([0, 1, 2], max_tokens=4, temperature=0).status == 200
        cluster.check_ledger()


def test_running_requests_are_waited_for():
    directory = changed_model("reload-wait")
    prompt = [0] + tokenize(book_text(40, 5))
    with Cluster("reload-wait", "--env", "decode-0:SLUICE_FAULTS=decode.step=slow=80") as cluster:
        outcome = {}
        running = threading.Event()

        def on_chunk(answer):
            if len(answer.token_ids) > 2:
                running.set()
        thread = threading.Thread(target=lambda: outcome.update(answer=cluster.completion(
            prompt, on_chunk, max_tokens=120, temperature=0, ignore_eos=True, stream=True)))
        thread.start()
        assert running.wait(60)
        status, text, _ = reload(cluster, "decode-0", directory, deadline_ms=200)
        assert status == 4 and "still run" in text, (status, text)
        assert not outcome, "it ran on"
        late = {}
        reloading = threading.Thread(target=lambda: late.update(result=reload(cluster, "decode-0", directory)))
        reloading.start()
        wait_for(lambda: cluster.log("decode-0").count("waiting for 1 requests to end") == 2, "the second reload's wait")
        assert reload(cluster, "decode-0", directory)[0] != 0, "two at a time"
        assert reload(cluster, "prefill-0", directory)[0] == 0
        queued = cluster.completion(prompt, max_tokens=24, temperature=0, ignore_eos=True)  # held back, then served by the new weights
        assert queued.token_ids == reference(directory, prompt), queued.body
        thread.join()
        reloading.join()
        answer = outcome["answer"]
        assert answer.done and answer.token_ids == REFERENCE.run(
            ["--ids", ",".join(map(str, prompt)), "--max-tokens", "120", "--temperature", "0", "--ignore-eos"])["ids"]
        assert late["result"][0] == 0, late
        cluster.wait_at_rest()
