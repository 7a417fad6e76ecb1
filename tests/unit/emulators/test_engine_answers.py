"""The emulated model's answers: stop conditions, guided decoding, what a seed changes, and the tokens of a text."""

from __future__ import annotations

import json
import random
import re
from itertools import islice

import jsonschema
import pytest
from emulated_cloud.engine import structured, text
from emulated_cloud.engine.metrics import Metrics, one_two_five
from emulated_cloud.engine.sampling import Output, SamplingParams, decode
from emulated_cloud.engine.tokenizer import TemplateFailed, Tokenizer
from emulated_cloud.hub import models

EOS, TURN = 1, 106


def run(tokens, max_tokens=100, **params):
    return list(decode(tokens, SamplingParams(max_tokens, **params), [EOS, TURN]))


def said(outputs):
    return "".join(output.text for output in outputs)


def letters(word):
    return [(ord(letter), letter) for letter in word]


def test_the_end_of_a_turn_is_a_token_and_a_reason():
    outputs = run([*letters("ab"), None, *letters("cd")])
    assert outputs == [Output("a", 97), Output("b", 98), Output("", TURN, "stop", TURN)]


def test_without_a_turn_token_the_end_has_no_reason():
    assert list(decode(letters("a"), SamplingParams(9), [EOS]))[-1] == Output("", EOS, "stop", None)


def test_the_limit_counts_every_token():
    outputs = run(letters("abcdef"), max_tokens=3)
    assert (said(outputs), outputs[-1].finish_reason, len(outputs)) == ("abc", "length", 3)


def test_an_answer_that_must_go_on():
    endless = [*letters("ab"), None, *letters("cd"), None, *letters("ef"), None]
    assert said(run(iter(endless), min_tokens=3)) == "abcd"
    outputs = run(iter(endless), max_tokens=6, ignore_eos=True)
    assert (said(outputs), outputs[-1].finish_reason) == ("abcdef", "length")


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_over_several_tokens(include):
    outputs = run(letters("abcdefgh"), stop=["def", "zzz"], include_stop_str_in_output=include)
    assert said(outputs) == ("abcdef" if include else "abc")
    assert outputs[-1].finish_reason == "stop"
    assert outputs[-1].stop_reason == "def"


def test_no_part_of_a_stop_string_is_ever_shown():
    outputs = run([(1, "one "), (2, "two st"), (3, "o"), (4, "p three")], stop=["stop"])
    assert said(outputs) == "one two "


def test_what_was_held_back_for_a_stop_string_comes_in_the_end():
    outputs = run([*letters("abst"), None], stop=["stop"])
    assert said(outputs) == "abst"
    assert outputs[-1].finish_reason == "stop"


def test_the_first_of_several_stop_strings_counts():
    assert run([(1, "a-b-c")], stop=["c", "b"])[-1].stop_reason == "b"


def test_stop_strings_wait_for_the_least_length():
    assert said(run(letters("xaxa"), stop=["x"], min_tokens=2)) == "xa"


def test_stop_tokens():
    outputs = run(letters("abc"), stop_token_ids=[98])
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", 98)


SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"}}, "required": ["a", "b"]},
    {"type": "array", "items": {"type": "number", "minimum": -1.5, "exclusiveMaximum": 0}, "minItems": 3},
    {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 3, "uniqueItems": True},
    {"type": "array", "prefixItems": [{"type": "string"}, {"const": 4}], "items": {"type": "boolean"}, "minItems": 3},
    {"type": "integer", "multipleOf": 7, "minimum": 50, "maximum": 60},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.1},
    {"type": "string", "minLength": 60, "maxLength": 64},
    {"type": "string", "maxLength": 3},
    {"type": "string", "pattern": "^(yes|no)-[0-9]{2,3}[a-f]?$"},
    {"type": "string", "format": "date"},
    {"type": ["null", "string"]},
    {"anyOf": [{"type": "integer"}, {"type": "string"}]},
    {"oneOf": [{"const": "x"}, {"const": "y"}]},
    {"allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"required": ["b"]}], "type": "object"},
    {"type": "object", "minProperties": 2},
    {"type": "object", "additionalProperties": {"type": "integer"}, "required": ["n"]},
    {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"x": {"$ref": "#/$defs/leaf"}}},
                                       "leaf": {"enum": ["l"]}}},
    {"type": "object", "properties": {"child": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "n": {"type": "integer"}},
     "required": ["n"], "additionalProperties": False},
    {"type": "object", "properties": {"child": {"$ref": "#"}}},
    {},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_values_under_a_schema(schema):
    for seed in range(20):
        jsonschema.validate(structured.instance(schema, random.Random(seed)), schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"child": {"$ref": "#"}}, "required": ["child"]},
        {"$ref": "#/nowhere"},
        {"type": "colour"},
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "array", "items": {"const": 1}, "minItems": 2, "uniqueItems": True},
        {"type": "string", "pattern": r"(a)\1"},
        "string",
    ],
    ids=str,
)
def test_schemas_that_nothing_satisfies(schema):
    with pytest.raises(structured.UnsupportedSchema):
        structured.instance(schema, random.Random(0))


@pytest.mark.parametrize("pattern", [r"\d{3}-\d{4}", r"[^a-z]+", r"(north|south) bank", r"\w+\s\w+", "a*b+c?", "^x.y$"])
def test_strings_of_a_pattern(pattern):
    for seed in range(20):
        assert re.search(pattern, structured.from_pattern(pattern, random.Random(seed)))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    models.write_gemma3(folder)
    return Tokenizer(folder, json.loads((folder / "config.json").read_bytes()))


@pytest.mark.parametrize(
    "words", ["The harbor keeps", " and a space before", "강을 따라 조용한 섬은", "🙂 emoji", "a  b\n\tc"]
)
def test_pieces_add_up_to_the_text(tokenizer, words):
    pieces = tokenizer.pieces(words)
    assert "".join(piece for _, piece in pieces) == words
    assert [id_ for id_, _ in pieces] == tokenizer.encode(words)


def test_answers_decode_to_what_they_show(tokenizer):
    for korean in (False, True):
        tokens = [token for token in islice(text.pieces(tokenizer, 5, korean), 200) if token]
        shown = "".join(piece for _, piece in tokens)
        assert tokenizer.decode([id_ for id_, _ in tokens]).startswith(shown)
        assert len(shown) > 100


def test_other_seeds_soon_say_something_else(tokenizer):
    openings = {tuple(islice(text.pieces(tokenizer, seed, korean=False), 8)) for seed in range(200)}
    assert len(openings) > 150


def test_a_seed_depends_on_every_part_and_where_it_ends():
    assert text.seed_of(b"a", "b") == text.seed_of(b"a", "b")
    assert len({text.seed_of(*parts) for parts in [("ab", ""), ("a", "b"), ("", "ab"), (b"ab", ""), ("ab",)]}) == 5


def test_the_eos_tokens_begin_with_the_tokenizers_own(tokenizer):
    assert tokenizer.eos_ids == [EOS, TURN]


def test_the_chat_template_is_rendered(tokenizer):
    prompt = tokenizer.render([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    assert prompt == "<bos><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n"
    with pytest.raises(TemplateFailed):
        tokenizer.render([{"role": "assistant", "content": "Hello"}], add_generation_prompt=True)


def test_a_template_cannot_leave_its_sandbox(tokenizer):
    tokenizer.template, kept = "{{ messages.__class__.__mro__ }}", tokenizer.template
    try:
        with pytest.raises(TemplateFailed, match="unsafe"):
            tokenizer.render([])
    finally:
        tokenizer.template = kept


def test_buckets_of_token_counts():
    assert one_two_five(100) == (1, 2, 5, 10, 20, 50, 100)
    assert one_two_five(99) == (1, 2, 5, 10, 20, 50)


def test_label_values_are_escaped():
    metrics = Metrics('a"b\\c', 100, None)
    assert rb'model_name="a\"b\\c"' in metrics.render()
