"""Fields of a request at their edges, through a whole cluster; what each means is in docs/API.md."""

import re

from lib import Cluster, book_text, tokenize


def test_fields():
    with Cluster("fields") as cluster:
        plain = cluster.completion("Once upon a time", max_tokens=24, temperature=0, ignore_eos=True)
        words = plain.text.split(" ")
        stop = words[3] + " " + words[4]
        at = plain.text.index(stop)
        for stream in (False, True):
            cut = cluster.completion("Once upon a time", max_tokens=24, temperature=0, ignore_eos=True, stop=stop, stream=stream)
            assert cut.text == plain.text[:at] and cut.finish_reason == "stop", (cut.text, plain.text)
            kept = cluster.completion("Once upon a time", max_tokens=24, temperature=0, ignore_eos=True, stop=stop, stream=stream,
                                      include_stop_str_in_output=True)
            assert kept.text == plain.text[:at] + stop and kept.finish_reason == "stop", (kept.text, plain.text)
            late = cluster.completion("Once upon a time", max_tokens=24, temperature=0, ignore_eos=True, stop=stop, stream=stream,
                                      min_tokens=24)
            assert late.text == plain.text and late.finish_reason == "length", (late.text, plain.text)
        by_id = cluster.completion("Once upon a time", max_tokens=24, temperature=0, ignore_eos=True, stop_token_ids=[plain.token_ids[6]])
        first = plain.token_ids.index(plain.token_ids[6])
        assert by_id.token_ids == plain.token_ids[:first + 1] and by_id.finish_reason == "stop", by_id.token_ids
        scored = cluster.completion("Once upon a time", max_tokens=0, echo=True, logprobs=0)
        ids = [0] + tokenize("Once upon a time")
        assert scored.status == 200 and scored.text == "Once upon a time", scored.body
        assert scored.usage["completion_tokens"] == 0 and len(scored.body["choices"][0]["logprobs"]["tokens"]) == len(ids), scored.body
        assert cluster.completion("x", max_tokens=0).status == 400
        cluster.wait_at_rest()


def test_default_length_in_a_tiny_cache():
    with Cluster("tiny-cache", "--kv-memory", "4MiB") as cluster:
        answer = cluster.chat("Who are you?", temperature=0)
        assert answer.status == 200, answer.body
        large = cluster.chat("Who are you?", temperature=0, max_tokens=100000)
        assert large.status == 400 and large.error["code"] == "too_large" and large.error["param"] == "max_tokens", large.body
        left = int(re.search(r"which leaves (\d+) for max_tokens \(this model's maximum context length is 163840\)", large.error["message"]).group(1))
        assert cluster.chat("Who are you?", temperature=0, max_tokens=left + 1).status == 400
        assert cluster.chat("Who are you?", temperature=0, max_tokens=left).status == 200
        over = cluster.ctl("size", "--prompt-tokens", "163000", "--answer-tokens", "1000", "--requests", "1")
        assert over.returncode == 1 and "over the context of 163840" in over.stderr, over.stderr
        long = cluster.completion([0] + tokenize(book_text(2000, 1)), max_tokens=4)
        assert long.status == 400 and long.error["param"] == "prompt" and "exceed the cache" in long.error["message"], long.body
        cluster.wait_at_rest()
