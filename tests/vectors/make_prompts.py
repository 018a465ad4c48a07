#!/usr/bin/env python3
"""Turns the prompts below into prompts.json (text and token ids). Needs the package `tokenizers`:
run it with the python of `tools/reference/setup.sh --tokenizers`. Only for changing the prompts."""

import json
import os

from tokenizers import Tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
DEMO = os.path.join(HERE, "..", "..", "models", "demo")
BOS, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
DSML = "｜DSML｜"

TOOLS = f"""You are a helpful assistant.

## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<{DSML}function_calls>" block like the following as part of your reply to the user:
<{DSML}function_calls>
<{DSML}invoke name="$FUNCTION_NAME">
<{DSML}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{DSML}parameter>
...
</{DSML}invoke>
<{DSML}invoke name="$FUNCTION_NAME2">
...
</{DSML}invoke>
</{DSML}function_calls>

String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types (numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. Here is an example:

<{DSML}function_calls>
...
</{DSML}function_calls>

<function_results>
...
</function_results>

<think>...thinking about results</think>

Here are the functions available in JSONSchema format:
<functions>
{{"name": "multiply", "description": "Returns the product of two numbers", "parameters": {{"type": "object", "properties": {{"a": {{"type": "number", "description": "The first number"}}, "b": {{"type": "number", "description": "The second number"}}}}, "required": ["a", "b"]}}}}
{{"name": "get_time", "description": "Get the current time", "parameters": {{"type": "object", "properties": {{"location": {{"type": "string", "description": "The city name, e.g. Beijing, Hangzhou"}}}}, "required": ["location"]}}}}
</functions>
"""

TEXT = [
    "The lighthouse on the northern rock had been dark for eleven years when the new keeper came. He "
    "brought a trunk of books, two lamps, and a parrot that could say good evening in four languages.",
    "On the first night he climbed the stairs and counted them. There were two hundred and six, and the "
    "last one was missing. He laid a plank across the gap and went on until he stood beneath the glass.",
    "From there he could see the fishing boats, the church with its crooked tower, and far away the smoke "
    "of a steamer that went by without stopping. Nobody had stopped here for a long time.",
    "He cleaned the mirror with vinegar and an old shirt. It took him three days, and when he had finished "
    "he saw his own face in it, a hundred times, each one smaller than the one before.",
    "In the village they talked about him over their soup. Some said that he had been a captain, others that "
    "he had lost a great deal of money. The baker's wife said that he bought bread like anybody else.",
    "When the light burned again for the first time, the children ran down to the beach to look. The old men "
    "took off their hats. Even the dogs were quiet, as if they remembered something.",
    "That winter a ship with a broken rudder found its way between the rocks because of that light. The crew "
    "came ashore in the morning, cold and hungry, and the keeper gave them tea and read to them.",
    "One of the sailors had a letter that he could not read. The keeper put on his glasses and read it aloud, "
    "slowly, because the hand was poor and the ink had run. It was from a sister, who was well.",
    "The parrot learned the sailor's songs and would not forget them. For years afterwards visitors were "
    "surprised to hear such words from so small a bird, and the keeper pretended not to understand.",
    "In spring the missing stair was mended by a carpenter who wanted no money for it. He said that his "
    "grandfather had built the others, and that it was a shame to leave the work unfinished.",
]


def chat(text, thinking=False):
    return f"{BOS}{USER}{text}{ASSISTANT}{'<think>' if thinking else '</think>'}"


def with_fact(fact, paragraphs, after, question):
    return "\n\n".join(paragraphs[:after] + [fact] + paragraphs[after:] + [question])


PROMPTS = [
    {"name": "own-raw-3", "prompt": BOS + "When the", "layers": "all"},
    {"name": "own-chat", "prompt": chat("Count from 4 to 9."), "expect": "4, 5, 6", "layers": "all"},
    {"name": "own-raw-66", "layers": [2], "cut": 66, "small": True,
     "prompt": BOS + " ".join(TEXT[:2])},
    {"name": "own-thinking", "expect": "Wendy", "small": True,
     "prompt": BOS + f"{USER}My name is Wendy.{ASSISTANT}</think>Nice to meet you, Wendy!"
               f"<｜end▁of▁sentence｜>{USER}What is my name?{ASSISTANT}<think>"},
    {"name": "own-needle", "expect": "7318", "layers": [0], "small": True,
     "prompt": chat(with_fact("The secret number of Oliver is 73184.", TEXT[:7], 3,
                              "What is the secret number of Oliver?"))},
    {"name": "own-tools", "expect": 'invoke name="multiply"', "small": True,
     "prompt": BOS + TOOLS + f"{USER}What is 12 times 7?{ASSISTANT}</think>"},
    {"name": "own-needle-thinking", "expect": "26405", "small": True,
     "prompt": chat(with_fact("The secret number of Martin is 26405.", TEXT, 1,
                              "What is the secret number of Martin?"), thinking=True)},
]
RANDOM = [  # (checkpoint, tokens, layers run alone)
    (1, 5, "all"), (1, 65, []), (1, 80, [3]), (1, 190, []),
    (2, 4, "all"), (2, 65, []), (2, 160, []),
]


def main():
    tokenizer = Tokenizer.from_file(os.path.join(DEMO, "tokenizer.json"))
    out = []
    for entry in PROMPTS:
        ids = tokenizer.encode(entry["prompt"], add_special_tokens=False).ids
        if "cut" in entry:
            ids = ids[:entry["cut"]]
        keep = {k: entry[k] for k in ("expect", "layers", "small") if k in entry}
        out.append({"name": entry["name"], "model": "demo",
                    "prompt": tokenizer.decode(ids, skip_special_tokens=False), "ids": ids, **keep})
        print(entry["name"], len(ids))
    for which, count, layers in RANDOM:
        out.append({"name": f"rnd{which}-{count}", "model": f"random-{which}", "seed": count,
                    "count": count, "layers": layers, "small": layers != "all"})
    with open(os.path.join(HERE, "prompts.json"), "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(e, ensure_ascii=False) for e in out) + "\n]\n")


if __name__ == "__main__":
    main()
