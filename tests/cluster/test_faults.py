"""Nodes die; the client still gets exactly the right bytes, or a clear error. Nothing is left behind on the survivors."""

import threading

from lib import REFERENCE, Cluster, needle_prompt, wait_for

STORY = "Tell me a story about a bear named Wendy."
MIGRATIONS = "sluice_request_migrations_total"


def in_background(function):
    outcome = {}

    def body():
        outcome["value"] = function()
    thread = threading.Thread(target=body)
    thread.start()

    def result():
        thread.join()
        return outcome["value"]
    return result


def reference_chat(text, max_tokens, *more):
    return REFERENCE.run(["--chat", "--max-tokens", str(max_tokens), *more, text])


def held(cluster, name):
    return wait_for(lambda: "fault prefill.group: hold" in cluster.log(name), f"{name} to be held")


def test_prefill_killed_inside_a_prefill():
    with Cluster("p-killed", "--prefill", 2, "--env", "prefill-0:SLUICE_FAULTS=prefill.group=hold@2", "--node-args",
                 "--chunk-tokens 256") as cluster:
        prompt = needle_prompt(900)
        result = in_background(lambda: cluster.chat(prompt, temperature=0, stream=True))
        held(cluster, "prefill-0")
        cluster.kill("prefill-0")
        answer = result()
        assert answer.done and answer.token_ids == reference_chat(prompt, 400, "--temperature", "0")["ids"], answer.error
        assert answer.headers["x-sluice-prefill-node"] in ("prefill-0", "prefill-1")
        assert cluster.metric("router-0", MIGRATIONS) == 1
        cluster.wait_at_rest()


def test_decode_killed_mid_stream():
    for temperature in (0, 1):
        with Cluster(f"d-killed-{temperature}", "--decode", 2, "--env", "*:SLUICE_FAULTS=decode.step=slow=30") as cluster:
            killed = []

            def on_chunk(answer):
                if len(answer.token_ids) >= 20 and not killed:
                    killed.append(answer.headers["x-sluice-decode-node"])
                    cluster.kill(killed[0])
            answer = cluster.chat(STORY, on_chunk, temperature=temperature, top_p=1, seed=77, stream=True, max_tokens=80,
                                  ignore_eos=True)
            assert killed and answer.done, answer.error
            expected = reference_chat(STORY, 80, "--temperature", str(temperature), "--top-p", "1", "--seed", "77", "--ignore-eos")
            assert answer.token_ids == expected["ids"]
            assert cluster.metric("router-0", MIGRATIONS) == 1
            cluster.wait_at_rest()


def test_recovery_is_paced_and_takes_what_survives():
    """Streams lose their decode node at once: they go on one after the other. The prefill node still has their prompt's pages."""
    with Cluster("paced", "--decode", 2, "--prefill", 2, "--env", "*:SLUICE_FAULTS=decode.step=slow=25", "--router-args",
                 "--recovery-rate 40") as cluster:
        prompt = needle_prompt(150)
        results = [in_background(lambda seed=seed: cluster.chat(prompt, temperature=1, top_p=1, seed=seed, stream=True, max_tokens=200,
                                                                ignore_eos=True)) for seed in range(4)]
        wait_for(lambda: min(cluster.metric(f"decode-{i}", "sluice_generation_tokens_total") for i in (0, 1)) > 20, "streams")
        # One that is still being prefilled would be computed for the first time, not again.
        wait_for(lambda: [r["generated_tokens"] > 0 for r in cluster.ctl_json("requests")["requests"]] == [True] * 4, "all four streams")
        before = sum(cluster.metric(f"prefill-{i}", "sluice_prompt_tokens_total") for i in (0, 1))
        cluster.kill("decode-0")
        for seed, result in enumerate(results):
            answer = result()
            expected = reference_chat(prompt, 200, "--temperature", "1", "--top-p", "1", "--seed", str(seed), "--ignore-eos")
            assert answer.done and answer.token_ids == expected["ids"], (seed, answer.error)
        moved = cluster.metric("router-0", MIGRATIONS)
        again = sum(cluster.metric(f"prefill-{i}", "sluice_prompt_tokens_total") for i in (0, 1)) - before
        print(f"{moved:.0f} requests went on elsewhere, {again:.0f} tokens were computed again")
        assert 0 < moved < 4 and again < moved * 200, (moved, again)  # of over 200 of each prompt
        cluster.wait_at_rest()


def left_with_error(cluster, name):
    wait_for(lambda: not cluster.alive(name), f"{name} to leave")
    assert "the device failed, and this process with it: fault site engine.device" in cluster.log(name), cluster.log(name)


def test_device_fails():
    """A node whose device is gone leaves; the answer goes on elsewhere, with the same tokens."""
    with Cluster("device", "--prefill", 2, "--decode", 2, "--env", "prefill-0:SLUICE_FAULTS=engine.device=fail@2", "--env",
                 "decode-0:SLUICE_FAULTS=engine.device=fail@9", "--node-args", "--chunk-tokens 256") as cluster:
        failing = {"prefill-0", "decode-0"}
        for seed in range(20):  # until both have had a request
            prompt = needle_prompt(900, seed=seed)
            answer = cluster.chat(prompt, temperature=0, stream=True)
            assert answer.done and answer.token_ids == reference_chat(prompt, 400, "--temperature", "0")["ids"], answer.error
            failing = {name for name in failing if "fault engine.device" not in cluster.log(name)}
            if not failing:
                break
        left_with_error(cluster, "prefill-0")
        left_with_error(cluster, "decode-0")
        assert cluster.metric("router-0", MIGRATIONS) == 2
        cluster.wait_at_rest()


def test_prefill_killed_none_left():
    """The decode node computes the prompt itself."""
    with Cluster("p-none", "--env", "prefill-0:SLUICE_FAULTS=prefill.group=hold@1") as cluster:
        prompt = needle_prompt(300)
        result = in_background(lambda: cluster.chat(prompt, temperature=0, stream=True))
        held(cluster, "prefill-0")
        cluster.kill("prefill-0")
        answer = result()
        assert answer.done and "48213" in answer.content, (answer.content, answer.error)
        cluster.wait_at_rest()


def test_prefill_killed_none_left_to_wait_for():
    """The same where the operator does not want decode nodes to prefill: a clear error, nothing left behind."""
    with Cluster("p-none-error", "--env", "prefill-0:SLUICE_FAULTS=prefill.group=hold@1", "--router-args",
                 "--self-prefill=false --place-timeout 1s") as cluster:
        result = in_background(lambda: cluster.chat(needle_prompt(300), temperature=0, stream=True))
        held(cluster, "prefill-0")
        cluster.kill("prefill-0")
        answer = result()
        assert answer.status == 503 and "prefill" in answer.error["message"], (answer.status, answer.error)
        assert "retry-after" in answer.headers, answer.headers
        print("error:", answer.error["message"])
        cluster.wait_at_rest()


def test_decode_killed_none_left():
    with Cluster("d-none", "--env", "*:SLUICE_FAULTS=decode.step=slow=10", "--router-args", "--place-timeout 1s") as cluster:
        killed = []

        def on_chunk(answer):
            if len(answer.token_ids) >= 5 and not killed:
                killed.append(cluster.kill("decode-0"))
        answer = cluster.chat(STORY, on_chunk, temperature=0, stream=True, max_tokens=200, ignore_eos=True)
        assert killed and not answer.done and answer.error, answer.chunks[-1:]
        assert "decode" in answer.error["message"], answer.error
        print("error event:", answer.error["message"])
        late = cluster.chat(STORY, temperature=0)
        assert late.status == 503 and "retry-after" in late.headers, (late.status, late.headers)
        cluster.wait_at_rest()


def test_client_gone_mid_stream():
    with Cluster("client-gone", "--env", "*:SLUICE_FAULTS=decode.step=slow=10") as cluster:
        def on_chunk(answer):
            if len(answer.token_ids) >= 5:
                raise StopIteration
        answer = cluster.chat(STORY, on_chunk, temperature=0, stream=True, max_tokens=2000, ignore_eos=True)
        assert not answer.done
        generated = cluster.metric("decode-0", "sluice_generation_tokens_total")
        assert generated < 1000, generated
        cluster.wait_at_rest()


def test_client_gone_inside_a_prefill():
    with Cluster("client-gone-p", "--env", "prefill-0:SLUICE_FAULTS=prefill.group=slow=50", "--node-args",
                 "--chunk-tokens 64") as cluster:
        connection = cluster.connection()
        import json
        connection.request("POST", "/v1/chat/completions",
                           json.dumps({"model": "demo", "messages": [{"role": "user", "content": needle_prompt(2000)}]}),
                           {"Content-Type": "application/json"})
        wait_for(lambda: cluster.metrics("prefill-0").get("sluice_running_requests") == 1, "the prefill")
        connection.close()
        cluster.wait_at_rest()
        assert cluster.metric("prefill-0", "sluice_prompt_tokens_total") == 0, "the prefill went on to its end"


def test_both_killed_with_spares():
    """One request after the other dies with its nodes; sixteen streams at once survive both."""
    with Cluster("both", "--prefill", 2, "--decode", 2, "--env", "*:SLUICE_FAULTS=decode.step=slow=5") as cluster:
        results = [in_background(lambda seed=seed: cluster.chat(STORY, temperature=1, top_p=1, seed=seed, stream=True, max_tokens=60,
                                                                ignore_eos=True)) for seed in range(16)]
        wait_for(lambda: sum(cluster.metric(f"decode-{i}", "sluice_generation_tokens_total") for i in (0, 1)) > 100, "streams")
        cluster.kill("prefill-1")
        cluster.kill("decode-1")
        for seed, result in enumerate(results):
            answer = result()
            expected = reference_chat(STORY, 60, "--temperature", "1", "--top-p", "1", "--seed", str(seed), "--ignore-eos")
            assert answer.done and answer.token_ids == expected["ids"], (seed, answer.error)
        cluster.wait_at_rest()
