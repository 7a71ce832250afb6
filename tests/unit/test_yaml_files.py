import os
from itertools import pairwise
from typing import Annotated, Literal

import pytest
from pydantic import Discriminator, Field, Tag, model_validator

from helixsim.errors import ScenarioError
from helixsim.yaml_files import (
    MAX_FILE_BYTES,
    Bytes,
    BytesPerSecond,
    FileModel,
    Seconds,
    did_you_mean,
    located_error,
    read_yaml,
    validate,
    yaml_text,
)


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "file.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_yaml(path)

    return read


# -- reading


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-3", -3),
        ("010", 10),
        ("1:30", "1:30"),
        ("1e3", 1000.0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("null", None),
        ("", None),
        ("10 GB", "10 GB"),
        ("'1'", "1"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("[1, [2, a]]", [1, [2, "a"]]),
        ("{a: {b: }}", {"a": {"b": None}}),
    ],
)
def test_plain_values_mean_what_they_look_like(read, text, value):
    found = read(text)
    assert found == value
    assert type(found) is type(value)


def test_infinity_and_nan_are_numbers(read):
    assert read("[.inf, -.inf]") == [float("inf"), float("-inf")]
    assert read(".nan") != read(".nan")


def test_anchors_and_merges_work(read):
    text = "base: &base {a: 1, b: 2}\nother: {deep: {<<: *base, b: 3}}\n"
    assert read(text)["other"]["deep"] == {"a": 1, "b": 3}


def test_a_value_merged_at_several_depths_repeats_no_key(read):
    text = "deep: {x: &a {<<: {p: 1}, p: 2}}\nflat: {<<: *a}\n"
    assert read(text) == {"deep": {"x": {"p": 2}}, "flat": {"p": 2}}


def test_a_byte_order_mark_is_skipped(read):
    assert read(b"\xef\xbb\xbfa: 1\n") == {"a": 1}


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1,\n", r"line 3, column 1: not valid YAML"),
        ("a: 1\n b: 2\n", r"line 2"),
        ("\tb: 2\n", r"line 1, column 1"),
        ("a: 1\nb:\n  c: 2\n  c: 3\n", r"line 4, column 3: duplicate key 'c'"),
        ("a: 1\n'a': 3\n", r"duplicate key 'a'"),
        ("? [a, b]\n: 1\n", r"a key must be plain text"),
        ("a: 1\n---\nb: 2\n", r"line 2, column 1: not valid YAML: but found another document"),
        ("a: &a [*a]\n", r"this value contains itself"),
        ("a: *b\n", r"undefined alias"),
        (BOMB, r"aliases make this file"),
        ("a: !!python/object/apply:os.system [ls]\n", r"could not determine a constructor"),
        ("a: !secret x\n", r"could not determine a constructor"),
        ("a: !!int x\n", r"not usable YAML"),
        ("9" * 5000, r"not usable YAML"),
        ("[" * 100 + "]" * 100, r"nested more than 50 deep"),
        ("[" * 100_000, r"not valid YAML|nested"),
        ("{a: " * 60 + "1" + "}" * 60, r"nested more than 50 deep"),
        (b"a: 1\nb: \xff\n", r"line 2: not UTF-8"),
        (b"a: \x00\n", r"not valid YAML"),
        ("a: \x07\n", r"not valid YAML"),
        ("<<: 3\n", r"not valid YAML"),
    ],
)
def test_unusable_files_are_refused_with_the_place(read, text, message):
    with pytest.raises(ScenarioError, match=message) as caught:
        read(text)
    assert caught.value.file.endswith("file.yaml")


def test_a_large_file_without_aliases_is_fine(read):
    assert len(read("[" + "1," * 50_000 + "]")) == 50_000


def test_an_oversized_file_is_refused(tmp_path):
    path = tmp_path / "large.yaml"
    with path.open("wb") as stream:
        stream.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ScenarioError, match="larger than 16 MB"):
        read_yaml(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match="no such file"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(ScenarioError, match="no regular file"):
        read_yaml(tmp_path)
    with pytest.raises(ScenarioError, match="cannot be read: File name too long"):
        read_yaml(tmp_path / ("x" * 5000))
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ScenarioError, match="no regular file"):
        read_yaml(tmp_path / "pipe.yaml")


# -- validating


class Cat(FileModel):
    kind: Literal["cat"]
    lives: int


class Dog(FileModel):
    kind: Literal["dog"]
    walk: Seconds


class House(FileModel):
    schema_version: Literal[1] = Field(alias="schema")
    floors: Annotated[tuple[int, ...], Field(strict=False)] = ()
    pets: dict[str, Annotated[Cat | Dog, Field(discriminator="kind")]] = Field({})
    size: Annotated[
        Annotated[int, Tag("number")] | Annotated[list[int], Tag("column")],
        Discriminator(lambda value: "column" if isinstance(value, list) else "number"),
    ] = 1
    memory: Bytes = 0.0
    nic: BytesPerSecond = 0.0

    @model_validator(mode="after")
    def _check(self):
        if 13 in self.floors:
            raise located_error(f"floors[{self.floors.index(13)}]", "unlucky")
        if 14 in self.floors:
            raise ValueError("no floor 14 please")
        return self


def fails(data):
    with pytest.raises(ScenarioError) as caught:
        validate(House, data, "house.yaml")
    return caught.value


def test_a_good_file_becomes_a_frozen_model():
    house = validate(
        House,
        {"schema": 1, "floors": [1, 2], "memory": "1 kB", "nic": "8 bit/s", "pets": {}},
        None,
    )
    assert (house.floors, house.memory, house.nic) == ((1, 2), 1000.0, 1.0)


@pytest.mark.parametrize(
    ("data", "where", "message"),
    [
        ({}, "schema", "this key is missing"),
        ({"schema": 2}, "schema", "should be 1, not 2"),
        ({"schema": 1, "floor": []}, "floor", "unknown key; did you mean 'floors'?"),
        (
            {"schema": 1, "zzz": []},
            "zzz",
            "unknown key; known are floors, memory, nic, pets, schema, size",
        ),
        (
            {"schema": 1, "floors": [1, "2"]},
            "floors[1]",
            "should be a valid integer, not '2'",
        ),
        ({"schema": 1, "floors": [1, True]}, "floors[1]", "should be a valid integer, not True"),
        ({"schema": 1, "floors": [1, 2.0]}, "floors[1]", "should be a valid integer, not 2.0"),
        ({"schema": 1, "floors": {}}, "floors", "should be a list, not keys and values"),
        ({"schema": 1, "size": [1, "x"]}, "size[1]", "should be a valid integer, not 'x'"),
        ({"schema": 1, "size": "x"}, "size", "should be a valid integer, not 'x'"),
        (
            {"schema": 1, "pets": {"tom": {"kind": "cat", "lives": None}}},
            "pets.tom.lives",
            "should be a valid integer, not nothing",
        ),
        (
            {"schema": 1, "pets": {"rex": {"kind": "dog", "walk": "1 ms", "wlak": 1}}},
            "pets.rex.wlak",
            "unknown key; did you mean 'walk'?",
        ),
        ({"schema": 1, "pets": {"rex": {"kind": "dog"}}}, "pets.rex.walk", "this key is missing"),
        (
            {"schema": 1, "pets": {"rex": {"kind": "dog", "walk": 5}}},
            "pets.rex.walk",
            "5 has no unit; write a number and a unit, such as '1 ms'",
        ),
        (
            {"schema": 1, "nic": "10 GB"},
            "nic",
            "'10 GB' is not a bandwidth quantity; write a number and a unit, such as '10 Gbit/s'",
        ),
        ({"schema": 1, "floors": [1, 13]}, "floors[1]", "unlucky"),
        ({"schema": 1, "floors": [14]}, None, "no floor 14 please"),
        ({"schema": 1, "pets": {1: {}}}, "pets", None),
        ({"schema": 1, 5: {}}, None, None),
        (None, None, "this file is empty; it should hold keys and values"),
        ([1], None, "this file holds a list; it should hold keys and values"),
    ],
)
def test_a_mistake_is_named_with_its_place(data, where, message):
    error = fails(data)
    assert error.file == "house.yaml"
    if message is not None:
        assert (error.where, error.message) == (where, message)


def test_all_mistakes_are_named_in_one_message():
    error = fails({"floor": 1, "floors": ["a"], "nic": 1})
    assert str(error).splitlines() == [
        "house.yaml: 4 mistakes",
        "  schema: this key is missing",
        "  floors[0]: should be a valid integer, not 'a'",
        "  nic: 1 has no unit; write a number and a unit, such as '10 Gbit/s'",
        "  floor: unknown key; did you mean 'floors'?",
    ]


def test_many_mistakes_are_counted():
    error = fails({"schema": 1, "floors": ["a"] * 20})
    lines = str(error).splitlines()
    assert len(lines) == 10
    assert lines[-1] == "  and 12 more"


def test_long_values_are_cut():
    assert len(str(fails({"schema": 1, "floors": ["a" * 10_000]}))) < 200


def test_quantities_are_text_in_the_json_schema():
    properties = House.model_json_schema()["properties"]
    assert properties["nic"]["type"] == "string"
    assert properties["nic"]["examples"] == ["10 Gbit/s"]
    assert properties["memory"]["pattern"].startswith("^")


# -- writing


def test_data_is_written_compactly_with_keys_in_order():
    data = {"b": {"y": [1, 2], "x": "10 GB/s"}, "a": [{"name": "n", "type": "08"}]}
    assert yaml_text(data) == ("b:\n  y: [1, 2]\n  x: 10 GB/s\na:\n- {name: n, type: '08'}\n")


def test_data_that_is_shared_is_written_out():
    shared = [1]
    assert yaml_text([shared, shared]) == "- [1]\n- [1]\n"


def test_a_name_is_close_to_another_or_the_first_few_are_listed():
    names = [f"node-{i}" for i in range(100)]
    assert did_you_mean("nod-7", names) == "did you mean 'node-7'?"
    hint = did_you_mean("xyz", names)
    assert hint.startswith("known are node-0, node-1,")
    assert hint.endswith("node-18, and 81 more")


class Stairs(FileModel):
    steps: Annotated[
        tuple[Annotated[tuple[int, int], Field(strict=False)], ...],
        Field(strict=False, min_length=1, max_length=2),
    ]


@pytest.mark.parametrize(
    ("steps", "where", "message"),
    [
        ([], "steps", "should have at least 1 entry, not none"),
        ([[1, 2]] * 3, "steps", "should have at most 2 entries, not 3"),
        ([[1, 2, 3]], "steps[0]", "should have at most 2 entries, not 3"),
        (["x"], "steps[0]", "should be a list, not 'x'"),
    ],
)
def test_lists_of_a_wrong_length_are_one_mistake(steps, where, message):
    with pytest.raises(ScenarioError) as caught:
        validate(Stairs, {"steps": steps}, "stairs.yaml")
    assert (caught.value.where, caught.value.message) == (where, message)
