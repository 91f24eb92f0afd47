from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from policies.config import StrictModel
from rlhf.config_loading.loader import ConfigError, describe_fields, dump_config, load_config
from rlhf.config_loading.yaml import dump_yaml, parse_yaml


class Full(StrictModel):
    """Everything trains."""

    kind: Literal["full"] = "full"
    """Tag."""
    epsilon: float = 1.0
    """Shared by both variants."""


class Schedule(StrictModel):
    """Schedule."""

    warmup: int = 0
    """Steps."""


class Lora(StrictModel):
    """Adapters train."""

    kind: Literal["lora"] = "lora"
    """Tag."""
    epsilon: float = 2.0
    """Shared by both variants."""
    rank: int = Field(default=8, ge=1)
    """Rank, dimensions."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Modules."""
    schedule: Schedule = Schedule()
    """A section of one variant."""


Tuning = Annotated[Full | Lora, Field(discriminator="kind")]


class Optimizer(StrictModel):
    """Optimizer."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak, per step."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates."""
    weight_decay: float = 0.0
    """Per step."""


class Model(StrictModel):
    """Model."""

    path: str
    """Folder of the model."""
    tuning: Tuning = Lora(rank=4)
    """What trains."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision."""


class RuleSource(StrictModel):
    """A rule."""

    kind: Literal["rule"] = "rule"
    """Tag."""
    rule: str
    """Named like its tag."""
    weight: float = 1.0
    """Factor."""


class ModelSource(StrictModel):
    """A model."""

    kind: Literal["model"] = "model"
    """Tag."""
    folder: Path
    """Folder."""
    arguments: dict[str, int | str] = Field(default={})
    """Extra."""


class Run(StrictModel):
    """Root."""

    run_dir: str
    """Folder of the run."""
    model: Model
    """The model."""
    optimizer: Optimizer = Optimizer(learning_rate=1e-3, betas=(0.8, 0.9))
    """Another default than the class's own."""
    reward: tuple[Annotated[RuleSource | ModelSource, Field(discriminator="kind")], ...] = ()
    """Sources."""
    ptx: Optimizer | None = None
    """Optional section."""
    steps: int = Field(default=10, ge=1)
    """Steps."""
    even: int = 2
    """Even number."""
    tracking: Literal["online", "off"] = "online"
    """Choice whose word YAML 1.1 reads as false."""
    verbose: bool = False
    """Switch."""

    @model_validator(mode="after")
    def _is_even(self) -> "Run":
        if self.even % 2:
            raise ValueError(f"even={self.even} must be a multiple of two")
        return self


BASE = "run_dir: runs/a\nmodel:\n  path: m\n"


@pytest.fixture
def load(tmp_path: Path):
    def load_text(text: str = BASE, *overrides: str) -> Run:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(Run, path, list(overrides))

    return load_text


@pytest.fixture
def complaints(load):
    def lines(text: str = BASE, *overrides: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return str(caught.value).splitlines()

    return lines


# --- what wins --------------------------------------------------------------------------------------------------------


def test_overrides_win_over_the_file_and_the_file_over_defaults(load) -> None:
    config = load(BASE + "steps: 20\neven: 4\n", "steps=30")
    assert (config.steps, config.even, config.verbose) == (30, 4, False)


def test_a_section_given_in_part_keeps_the_default_that_the_enclosing_class_chose(load) -> None:
    optimizer = load(BASE + "optimizer: {weight_decay: 0.5}\n").optimizer
    assert optimizer == Optimizer(learning_rate=1e-3, betas=(0.8, 0.9), weight_decay=0.5)


def test_an_override_into_an_untouched_section_keeps_its_default_variant(load) -> None:
    assert load(BASE, "model.tuning.epsilon=3.5").model.tuning == Lora(rank=4, epsilon=3.5)


def test_switching_the_variant_keeps_shared_keys_and_drops_the_others(load) -> None:
    text = "run_dir: a\nmodel: {path: m, tuning: {kind: lora, rank: 2, epsilon: 7.0}}\n"
    assert load(text, "model.tuning.kind=full").model.tuning == Full(epsilon=7.0)


def test_variant_and_its_keys_may_be_overridden_in_any_order(load) -> None:
    text = "run_dir: a\nmodel: {path: m, tuning: {kind: full}}\n"
    assert load(text, "model.tuning.rank=3", "model.tuning.kind=lora").model.tuning == Lora(rank=3)
    assert load(text, "model.tuning.kind=lora", "model.tuning.rank=3").model.tuning == Lora(rank=3)


def test_naming_the_same_variant_again_drops_nothing(load) -> None:
    text = "run_dir: a\nmodel: {path: m, tuning: {kind: lora, rank: 2}}\n"
    assert load(text, "model.tuning.kind=lora").model.tuning == Lora(rank=2)


def test_an_override_creates_missing_sections(load) -> None:
    assert load("{}", "run_dir=a", "model.path=m", "ptx.learning_rate=0.5").ptx == Optimizer(learning_rate=0.5)


def test_null_empties_an_optional_section(load) -> None:
    assert load(BASE + "ptx: {learning_rate: 0.5}\n", "ptx=null").ptx is None


def test_an_override_reaches_into_a_list(load) -> None:
    text = BASE + "reward:\n- {kind: rule, rule: short}\n- {kind: model, folder: rm}\n"
    reward = load(text, "reward.0.weight=0.25", "reward.1.arguments.depth=3").reward
    assert reward == (RuleSource(rule="short", weight=0.25), ModelSource(folder=Path("rm"), arguments={"depth": 3}))


def test_the_same_config_loads_without_a_file() -> None:
    assert load_config(Run, None, ["run_dir=runs/a", "model.path=m"]).model.tuning == Lora(rank=4)


def test_a_loaded_config_cannot_be_changed(load) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load().steps = 3


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e-5", "1.0e-5", "0.00001", "1E-5", "+1e-05", "001e-5"])
def test_every_spelling_of_a_float_is_a_number(load, text: str) -> None:
    assert load(BASE + f"optimizer: {{learning_rate: {text}}}\n").optimizer.learning_rate == 1e-5
    assert load(BASE, f"optimizer.learning_rate={text}").optimizer.learning_rate == 1e-5


def test_a_whole_number_is_a_valid_float_and_a_list_a_valid_tuple(load) -> None:
    assert load(BASE, "optimizer.learning_rate=1", "optimizer.betas=[0.1, 1]").optimizer == Optimizer(
        learning_rate=1.0, betas=(0.1, 1.0)
    )


def test_off_is_a_word_not_a_boolean(load) -> None:
    assert load(BASE, "tracking=off").tracking == "off"
    assert load(BASE + "tracking: off\n").tracking == "off"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        ("1_000", 1000),
        ("-3", -3),
        ("2026-01-01", "2026-01-01"),
        ("12:30:00", "12:30:00"),
        ("yes", "yes"),
        ("TRUE", True),
        ("~", None),
        (".inf", float("inf")),
        ("module:function", "module:function"),
        ("data.jsonl[:80%]", "data.jsonl[:80%]"),
    ],
)
def test_scalars_follow_the_yaml_1_2_core_schema(text: str, value: object) -> None:
    parsed = parse_yaml(text, source="test")
    assert parsed == value
    assert type(parsed) is type(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_written_yaml_reads_back_the_same(value: object) -> None:
    assert parse_yaml(dump_yaml(value), source="test") == value


@given(
    st.sampled_from(["off", "yes", "1e-5", "2026-01-01", "12:30", "0o7", "null", "010", "~", "1_0", "", " a", "0x1"])
)
def test_ambiguous_words_are_quoted_for_readers_of_either_yaml_version(word: str) -> None:
    assert yaml.safe_load(dump_yaml({"key": word})) == {"key": word}


def test_a_dumped_config_loads_to_an_equal_one(load, tmp_path: Path) -> None:
    reward = "reward=[{kind: rule, rule: '1e-5'}, {kind: model, folder: a/b, arguments: {x: 'off'}}]"
    config = load(BASE, reward, "model.tuning.kind=full", "ptx.learning_rate=1e-7", "tracking=off")
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(Run, path) == config


# --- complaints -------------------------------------------------------------------------------------------------------


def test_every_problem_gets_its_own_line(complaints) -> None:
    lines = complaints("model: {pth: m}\nstep: 3\n", "even=two")
    assert [line.split(":")[0] for line in lines] == ["run_dir", "model.path", "model.pth", "even", "step"]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("steps=abc", "steps: received abc (text); allowed: integer >= 1; write a number"),
        ('steps="5"', "steps: received '5' (text); allowed: integer >= 1; remove the quotes"),
        ("steps=1e3", "steps: received 1000.0 (number); allowed: integer >= 1; write 1000, without point or exponent"),
        ("steps=true", "steps: received true; allowed: integer >= 1; change it in the file or pass steps=VALUE"),
        ("steps=0", "steps: received 0 (integer); allowed: integer >= 1; choose a value within that bound"),
        (
            "steps=null",
            "steps: received null; allowed: integer >= 1; give a value, or remove the key to get its default",
        ),
        (
            "verbose=1",
            "verbose: received 1 (integer); allowed: true | false; change it in the file or pass verbose=VALUE",
        ),
        ("verbose=yes", "verbose: received yes (text); allowed: true | false; write true or false"),
        (
            "run_dir=7",
            "run_dir: received 7 (integer); allowed: text; "
            'quote it: run_dir=\'"7"\' on the command line, "7" in the file',
        ),
        ("run_dir=null", "run_dir: received null; allowed: text; give a value"),
        ("model.dtype=bf16", "model.dtype: received bf16 (text); allowed: float32 | bfloat16; did you mean bfloat16?"),
        ("model.dtype=half", "model.dtype: received half (text); allowed: float32 | bfloat16; choose one of them"),
        ("model.tuning.kind=lorra", "model.tuning.kind: received lorra; allowed: full | lora; did you mean lora?"),
        (
            "model.tuning=lora",
            "model.tuning: received lora (text); allowed: section with kind full | lora; "
            "write kind: lora indented below it, or pass model.tuning.kind=lora",
        ),
        (
            "model.tuning.target_modules=[1]",
            "model.tuning.target_modules.0: received 1 (integer); allowed: text; quote it: "
            'model.tuning.target_modules.0=\'"1"\' on the command line, "1" in the file',
        ),
        (
            "model.tuning.target_modules=none",
            "model.tuning.target_modules: received none (text); allowed: all-linear | list of text; choose one of them",
        ),
        (
            "optimizer.learning_rate=.inf",
            "optimizer.learning_rate: received .inf (number); allowed: number > 0; choose a finite number",
        ),
        (
            "reward=[{kind: rule}]",
            "reward.0.rule: missing; needs text (Named like its tag); add it to the file or pass reward.0.rule=VALUE",
        ),
        (
            "reward=[{kind: rule, rule: a, weight: b}]",
            "reward.0.weight: received b (text); allowed: number; write a number",
        ),
        (
            "reward=[{rule: a}]",
            "reward.0.kind: missing; allowed: rule | model; name the variant, or pass reward.0.kind=rule",
        ),
        (
            "reward.0.weight=1",
            "override 'reward.0.weight=1': '0' is no index of the list []; allowed: none; or give the whole list",
        ),
        ("even=3", "even=3 must be a multiple of two"),
        ("path=x", "path: unknown key (received x); did you mean model.path?"),
        ("optimzer.betas=[1, 2]", "optimzer: unknown key (received {betas: [1, 2]}); did you mean optimizer?"),
        (
            "model.tuning={kind: full, rank: 3}",
            "model.tuning.rank: unknown key (received 3); only exists with model.tuning.kind=lora; "
            "choose that or remove the key",
        ),
        (
            "model.tuning={kind: full, schedule: {warmup: 3}}",
            "model.tuning.schedule: unknown key (received {warmup: 3}); only exists with model.tuning.kind=lora; "
            "choose that or remove the key",
        ),
        (
            "optimizer.momentum=0.9",
            "optimizer.momentum: unknown key (received 0.9); "
            "known here: learning_rate, betas, weight_decay; rename or remove it",
        ),
        (
            "run_dir=${HOME}/runs",
            "run_dir: received ${HOME}/runs; environment variables are not expanded; write the value itself",
        ),
    ],
)
def test_one_line_names_field_value_allowed_and_remedy(complaints, override: str, line: str) -> None:
    assert complaints(BASE, override) == [line]


def test_a_missing_section_names_its_keys_and_purpose(complaints) -> None:
    assert complaints("run_dir: a\n") == [
        "model: missing; needs section with the keys path, tuning, dtype (The model); "
        "add it to the file or pass model=VALUE"
    ]


def test_a_dotted_key_in_the_file_is_told_to_nest(complaints) -> None:
    unknown = complaints("run_dir: a\nmodel.path: m\n")[-1]
    assert unknown == (
        "model.path: unknown key (received m); did you mean model or model.path? (nested, one key a level)"
    )


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("steps", "allowed: a.b=value"),
        ("=3", "allowed: a.b=value"),
        ("a..b=3", "allowed: a.b=value"),
        ("steps=", "no value after '='; write steps=null for none"),
        ("steps=# three", "no value after '='"),
        ("steps=[1", "not valid YAML"),
        ("run_dir=@here", "quote text that begins with a special character"),
        ("run_dir={a: 1, a: 2}", "key 'a' stands twice"),
    ],
)
def test_a_malformed_override_is_quoted_with_the_remedy(complaints, override: str, reason: str) -> None:
    (line,) = complaints(BASE, override)
    assert line.startswith(f"override {override!r}: ")
    assert reason in line


def test_an_index_outside_a_list_names_the_list(complaints) -> None:
    assert complaints(BASE + "reward: [{kind: rule, rule: a}]\n", "reward.1.rule=b") == [
        "override 'reward.1.rule=b': '1' is no index of the list [{kind: rule, rule: a}]; "
        "allowed: 0 to 0; or give the whole list"
    ]


@pytest.mark.parametrize(
    ("text", "line_number", "reason"),
    [
        ("run_dir: a\nsteps: 1\nsteps: 2\n", 3, "key 'steps' stands twice, first on line 2; keep one of the two"),
        ("run_dir: a\nmodel:\n  path: m\n  path: m\n", 4, "key 'path' stands twice, first on line 3"),
        ("run_dir: a\n\tsteps: 1\n", 2, "indent with spaces, not tabs"),
        ("run_dir: a\nmodel: [1\nsteps: 2\n", 3, "check the indentation and brackets"),
        ("run_dir: a\nmodel: b: c\n", 2, "quote text that contains ': '"),
        ("run_dir: a\nmodel: !!python/object:os.system x\n", 2, "could not determine a constructor"),
        ("run_dir: a\n---\nrun_dir: b\n", 2, "expected a single document"),
    ],
)
def test_broken_yaml_is_located_by_file_and_line(complaints, text: str, line_number: int, reason: str) -> None:
    (line,) = complaints(text)
    assert f"run.yaml:{line_number}: not valid YAML: " in line
    assert reason in line


def test_merged_anchors_may_repeat_a_key(load) -> None:
    text = (
        BASE + "ptx: &shared {learning_rate: 0.5, weight_decay: 0.1}\noptimizer:\n  <<: *shared\n  weight_decay: 0.2\n"
    )
    assert load(text).optimizer == Optimizer(learning_rate=0.5, betas=(0.8, 0.9), weight_decay=0.2)


@pytest.mark.parametrize("text", ["model: &m [*m]\n", "model: !!binary aGk=\n", "model: !!set {a}\n"])
def test_what_json_cannot_hold_is_refused(complaints, text: str) -> None:
    (line,) = complaints(text)
    assert "run.yaml: no tree of plain values" in line


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "just words\n"])
def test_a_file_without_a_mapping_is_refused(complaints, text: str) -> None:
    (line,) = complaints(text)
    assert "allowed: mapping; write lines `key: value`" in line


def test_an_empty_file_lacks_every_required_key(complaints) -> None:
    assert [line.split(":")[0] for line in complaints("# nothing\n")] == ["run_dir", "model"]


def test_a_missing_file_is_named_with_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "sentiment.yaml").touch()
    with pytest.raises(ConfigError, match=r"sentimant.yaml: no such config file; did you mean .*sentiment.yaml\?"):
        load_config(Run, tmp_path / "sentimant.yaml")


def test_a_folder_and_binary_data_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder; name one YAML file in it"):
        load_config(Run, tmp_path)
    (tmp_path / "model.bin").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 3\)"):
        load_config(Run, tmp_path / "model.bin")
    (tmp_path / "control.yaml").write_bytes(b"a: \x00")
    with pytest.raises(ConfigError, match="remove the control characters"):
        load_config(Run, tmp_path / "control.yaml")


# --- descriptions -----------------------------------------------------------------------------------------------------


def test_fields_are_listed_with_type_default_and_variant() -> None:
    fields = {(item.name, item.variant): item for item in describe_fields(Run)}
    assert fields["run_dir", ""].default == "required"
    assert fields["optimizer.learning_rate", ""].default == "0.001"
    assert fields["optimizer.weight_decay", ""].default == "0.0"
    assert fields["optimizer.betas", ""].type == "list [number, number]"
    assert fields["model.tuning", ""].type == "section with kind full | lora"
    assert fields["model.tuning", ""].default == "lora"
    assert fields["model.tuning.rank", "model.tuning.kind=lora"].type == "integer >= 1"
    assert fields["model.tuning.rank", "model.tuning.kind=lora"].default == "4"
    assert fields["model.tuning.rank", "model.tuning.kind=lora"].description == "Rank, dimensions."
    assert fields["reward.N.weight", "reward.N.kind=rule"].description == "Factor."
    assert fields["reward.N.arguments", "reward.N.kind=model"].type == "mapping of text to integer | text"
    assert fields["ptx", ""].default == "null"
    assert fields["ptx.learning_rate", ""].default == "0.0001"
    assert ("model.tuning.kind", "model.tuning.kind=lora") not in fields
    assert ("model", "") not in fields
