from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asrkit.config import describe, from_dict, load, peek, save, to_dict
from asrkit.errors import AsrkitError

PROPERTY = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass
class Encoder:
    dim: int = 8
    """Width."""
    dropout: float = 0.1
    """Share of
    zeros."""
    convolutions: list[list[int]] = field(default_factory=lambda: [[512, 10, 5], [512, 3, 2]])
    """Channels, kernel, stride."""
    scales: tuple[float, float] = (1.0, 2.0)
    """Two factors."""

    def __post_init__(self) -> None:
        if self.dropout >= 1:
            raise AsrkitError(f"encoder.dropout is {self.dropout}", mend="below 1")
        if self.dim < 1:
            raise AsrkitError("the width is not positive")


@dataclass
class Inner:
    rate: float = 1.0
    """Rate."""

    def __post_init__(self) -> None:
        if self.rate > 1:
            raise AsrkitError(f"inner.rate is {self.rate}", mend="1 or less")


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    """Inner."""


@dataclass
class Common:
    name: str = "run"
    """Name."""
    rate: float = 1e-3
    """Rate."""
    shuffle: bool = False
    """Order."""
    limit: float | None = None
    """Bound."""
    tag: str | None = None
    """Tag."""
    sets: list[str] = field(default_factory=list)
    """Sets."""
    weights: dict[str, float] = field(default_factory=lambda: {"ctc": 1.0})
    """Weights."""
    encoder: Encoder = field(default_factory=lambda: Encoder(dim=16))
    """Encoder."""
    teacher: Encoder | None = None
    """Teacher."""
    outer: Outer = field(default_factory=Outer)
    """Outer."""


@dataclass
class Required:
    dim: int
    """No default."""
    inner: Encoder
    """Section without a default."""


Run = make_dataclass(
    "Run",
    [
        ("head", Encoder, field(default_factory=Encoder, metadata={"doc": "Head."})),
        ("updates", int, field(default=10, metadata={"doc": "Updates."})),
    ],
    bases=(Common,),
)


def read(tmp_path: Path, text: str, *overrides: str, schema: Any = Run) -> Any:
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return load(schema, path, overrides)


def complaint(tmp_path: Path, text: str, *overrides: str, schema: Any = Run) -> str:
    with pytest.raises(AsrkitError) as caught:
        read(tmp_path, text, *overrides, schema=schema)
    message = str(caught.value).replace(f"{tmp_path}/", "")
    assert "\n" not in message
    return message


def test_defaults_are_those_of_the_dataclass() -> None:
    assert load(Run, None) == Run()


def test_sources_win_in_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "lowest.yaml").write_text("rate: 1\nupdates: 1\nencoder: {dim: 1, dropout: 0.5}\nsets: [a, b]\n")
    (tmp_path / "sub" / "middle.yaml").write_text("base: ../lowest.yaml\nupdates: 2\nencoder:\n  dim: 2\nsets: [c]\n")
    config = read(tmp_path, "base: sub/middle.yaml\nencoder:\n  dim: 3\n", "encoder.dim=4", "encoder.dim=5")
    assert (config.rate, config.updates, config.encoder.dim, config.encoder.dropout) == (1.0, 2, 5, 0.5)
    assert config.sets == ["c"]


def test_a_default_instance_of_a_section_survives_a_partial_one(tmp_path: Path) -> None:
    assert read(tmp_path, "encoder: {dropout: 0}").encoder == Encoder(dim=16, dropout=0.0)
    assert read(tmp_path, "teacher: {dropout: 0}").teacher == Encoder(dim=8, dropout=0.0)
    assert from_dict(Run, {"encoder": {"dropout": 0}}).encoder == Encoder(dim=16, dropout=0.0)


def test_dictionaries_are_merged(tmp_path: Path) -> None:
    assert read(tmp_path, "weights: {diversity: 1e-1}").weights == {"ctc": 1.0, "diversity": 0.1}


def test_values_may_refer_to_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASRKIT_TEST_UPDATES", "12")
    config = read(tmp_path, "rate: ${encoder.dropout}\nname: ${name_of}", "name=a-${updates}", schema=_named())
    assert (config.rate, config.name) == (0.1, "a-10")
    assert read(tmp_path, "updates: ${oc.env:ASRKIT_TEST_UPDATES}").updates == 12


def _named() -> Any:
    return make_dataclass("Named", [("name_of", str, "x")], bases=(Run,))


@pytest.mark.parametrize(
    ("spelling", "value"),
    [("5e-5", 5e-5), ("1e-4", 1e-4), ("'1e-4'", 1e-4), ("1.e-4", 1e-4), ("3", 3.0), (".5", 0.5), (".inf", math.inf)],
)
def test_numbers_as_people_write_them(tmp_path: Path, spelling: str, value: float) -> None:
    for config in (read(tmp_path, f"rate: {spelling}"), read(tmp_path, "", f"rate={spelling}")):
        assert config.rate == value
        assert type(config.rate) is float


@pytest.mark.parametrize(("spelling", "value"), [("7", 7), ("1e5", 100_000), ("3.0", 3), ("'7'", 7), ("1_000", 1000)])
def test_integers_as_people_write_them(tmp_path: Path, spelling: str, value: int) -> None:
    config = read(tmp_path, f"updates: {spelling}")
    assert config.updates == value
    assert type(config.updates) is int


@pytest.mark.parametrize(
    "spelling", ["1.5", "'1.5'", "true", "null", "", "abc", "[1]", "{a: 1}", ".inf", ".nan", "1e-4"]
)
def test_what_is_no_integer(tmp_path: Path, spelling: str) -> None:
    assert complaint(tmp_path, f"\nupdates: {spelling}").startswith("run.yaml:2: 'updates' takes an integer, not ")


@pytest.mark.parametrize(
    ("spelling", "value"),
    [("true", True), ("no", False), ("On", True), ("1", True), ("0", False), ("'false'", False)],
)
def test_truth_values(tmp_path: Path, spelling: str, value: bool) -> None:
    assert read(tmp_path, f"shuffle: {spelling}").shuffle is value
    assert read(tmp_path, "", f"shuffle={spelling}").shuffle is value


@pytest.mark.parametrize("text", ["010", "1e3", "yes", "null", "a=b", "[a", "a: b", "~", "", "1:30", "'010'"])
def test_text_on_the_command_line_is_taken_as_it_stands(text: str) -> None:
    assert load(Run, None, [f"name={text}"]).name == text.strip("'")


def test_optional_text_can_be_unset(tmp_path: Path) -> None:
    assert read(tmp_path, "tag: old", "tag=null").tag is None
    assert read(tmp_path, "tag: old", "tag=12").tag == "12"
    assert read(tmp_path, "limit: 1", "limit=null").limit is None


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("encoder:\n  dimm: 4", [], "run.yaml:2: unknown key 'encoder.dimm' (did you mean 'encoder.dim'?)"),
        ("encodr:\n  dim: 4", [], "run.yaml:1: unknown key 'encodr' (did you mean 'encoder'?)"),
        ("", ["encoder.dimm=4"], "command line: unknown key 'encoder.dimm' (did you mean 'encoder.dim'?)"),
        (
            "scales: 0",
            [],
            "run.yaml:1: unknown key 'scales' (did you mean 'encoder.scales' or 'teacher.scales' or 'head.scales'?)",
        ),
        (
            "head: {zzz: 1}",
            [],
            "run.yaml:1: unknown key 'head.zzz' (known in head: dim, dropout, convolutions, scales)",
        ),
        ("head.dim: 1", [], "run.yaml:1: 'head.dim' is written as one key (nest it: one line per section)"),
        ("name: 010", [], "run.yaml:1: 'name' takes a string, not 8 (put it in quotes)"),
        ("sets: [a, 100]", [], "run.yaml:1: 'sets.1' takes a string, not 100 (put it in quotes)"),
        ("sets: a", [], "run.yaml:1: 'sets' takes a list, not 'a' (write [a])"),
        ("shuffle: 2", [], "run.yaml:1: 'shuffle' takes true or false, not 2"),
        ("limit: a", [], "run.yaml:1: 'limit' takes a number or null, not 'a'"),
        ("rate:", [], "run.yaml:1: 'rate' takes a number, not null (give it a value, or remove the line)"),
        ("encoder: 5", [], "run.yaml:1: 'encoder' takes a section of keys, not 5"),
        ("encoder: {dim: 3}", ["encoder=x"], "command line: 'encoder' takes a section of keys, not 'x'"),
        ("encoder: {scales: [1]}", [], "run.yaml:1: 'encoder.scales' takes a list of 2, not [1]"),
        ("encoder: {convolutions: [[1, a]]}", [], "run.yaml:1: 'encoder.convolutions.0.1' takes an integer, not 'a'"),
        ("weights: {1: 2}", [], "run.yaml:1: 'weights' has the name 1 (put it in quotes)"),
        ("weights: {ctc: a}", [], "run.yaml:1: 'weights.ctc' takes a number, not 'a'"),
        ("rate: 1\n\nrate: 2", [], "run.yaml: key 'rate' is given twice, on lines 1 and 3 (keep one)"),
        (
            "head:\n  dim: 1\n  dim: 2",
            [],
            "run.yaml: key 'head.dim' is given twice, on lines 2 and 3 (keep one)",
        ),
        ("rate: 1\nname: [a", [], "run.yaml:2: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("- rate", [], "run.yaml: holds no KEY: VALUE pairs"),
        ("base: rnu.yaml", [], "run.yaml:1: base file 'rnu.yaml' does not exist (did you mean 'run.yaml'?)"),
        (
            "base: run.yaml",
            [],
            "run.yaml:1: base 'run.yaml' leads back to a file that builds on it (remove one base)",
        ),
        ("base: [a]", [], "run.yaml:1: base takes the name of a YAML file, not ['a']"),
        ("rate: ${ratee}", [], "run.yaml:1: 'rate' cannot be resolved: Interpolation key 'ratee' not found"),
        ("", ["rate"], "command line: 'rate' is not KEY=VALUE (for example seed=2)"),
        ("", ["=1"], "command line: '=1' is not KEY=VALUE (for example seed=2)"),
        ("", ["sets=[a"], "command line: the value of 'sets=[a' is not valid YAML (quote it)"),
        ("head:\n  dropout: 1", [], "run.yaml:2: head: encoder.dropout is 1.0 (below 1)"),
        ("encoder:\n  dropout: 1", [], "run.yaml:2: encoder.dropout is 1.0 (below 1)"),
        ("encoder:\n  dim: 2", ["encoder.dropout=1"], "command line: encoder.dropout is 1.0 (below 1)"),
        ("outer: {inner: {}}", ["outer.inner.rate=2"], "command line: outer.inner.rate is 2.0 (1 or less)"),
        ("head:\n  dim: 0", [], "run.yaml:1: head: the width is not positive"),
    ],
)
def test_complaints(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    said = complaint(tmp_path, text, *overrides)
    assert said == message


def test_the_file_that_is_to_blame_is_named(tmp_path: Path) -> None:
    (tmp_path / "low.yaml").write_text("head:\n  dim: 2\n\n  dimm: 3\n")
    assert complaint(tmp_path, "base: low.yaml\nhead: {dropout: 0}").startswith("low.yaml:4: unknown key 'head.dimm'")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "pretrain.yaml").write_text("")
    with pytest.raises(AsrkitError, match=r"pretrian\.yaml: no such config file \(did you mean 'pretrain\.yaml'\?\)"):
        load(Run, tmp_path / "pretrian.yaml")
    with pytest.raises(AsrkitError, match="cannot be read: Is a directory"):
        load(Run, tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    with pytest.raises(AsrkitError, match=r"latin\.yaml: not UTF-8 at byte 6"):
        load(Run, tmp_path / "latin.yaml")
    with pytest.raises(AsrkitError, match="cannot be written"):
        save(Run(), tmp_path)


def test_values_without_a_default_are_required(tmp_path: Path) -> None:
    assert read(tmp_path, "dim: 3", schema=Required) == Required(3, Encoder())
    assert complaint(tmp_path, "inner: {dim: 3}", schema=Required) == "run.yaml: 'dim' has no value (set it: int)"
    assert next(iter(describe(Required))).default is MISSING


def test_peek_reads_a_key_before_the_schema_is_known(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("method: finetune\nunheard_of: ${missing}\n")
    assert peek("method", path) == "finetune"
    assert peek("method", path, ["method=pretrain"]) == "pretrain"
    assert peek("nothing", path) is None
    assert peek("method", None) is None


def test_describe_covers_inherited_nested_and_made_fields() -> None:
    rows = {row.key: row for row in describe(Run)}
    assert list(rows)[:2] == ["name", "rate"]
    assert rows["encoder.dropout"].doc == "Share of zeros."
    assert (rows["encoder.dim"].default, rows["head.dim"].default, rows["teacher.dim"].default) == (16, 8, 8)
    assert (rows["updates"].doc, rows["teacher"].doc) == ("Updates.", "Teacher.")
    assert rows["limit"].type == "float | None"
    assert rows["encoder.convolutions"].type == "list[list[int]]"
    assert rows["weights"].type == "dict[str, float]"
    assert all(row.doc for row in rows.values())


def test_every_described_key_takes_its_own_default() -> None:
    for row in describe(Run):
        if not row.key.startswith("teacher."):
            text = row.default if isinstance(row.default, str) else yaml.safe_dump(row.default, default_flow_style=True)
            assert load(Run, None, [f"{row.key}={text.removesuffix('...' + chr(10)).strip()}"]) == Run()


FINITE = st.floats(allow_nan=False)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda text: text != "???")
TRICKY = st.sampled_from(
    ["1e-4", "yes", "null", "~", "010", "1:30", "${a}", r"\${a}", r"\\${", "a: b", "# c", " x ", "-"]
)
ENCODERS = st.builds(
    Encoder,
    dim=st.integers(1, 10**6),
    dropout=st.floats(0, 1, exclude_max=True),
    convolutions=st.lists(st.lists(st.integers(), max_size=3), max_size=3),
    scales=st.tuples(FINITE, FINITE),
)
RUNS = st.builds(
    Run,
    name=WORDS | TRICKY,
    rate=FINITE,
    shuffle=st.booleans(),
    limit=st.none() | FINITE,
    tag=st.none() | WORDS | TRICKY,
    sets=st.lists(WORDS | TRICKY, max_size=3),
    weights=st.dictionaries(WORDS | TRICKY, FINITE, max_size=3).map(lambda more: {"ctc": 1.0, **more}),
    encoder=ENCODERS,
    teacher=st.none() | ENCODERS,
    head=ENCODERS,
    updates=st.integers(),
)


@PROPERTY
@given(config=RUNS)
def test_what_is_saved_is_loaded(tmp_path: Path, config: Any) -> None:
    path = tmp_path / "saved.yaml"
    save(config, path)
    assert load(Run, path) == config
    assert from_dict(Run, to_dict(config)) == config


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | TRICKY | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from([*(row.key for row in describe(Run)), "encoder", "head", "base", "encoder.dim.x", "nothing"])
PIECES = [
    *"abn0 1\n\t[]{},:?-&*!|>'\"%@#=<~$.\\",
    *(
        "\n  ",
        ": ",
        "- ",
        "rate: ",
        "encoder:\n  ",
        "dim: ",
        "name: ",
        "&a ",
        "*a",
        "${",
        "${rate}",
        "${oc.env:",
        "<<: ",
    ),
    *("!!int ", "!!float ", "!!set ", "!!bool ", "!!timestamp ", "!!python/none "),
]
TOKENS = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)


def settle(tmp_path: Path, text: str, *overrides: str) -> None:
    """Either there is a config, or a one-line complaint."""
    said = "said something"
    try:
        config = read(tmp_path, text, *overrides)
        assert (type(config), type(config.rate), type(config.updates)) == (Run, float, int)
    except AsrkitError as error:
        said = str(error)
    assert said
    assert "\n" not in said


@PROPERTY
@given(text=TOKENS | st.text(max_size=40))
def test_malformed_files_end_in_one_line(tmp_path: Path, text: str) -> None:
    settle(tmp_path, text)


@PROPERTY
@given(
    tree=st.dictionaries(KEYS, VALUES, max_size=4),
    nested=st.dictionaries(st.sampled_from(["dim", "scales", "x"]), VALUES),
)
def test_values_of_any_type_end_in_one_line(tmp_path: Path, tree: dict[str, Any], nested: dict[str, Any]) -> None:
    settle(tmp_path, yaml.safe_dump({**tree, "head": nested}, allow_unicode=True))


@PROPERTY
@given(
    items=st.lists(
        st.builds("{}={}".format, KEYS | st.text(max_size=8), TOKENS | st.text(max_size=8)) | st.text(max_size=8)
    )
)
def test_overrides_of_any_kind_end_in_one_line(tmp_path: Path, items: list[str]) -> None:
    settle(tmp_path, "rate: 1", *items)
