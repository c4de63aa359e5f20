"""Definitions from anywhere: what is taken, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from dspool.protocol.definitions import KINDS, MAX_DEMOS, MAX_FIELDS, OWN_KEYS, Definition, DefinitionError, parse

pytestmark = pytest.mark.unit


def definition(**changes: Any) -> dict[str, Any]:
    signature = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer", "type": "int", "extra": 1}]}
    return {"signature": signature | changes.pop("signature", {}), "id": "ignored", **changes}


def test_a_definition_with_defaults() -> None:
    parsed = parse(definition())
    assert (parsed.program_type, parsed.instructions) == ("predict", None)
    assert [(field.name, field.type) for field in parsed.signature.inputs] == [("question", "str")]
    assert [(field.name, field.type) for field in parsed.signature.outputs] == [("answer", "int")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signature": {"outputs": []}}, "has no outputs"),
        ({"program_type": "reactor"}, "program_type 'reactor' is unknown; there are predict, chain_of_thought, react"),
        ({"program_type": ["predict"]}, "program_type ['predict'] is unknown"),
        ({"instructions": 3}, "instructions must be str | null; it is int"),
        ({"signature": {"inputs": [{"name": "answer"}]}}, "two fields have the same name: answer"),
        ({"signature": {"inputs": [{"name": "a b"}]}}, "'a b' must have a name that Python can use"),
        ({"signature": {"inputs": [{"name": "class"}]}}, "'class' must have a name"),
        ({"signature": {"inputs": [{"name": "x", "type": "os"}]}}, "the field 'x': the type 'os' is not one of"),
        ({"signature": {"inputs": [{"name": "x", "type": {"oneOf": []}}]}}, "the schema keyword 'oneOf'"),
        ({"signature": {"inputs": [{"name": f"x{n}"} for n in range(MAX_FIELDS)]}}, "more than 200 fields"),
        ({"signature": {"inputs": [{}]}}, "missing required field `name`"),
    ],
)
def test_what_is_wrong_with_a_definition_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        parse(definition(**changes))
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["lm", "config", "demos", "signature", "fields", "instructions", "model_config", "_x"])
def test_input_names_that_dspy_keeps_for_itself_are_refused_by_name(name: str) -> None:
    with pytest.raises(DefinitionError, match=f"the input name '{name}' is reserved"):
        parse(definition(signature={"inputs": [{"name": name}]}))


@pytest.mark.parametrize("name", ["items", "keys", "values", "get", "copy", "inputs", "labels", "lm", "demos"])
def test_output_names_that_only_look_dangerous_are_taken(name: str) -> None:
    parse(definition(signature={"outputs": [{"name": name}]}))


@pytest.mark.parametrize("name", ["signature", "fields", "instructions", "model_config", "_x"])
def test_output_names_that_a_signature_has_itself_are_refused(name: str) -> None:
    with pytest.raises(DefinitionError, match=f"the output name '{name}' is reserved"):
        parse(definition(signature={"outputs": [{"name": name}]}))


@pytest.mark.parametrize(
    ("kind", "side", "name"),
    [
        ("chain_of_thought", "inputs", "reasoning"),
        ("react", "inputs", "trajectory"),
        ("react", "inputs", "max_iters"),
        ("react", "outputs", "trajectory"),
    ],
)
def test_names_that_a_kind_adds_itself_are_refused_for_it(kind: str, side: str, name: str) -> None:
    other = "outputs" if side == "inputs" else "inputs"
    signature = {side: [{"name": name}], other: [{"name": "other"}]}
    parse({"signature": signature})
    more: dict[str, Any] = {"tools": []} if kind == "react" else {}
    for definition in (
        {"program_type": kind, **more},
        {"program_type": "best_of_n", "inner": kind, "n": 2, "reward": "a:b", "threshold": 1, **more},
    ):
        with pytest.raises(DefinitionError, match=f"the {side[:-1]} name '{name}' is reserved"):
            parse({"signature": signature, **definition}, allow_imports=True)


def test_a_definition_without_signature_is_refused() -> None:
    with pytest.raises(DefinitionError, match="has no signature"):
        parse({})


# Signatures as text.


def test_a_signature_may_be_text() -> None:
    signature = parse({"signature": "question, photos: list[image] -> answer: Literal['a', 'b']"}).signature
    assert [(field.name, field.type) for field in signature.inputs] == [("question", "str"), ("photos", "list[image]")]
    assert [(field.name, field.type) for field in signature.outputs] == [("answer", "Literal['a', 'b']")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("question", "it is written"),
        ("a -> b -> c", "it is written"),
        ("a b -> c", "can't be read"),
        ("a=1 -> c", "a field is written name or name: type"),
        ("*a -> c", "a field is written"),
        ("a, /, b -> c", "a field is written"),
        ("a ->", "has no outputs"),
        ("a: os.PathLike -> b", "the field 'a': the type 'os.PathLike' is not one of"),
        ("a, a -> b", "duplicate argument|two fields"),
        ("x" + "[" * 500 + " -> b", "can't be read"),
        ("x" * 20_000 + " -> b", "longer than 20,000 characters"),
    ],
)
def test_what_is_wrong_with_a_text_is_said(text: str, reason: str) -> None:
    with pytest.raises(DefinitionError, match=reason):
        parse({"signature": text})


# Kinds.

SIGNATURE = "question -> answer"
GOOD: dict[str, dict[str, Any]] = {
    "predict": {"signature": SIGNATURE, "instructions": "Be short.", "config": {"temperature": 1}},
    "chain_of_thought": {"signature": SIGNATURE, "demos": [{"question": "q", "reasoning": "r", "answer": "a"}]},
    "react": {"signature": SIGNATURE, "tools": ["app.tools:search"], "max_iters": 3},
    "best_of_n": {"signature": SIGNATURE, "inner": "predict", "n": 3, "reward": "app:reward", "threshold": 1},
    "program": {"program": "app.programs:Answerer", "arguments": {"k": 3}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind(kind: str) -> None:
    parsed = parse({"program_type": kind, **GOOD[kind]}, allow_imports=True)
    assert parsed.program_type == kind
    assert parsed.base == ("predict" if kind == "best_of_n" else kind)
    paths = {"react": ["app.tools:search"], "best_of_n": ["app:reward"], "program": ["app.programs:Answerer"]}
    assert parsed.imports == paths.get(kind, [])
    assert GOOD[kind].keys() <= {*OWN_KEYS[kind], *OWN_KEYS[parsed.base]}


@pytest.mark.parametrize("kind", ["react", "best_of_n", "program"])
def test_nothing_is_imported_for_who_may_not_ask_for_it(kind: str) -> None:
    with pytest.raises(DefinitionError, match="is an import path, and from here none is taken"):
        parse({"program_type": kind, **GOOD[kind]})


def test_a_react_without_tools_imports_nothing() -> None:
    assert parse({"program_type": "react", "signature": SIGNATURE, "tools": []}).imports == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"program_type": "react", "signature": SIGNATURE}, "the kind react needs 'tools'"),
        ({"program_type": "best_of_n", "signature": SIGNATURE, "n": 2, "reward": "a:b"}, "best_of_n needs 'threshold'"),
        ({"program_type": "program"}, "the kind program needs 'program'"),
        ({**GOOD["best_of_n"], "program_type": "best_of_n", "inner": "react"}, "the kind react needs 'tools'"),
        ({**GOOD["best_of_n"], "program_type": "best_of_n", "inner": "best_of_n"}, "Invalid enum value 'best_of_n'"),
        ({**GOOD["best_of_n"], "program_type": "best_of_n", "n": 0}, "Expected `int` >= 1"),
        ({**GOOD["react"], "program_type": "react", "max_iters": 1001}, "Expected `int` <= 1000"),
        ({"signature": SIGNATURE, "tools": []}, "'tools' belongs to react; this is a predict"),
        ({**GOOD["react"], "program_type": "react", "demos": []}, "'demos' belongs to predict and chain_of_thought"),
        (
            {**GOOD["best_of_n"], "program_type": "best_of_n", "max_iters": 3},
            "'max_iters' belongs to react; this is a best_of_n of predict",
        ),
        ({**GOOD["program"], "program_type": "program", "instructions": "x"}, "'instructions' belongs to predict"),
        ({**GOOD["react"], "program_type": "react", "tools": ["os.system"]}, "is written package.module:attribute"),
        ({**GOOD["react"], "program_type": "react", "tools": ["a:b", "a:b"]}, "a tool is named twice: a:b"),
        ({**GOOD["program"], "program_type": "program", "program": "__main__:x"}, "is in the script itself"),
        ({**GOOD["program"], "program_type": "program", "signature": "a -> a"}, "two fields have the same name"),
    ],
)
def test_what_does_not_belong_to_a_kind_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(DefinitionError, match=reason):
        parse(changes, allow_imports=True)


# Demos and settings.


@pytest.mark.parametrize(
    ("demos", "reason"),
    [
        (
            [{"question": "q", "answer": "a"}, {"quest": "q", "answer": "a"}],
            r"demos\[1\] has 'quest', .* answer, q",
        ),
        ([{"question": "q", "reasoning": "r", "answer": "a"}], r"demos\[0\] has 'reasoning'"),
        ([{"question": "q"}], r"demos\[0\] needs an input and an output"),
        ([{"answer": "a"}], r"demos\[0\] needs an input and an output"),
        ([{}], "needs an input"),
        (["q"], r"demos\[0\] must be object; it is str"),
        ({"question": "q"}, "demos must be array; it is object"),
        ([{"question": "q", "answer": "a"}] * (MAX_DEMOS + 1), "1,001 demos; at most 1,000"),
    ],
)
def test_demos_are_checked_against_the_fields(demos: Any, reason: str) -> None:
    with pytest.raises(DefinitionError, match=reason):
        parse({"signature": SIGNATURE, "demos": demos})


def test_demos_of_a_signature_without_inputs_need_none() -> None:
    parsed = parse({"signature": "-> joke", "demos": [{"joke": "j", "augmented": True}]})
    assert parsed.demos == [{"joke": "j", "augmented": True}]


@pytest.mark.parametrize("name", ["api_key", "api_token", "extra_headers", "aws_secret_access_key", "credentials"])
def test_a_key_is_no_setting(name: str) -> None:
    for trusted in (True, False):
        with pytest.raises(DefinitionError, match=f"config\\['{name}'\\] is an LM's own") as caught:
            parse({"signature": SIGNATURE, "config": {name: "sk-secret"}}, allow_imports=trusted)
        assert "sk-secret" not in str(caught.value)


def test_from_outside_settings_say_how_an_lm_answers_and_not_where_it_is() -> None:
    config = {"temperature": 0.5, "max_tokens": 9}
    assert parse({"signature": SIGNATURE, "config": config}).config == config
    elsewhere = {"api_base": "http://example.com"}
    with pytest.raises(DefinitionError, match=r"config\['api_base'\] is not taken from here; there are .*temperature"):
        parse({"signature": SIGNATURE, "config": elsewhere})
    assert parse({"signature": SIGNATURE, "config": elsewhere}, allow_imports=True).config == elsewhere


# Slips.


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"instruction": "x"}, "'instruction' is no key of a definition; did you mean 'instructions'?"),
        ({"demo": []}, "did you mean 'demos'?"),
        ({"kind": "react"}, "did you mean 'program_type'?"),
        ({"signature": {"input": [], "outputs": [{"name": "b"}]}}, "'signature.input' is no key"),
        (
            {"signature": {"outputs": [{"name": "b", "descriptoin": "x"}]}},
            "'signature.outputs[0].descriptoin' is no key",
        ),
    ],
)
def test_a_slip_is_named(extra: dict[str, Any], sentence: str) -> None:
    (found,) = parse({"signature": SIGNATURE, **extra}).misspelt
    assert sentence in found


def test_other_unknown_keys_are_ignored() -> None:
    extra = {"id": "one", "session_id": "s", "name": "n", "metadata": {"a": 1}, "description": "x", "misspelt": ["x"]}
    parsed = parse({"signature": {"outputs": [{"name": "b", "desc": "d", "extra": 1}], "x": 1}, **extra, "lm": "a/b"})
    assert parsed.misspelt == ()
    assert parsed.signature.outputs[0].desc == "d"


# Anything at all.

WORDS = st.sampled_from(
    [
        *Definition.__struct_fields__,
        "name",
        "type",
        "description",
        "properties",
        "items",
        "$ref",
        "$defs",
        "enum",
        "anyOf",
    ]
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    WORDS,
    st.sampled_from([*KINDS, "a -> b"]),
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(WORDS, st.text()), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(KINDS), st.dictionaries(WORDS, ANYTHING, max_size=3), ANYTHING, st.booleans())
def test_whatever_comes_is_parsed_or_refused_with_a_reason(
    kind: str, changes: dict[str, Any], field_type: Any, trusted: bool
) -> None:
    typed = {"inputs": [{"name": "question", "type": field_type}], "outputs": [{"name": "answer"}]}
    for data in (
        changes,
        {"program_type": kind, **GOOD[kind], **changes},
        {"signature": typed},
        {"signature": field_type},
    ):
        try:
            parsed = parse(data, allow_imports=trusted)
        except DefinitionError:
            continue
        assert trusted or not parsed.imports


@pytest.mark.parametrize(
    ("definition", "told"),
    [
        (
            {"signature": {"inputs": ["question"], "outputs": ["answer"]}},
            'signature.inputs[0] must be object, as in {"name": "question", "type": "str"}; it is str',
        ),
        ({"signature": "a -> b", "tools": "m:f"}, "tools must be array; it is str"),
        ({"program": "m:f"}, "'program' belongs to program; this is a predict, since it has no program_type"),
        (
            {"signature": {"inputs": [{"name": "a"}], "ouputs": [{"name": "b"}]}},
            "signature.outputs needs at least one field; 'signature.ouputs' is no key of a definition; did you mean",
        ),
        ({"signature": "a -> b: Literal[x, y]"}, "a choice that is text has quotes around it: 'x'"),
        ({"signature": {"outputs": [{"name": "b", "type": "str[]"}]}}, "as an object: invalid syntax"),
        ('{"signature": "a -> b"}', "a definition is an object, not str; JSON text has to be read first"),
    ],
)
def test_a_slip_is_told_in_the_words_of_who_made_it(definition: Any, told: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        parse(definition)
    assert told in str(caught.value)
    assert "<" not in str(caught.value)
