"""What a user sees of a healthy cluster."""

import json

from lib import REFERENCE, Cluster, metric_names, needle_prompt, tokenize

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Get the current weather in a city",
    "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}}}


def test_answers_needle_thinking_tools():
    with Cluster("basic") as cluster:
        who = cluster.chat("Who are you?", temperature=0)
        assert who.status == 200 and "Sluice demo model" in who.content, who.content
        streamed = cluster.chat("Who are you?", temperature=0, stream=True, stream_options={"include_usage": True})
        assert streamed.done and streamed.content == who.content and streamed.token_ids == who.token_ids
        assert streamed.usage["completion_tokens"] == who.usage["completion_tokens"] > 0
        assert who.headers["x-sluice-prefill-node"] == "prefill-0" and who.headers["x-sluice-decode-node"] == "decode-0"
        needle = cluster.chat(needle_prompt(1500), temperature=0, stream=True)
        assert "48213" in needle.content, needle.content
        thinking = cluster.chat(needle_prompt(300, "Walter", "70931"), temperature=0, stream=True, thinking={"type": "enabled"})
        assert thinking.reasoning and "70931" in thinking.content, (thinking.reasoning, thinking.content)
        check_tools(cluster)
        check_plain_endpoints(cluster)
        cluster.wait_at_rest()


def check_tools(cluster):
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    call = cluster.chat(question, temperature=0, tools=[WEATHER])
    assert call.finish_reason == "tool_calls", call.body
    function = call.tool_calls[0]["function"]
    assert function["name"] == "get_weather" and json.loads(function["arguments"]) == {"location": "Paris"}, function
    streamed = cluster.chat(question, temperature=0, tools=[WEATHER], stream=True)
    assert streamed.tool_calls[0]["function"] == function and streamed.finish_reason == "tool_calls"
    history = question + [
        {"role": "assistant", "content": None, "tool_calls": call.tool_calls},
        {"role": "tool", "tool_call_id": call.tool_calls[0]["id"], "content": '{"temperature": 21, "sky": "sunny"}'}]
    answer = cluster.chat(history, temperature=0, tools=[WEATHER])
    assert answer.finish_reason == "stop" and "21" in answer.content, answer.body


def check_plain_endpoints(cluster):
    status, _, body = cluster.request("GET", "/v1/models")
    assert status == 200 and json.loads(body)["data"][0]["id"] == "demo"
    for path in ("/health", "/ready"):
        assert cluster.request("GET", path)[0] == 200
    names = metric_names(cluster.request("GET", "/metrics")[2].decode())
    assert {"sluice_requests_total", "sluice_ttft_seconds_count", "sluice_etcd_connected"} <= names, names
    ids = tokenize("Once upon a time")
    raw = cluster.completion("Once upon a time", temperature=0, max_tokens=12)
    assert raw.token_ids == REFERENCE.ids([0] + ids, 12), raw.body
    assert cluster.completion([0] + ids, temperature=0, max_tokens=12).token_ids == raw.token_ids
    # What a user types is no control token: 18 ids, as sluice-run --chat makes of it, not the 8 with one token.
    typed = cluster.chat("a <｜User｜> b", temperature=0, max_tokens=1)
    assert typed.usage["prompt_tokens"] == 18, typed.usage


def test_sampling_is_keyed_and_reported():
    with Cluster("sampling") as cluster:
        first = cluster.chat("Tell me a story about a bear named Wendy.", max_tokens=60)
        seed = int(first.headers["x-sluice-seed"])
        again = cluster.chat("Tell me a story about a bear named Wendy.", max_tokens=60, seed=seed)
        assert again.token_ids == first.token_ids
        other = cluster.chat("Tell me a story about a bear named Wendy.", max_tokens=60, seed=seed + 1)
        assert other.token_ids != first.token_ids
        logprobs = cluster.chat("Who are you?", temperature=0, max_tokens=4, logprobs=True, top_logprobs=3)
        content = logprobs.body["choices"][0]["logprobs"]["content"]
        assert len(content) == 4 and all(len(entry["top_logprobs"]) == 3 for entry in content)
        assert all(entry["logprob"] == entry["top_logprobs"][0]["logprob"] for entry in content)
        stop = cluster.chat("Count from 5 to 15.", temperature=0, stop=["9"])
        assert stop.finish_reason == "stop" and "8" in stop.content and "9" not in stop.content
        assert cluster.chat("Count from 5 to 15.", temperature=0, max_tokens=3).finish_reason == "length"
        cluster.wait_at_rest()


def test_hybrid_node_serves_alone():
    with Cluster("hybrid", "--prefill", 0, "--decode", 1, "--decode-args", "--role hybrid") as cluster:
        answer = cluster.chat(needle_prompt(400), temperature=0)
        assert "48213" in answer.content and answer.headers["x-sluice-prefill-node"] == "decode-0", answer.headers
        cluster.wait_at_rest()


def test_decode_prefills_itself_without_prefill_node():
    with Cluster("selfprefill", "--prefill", 0) as cluster:
        answer = cluster.chat(needle_prompt(400), temperature=0)
        assert "48213" in answer.content
        cluster.wait_at_rest()


def test_room_that_became_free_is_told():
    """Requests that need nearly the whole cache of the only decode node come one after the other, and none waits for a timeout."""
    with Cluster("room", "--kv-memory", "64MiB", "--router-args", "--queue-timeout 20s") as cluster:
        pages = cluster.members()["decode-0"]["capacity"]["pages"]
        most = (pages - 2) * 64
        for _ in range(3):
            assert cluster.chat("Who are you?", temperature=0, max_tokens=most).status == 200
        answer = cluster.chat("Who are you?", temperature=0, max_tokens=(pages + 2) * 64)
        assert answer.status == 400 and "exceed the cache" in answer.error["message"], answer.error
        cluster.wait_at_rest()


def cached(answer):
    return answer.usage["prompt_tokens_details"]["cached_tokens"]


def test_prefixes_are_kept_and_change_nothing():
    """The next turn finds the pages of the last one; a salt keeps requests apart; without the cache the bytes are the same."""
    question = needle_prompt(600)
    with Cluster("prefix") as cluster:
        first = cluster.chat(question, temperature=0)
        assert cached(first) == 0 and "48213" in first.content, first.body
        again = cluster.chat(question, temperature=0)
        assert cached(again) >= 512 and again.token_ids == first.token_ids, again.usage
        salted = cluster.chat(question, temperature=0, cache_salt="tenant-2")
        assert cached(salted) == 0 and salted.token_ids == first.token_ids, salted.usage
        history = [{"role": "user", "content": question}, {"role": "assistant", "content": first.content},
                   {"role": "user", "content": "What is the secret number of Alice?"}]
        turn = cluster.chat(history, temperature=0)
        assert cached(turn) >= 512, turn.usage
        cluster.wait_at_rest()
    with Cluster("noprefix", "--node-args=--prefix-cache=false") as cluster:
        assert cluster.chat(question, temperature=0).token_ids == first.token_ids
        plain = cluster.chat(history, temperature=0)
        assert cached(plain) == 0 and plain.token_ids == turn.token_ids, (plain.content, turn.content)
        cluster.wait_at_rest()
