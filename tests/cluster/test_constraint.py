"""Structured output: what comes has the asked form, and is what one process gives: streamed, with thinking, tools, drafts, after a kill."""

import functools
import json
import re
import tempfile
import threading

from lib import REFERENCE, Cluster, wait_for

PERSON = {"type": "object", "additionalProperties": False, "required": ["name", "age", "pets"], "properties": {
    "name": {"type": "string", "maxLength": 24}, "age": {"type": "integer", "minimum": 0, "maximum": 120},
    "pets": {"type": "array", "maxItems": 3, "items": {"enum": ["cat", "dog", "bird"]}},
    "friend": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "required": ["location", "days"], "properties": {
        "location": {"type": "string", "maxLength": 20}, "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "unit": {"enum": ["celsius", "fahrenheit"]}}}}}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}}}
# The demo model leaves `days` out when it may.
STRICT = {"type": "function", "function": {**WEATHER["function"], "strict": True, "parameters": {
    "type": "object", "required": ["location", "days"], "additionalProperties": False, "properties": {
        "location": {"type": "string", "maxLength": 20}, "days": {"type": "integer", "minimum": 1, "maximum": 7}}}}}
THINKING = {"thinking": {"type": "enabled"}}


def json_schema(schema, **more):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}}


def check_person(text):
    value = json.loads(text)
    assert set(value) <= set(PERSON["properties"]) and len(value["name"]) <= 24 and 0 <= value["age"] <= 120, value
    assert len(value["pets"]) <= 3 and all(pet in ("cat", "dog", "bird") for pet in value["pets"]), value
    if value.get("friend"):
        check_person(json.dumps(value["friend"]))


def check_matches(pattern):
    def check(text):
        assert re.fullmatch(pattern, text), text
    return check


def check_object(text):
    assert isinstance(json.loads(text), dict), text


def check_any(text):
    assert text is not None


def check_call(*names):
    def check(calls):
        assert calls and all(call["function"]["name"] in names for call in calls), calls
        for call in calls:
            arguments = json.loads(call["function"]["arguments"])
            if call["function"]["name"] == "get_weather":
                assert 1 <= arguments["days"] <= 7 and len(arguments["location"]) <= 20, arguments
                assert arguments.get("unit", "celsius") in ("celsius", "fahrenheit"), arguments
    return check


# (question, fields, check of the content, check of the calls); each at temperature 0 and 1
WORK = [
    ("Who are you?", json_schema(PERSON), check_person, None),
    ("Who are you?", {**json_schema(PERSON), **THINKING}, check_person, None),
    ("Who are you?", {"response_format": {"type": "json_object"}}, check_object, None),
    ("Is it late?", {"structured_outputs": {"choice": ["yes", "no", "perhaps"]}}, check_matches("yes|no|perhaps"), None),
    ("A number?", {"guided_regex": "[0-9]{3}-[a-z]{2,5}"}, check_matches("[0-9]{3}-[a-z]{2,5}"), None),
    ("A number?", {"structured_outputs": {"regex": "(one|two) [A-Z]{4}\\."}, **THINKING}, check_matches("(one|two) [A-Z]{4}\\."), None),
    ("What is the weather in Paris?", {"tools": [WEATHER, TIME], "tool_choice": "required"}, None, check_call("get_weather", "get_time")),
    ("Who are you?", {"tools": [WEATHER, TIME], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}, **THINKING},
     None, check_call("get_weather")),
    ("What is the weather in Paris?", {"tools": [WEATHER], **json_schema(PERSON)}, check_person, check_call("get_weather")),
    ("What is the weather in Paris?", {"tools": [TIME, STRICT]}, check_any, check_call("get_weather", "get_time")),
    ("Who are you?", {"tools": [TIME, STRICT], **THINKING}, check_any, check_call("get_weather", "get_time")),
]


def sampling(temperature):
    return {"temperature": temperature, "top_p": 1, "seed": 11, "max_tokens": 320}


@functools.cache
def reference_of(messages, temperature, depth):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(messages)
        file.flush()
        arguments = ["--messages", file.name, "--temperature", str(temperature), "--top-p", "1", "--seed", "11", "--max-tokens", "320",
                     "--mtp-depth", str(depth)]
        return REFERENCE.run(arguments)


def reference(question, fields, temperature, depth=0):
    return reference_of(json.dumps({"messages": [{"role": "user", "content": question}], **fields}), temperature, depth)


def check_form(answer, check_content, check_calls):
    """What max_tokens cut is not judged; the rest must have its form."""
    if answer.finish_reason == "length":
        return False
    if answer.tool_calls:
        assert answer.finish_reason == "tool_calls" and check_calls, answer.chunks or answer.body
        check_calls(answer.tool_calls)
    else:
        assert check_content, answer.chunks or answer.body
        check_content(answer.content)
    return True


def run(depth, items):
    work = [(temperature, index, *item) for index, item in enumerate(items) for temperature in (0, 1)]
    answers = [None] * len(work)

    def ask(at):
        temperature, index, question, fields, _, _ = work[at]
        answers[at] = cluster.chat(question, stream=bool((index + temperature) % 2), **fields, **sampling(temperature))

    with Cluster(f"constraint-{depth}", "--node-args", f"--mtp-depth {depth}") as cluster:
        threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(work))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        cluster.wait_at_rest()
    complete = 0
    for (temperature, _, question, fields, check_content, check_calls), answer in zip(work, answers):
        assert answer is not None and answer.status == 200 and not answer.error, (fields, answer and (answer.body, answer.error))
        expected = reference(question, fields, temperature)["ids"]
        assert answer.token_ids == expected, f"depth {depth}, {fields}: {answer.token_ids} instead of {expected}"
        complete += check_form(answer, check_content, check_calls)
    print(f"depth {depth}: {len(work)} answers equal one process's, {complete} of them complete")
    assert complete > len(work) / 2, complete


def test_form_and_tokens():
    run(0, WORK[::3])
    run(2, WORK)


def test_drafts_keep_to_the_form():
    """One process at every depth: the same tokens, in fewer steps the more the form leaves one way only."""
    for question, fields in (("Who are you?", {**json_schema(PERSON), **THINKING}), (WORK[7][0], WORK[7][1])):
        plain = reference(question, fields, 1)["ids"]
        for depth in (1, 2, 3):
            out = reference(question, fields, 1, depth)
            mtp = out["mtp"]
            print(f"depth {depth}: {mtp['accepted']} of {mtp['drafted']} accepted, {len(plain)} tokens in {mtp['steps']} steps")
            assert out["ids"] == plain, (fields, depth)
            assert mtp["accepted"] > len(plain) / 4, (fields, mtp)


def test_strict_functions_hold_under_auto():
    """Unasked, the model leaves a required parameter out: of a strict function it cannot."""
    with Cluster("constraint-strict", "--node-args", "--mtp-depth 1") as cluster:
        answers = [cluster.chat("What is the weather in Paris?", tools=[TIME, STRICT], stream=stream, **sampling(0))
                   for stream in (False, True)]
        for answer in answers:
            assert answer.status == 200 and answer.finish_reason == "tool_calls", answer.body
            check_call("get_weather")(answer.tool_calls)
        assert answers[0].token_ids == answers[1].token_ids


def test_decode_killed_mid_answer():
    """The answer goes on elsewhere: the state is made from the tokens."""
    fields = {"structured_outputs": {"json": {"type": "array", "minItems": 12, "maxItems": 12, "items": PERSON["properties"]["age"]}}}
    with Cluster("constraint-killed", "--decode", 2, "--env", "*:SLUICE_FAULTS=decode.step=slow=10") as cluster:
        killed = []

        def on_chunk(answer):
            if len(answer.token_ids) >= 12 and not killed:
                killed.append(answer.headers["x-sluice-decode-node"])
                cluster.kill(killed[0])

        answer = cluster.chat("Count.", on_chunk, stream=True, **fields, **sampling(1))
        assert killed and answer.done, answer.error
        assert len(json.loads(answer.content)) == 12, answer.content
        assert answer.token_ids == reference("Count.", fields, 1)["ids"]


def test_choices_of_one_request():
    with Cluster("constraint-n") as cluster:
        answer = cluster.chat("Who are you?", n=3, **json_schema(PERSON["properties"]["pets"]), **sampling(1))
        texts = [choice["message"]["content"] for choice in answer.body["choices"]]
        assert len(texts) == 3 and all(isinstance(json.loads(text), list) for text in texts), texts


def test_compiling_holds_nobody():
    """While a node compiles, which is held, others are served; who waits for the same form is answered, who left is not missed."""
    fields = {"structured_outputs": {"regex": "(one|two) [A-Z]{4}\\."}}
    with Cluster("constraint-compile", "--env", "decode-0:SLUICE_FAULTS=decode.compile=hold@1") as cluster:
        answers = {}

        def ask(name, **more):
            answers[name] = cluster.chat("A number?", **fields, **sampling(1), **more)

        threads = [threading.Thread(target=ask, args=(name,), kwargs=more) for name, more in (("one", {}), ("three", {"n": 3}))]
        for thread in threads:
            thread.start()
        wait_for(lambda: "fault decode.compile: hold" in cluster.log("decode-0"), "the compiler is held")
        leaver = cluster.connection(timeout=60)
        leaver.request("POST", "/v1/chat/completions", json.dumps({"messages": [{"role": "user", "content": "A number?"}], **fields}),
                       {"content-type": "application/json"})
        for _ in range(3):
            assert cluster.chat("Is it late?", temperature=0, max_tokens=30).status == 200
        leaver.close()
        assert not answers, answers
        cluster.kill("decode-0", "USR2")
        for thread in threads:
            thread.join()
        assert answers["one"].token_ids == reference("A number?", fields, 1)["ids"]
        texts = [choice["message"]["content"] for choice in answers["three"].body["choices"]]
        assert len(texts) == 3 and all(re.fullmatch("(one|two) [A-Z]{4}\\.", text) for text in texts), texts
        assert texts[0] == answers["one"].content
        cluster.wait_at_rest()


def test_refusals_name_the_field():
    bad = [
        (json_schema({"type": "object", "properties": {"a": {"type": "array", "unevaluatedItems": {}}}}),
         "response_format.json_schema.schema.properties.a.unevaluatedItems"),
        (json_schema({"type": "object", "properties": {"a": {}}}, strict=True),
         "response_format.json_schema.schema.additionalProperties"),
        ({"structured_outputs": {"regex": "a(?=b)"}}, "structured_outputs.regex"),
        ({"tools": [{"type": "function", "function": {**WEATHER["function"], "strict": True}}]},
         "tools[0].function.parameters.additionalProperties"),
        ({"guided_choice": []}, "guided_choice"),
        ({"structured_outputs": {"json": {"$ref": "#/$defs/none"}}}, "structured_outputs.json.$ref"),
        ({"structured_outputs": {"json": {}}, "guided_regex": "a"}, "guided_regex"),
        ({"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
        ({**json_schema(PERSON), "ignore_eos": True}, "ignore_eos"),
    ]
    with Cluster("constraint-bad") as cluster:
        for fields, param in bad:
            answer = cluster.chat("Who are you?", **fields)
            assert answer.status == 400, (fields, answer.body)
            assert param in answer.error["message"] and (answer.error["param"] or "").startswith(param.split(".")[0]), answer.error
        cluster.wait_at_rest()
