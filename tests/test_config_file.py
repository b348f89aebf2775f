from pathlib import Path
from typing import Any, Literal, Self

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mbrl.config.file import dump, load
from mbrl.config.removed import REMOVED
from mbrl.errors import ConfigError


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Layer(Settings):
    width: int = Field(8, ge=1)


class Model(Settings):
    hidden: int = Field(256, ge=1)
    lr: float = Field(3e-4, gt=0)
    decoder: Literal["pixelcnn", "deconv"] = "pixelcnn"
    layers: tuple[Layer, ...] = ()
    likelihood: str | None = None


class Policy(Settings):
    horizon: int = Field(15, ge=1)
    lam: float = Field(0.95, ge=0, le=1)

    @model_validator(mode="after")
    def _short(self) -> Self:
        if self.horizon * self.lam > 1000:
            raise ValueError(f"horizon: expected at most 1000, got {self.horizon}")
        return self


class Root(Settings):
    name: str = "run"
    seed: int = 0
    video: bool = False
    folder: Path = Path("runs")
    limit: float = float("inf")
    kwargs: dict[str, Any] = Field(default_factory=dict)
    model: Model = Model()
    policy: Policy = Policy()


class Strict(Settings):
    steps: int


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    return tmp_path / "configs"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def message(*args: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*args)
    return str(caught.value)


def test_no_file_and_no_overrides_give_the_defaults() -> None:
    assert load(Root) == Root()


def test_an_empty_file_gives_the_defaults(folder: Path) -> None:
    assert load(Root, write(folder, "x.yaml", "# nothing yet\n")) == Root()


def test_three_mistakes_are_reported_at_once_with_file_and_line(folder: Path) -> None:
    path = write(
        folder,
        "x.yaml",
        "name: three\nmodel:\n  hiden: 3\n  lr: fast\n\npolicy:\n  horizon: 0\n",
    )
    assert message(Root, path).splitlines() == [
        "3 mistakes in the settings:",
        "  configs/x.yaml:3: model.hiden: unknown setting; did you mean model.hidden?",
        "  configs/x.yaml:4: model.lr: expected a valid number, got 'fast'",
        "  configs/x.yaml:7: policy.horizon: expected greater than or equal to 1, got 0",
    ]


def test_a_mistake_is_placed_in_the_file_that_made_it(folder: Path) -> None:
    write(folder, "base.yaml", "seed: 1\nmodel:\n  hidden: -1\n")
    path = write(folder, "x.yaml", "extends: base.yaml\nmodel:\n  lr: 0\n")
    text = message(Root, path)
    assert "configs/base.yaml:3: model.hidden: expected greater than or equal to 1, got -1" in text
    assert "configs/x.yaml:3: model.lr: expected greater than 0, got 0" in text


def test_a_mistake_in_an_override_names_the_override() -> None:
    assert message(Root, None, ["model.hidden=few"]) == (
        "override 'model.hidden=few': model.hidden: expected a valid integer, got 'few'"
    )


def test_a_mistake_hidden_by_an_override_is_gone(folder: Path) -> None:
    path = write(folder, "x.yaml", "model:\n  hidden: few\n")
    assert load(Root, path, ["model.hidden=2"]).model.hidden == 2


@pytest.mark.parametrize("word", ["model={depth: 3}", "model.depth=2"])
def test_a_removed_setting_gets_its_sentence_wherever_it_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setitem(REMOVED, "model.depth", (2, "depth is gone; use model.hidden"))
    path = write(folder, "x.yaml", "seed: 1\nmodel:\n  depth: 2\n")
    assert message(Root, path) == "configs/x.yaml:3: model.depth: depth is gone; use model.hidden"
    assert message(Root, None, [word]) == (
        f"override {word!r}: model.depth: depth is gone; use model.hidden"
    )


def test_an_unknown_key_of_another_section_is_found_there() -> None:
    assert "did you mean policy.horizon?" in message(Root, None, ["horizon=3"])


def test_an_unknown_key_like_nothing_lists_what_is_known_here() -> None:
    assert message(Root, None, ["policy.zzzzzz=3"]).endswith("known here: horizon, lam")


def test_a_missing_value_is_asked_for(folder: Path) -> None:
    path = write(folder, "x.yaml", "{}")
    assert message(Strict, path) == "configs/x.yaml: steps: expected a value, got none"


def test_a_check_of_a_section_is_placed_at_the_setting_it_names(folder: Path) -> None:
    path = write(folder, "x.yaml", "policy:\n  lam: 1\n  horizon: 2000\n")
    assert message(Root, path) == (
        "configs/x.yaml:3: policy.horizon: expected at most 1000, got 2000"
    )


def test_a_section_given_as_null_is_refused(folder: Path) -> None:
    path = write(folder, "x.yaml", "model:\n  # lr: 1\n")
    assert "configs/x.yaml:1: model: expected a mapping of settings, got None" in message(
        Root, path
    )


def test_a_mistake_inside_a_list_names_its_index(folder: Path) -> None:
    path = write(folder, "x.yaml", "model:\n  layers: [{width: 1}, {width: 0}]\n")
    assert "configs/x.yaml:2: model.layers.1.width: expected greater" in message(Root, path)


def test_scientific_notation_is_a_number(folder: Path) -> None:
    path = write(folder, "x.yaml", "model: {lr: 1e-4, hidden: 1e3}\nseed: 1_000\n")
    config = load(Root, path)
    assert config.model.lr == 0.0001
    assert (config.model.hidden, config.seed) == (1000, 1000)


@pytest.mark.parametrize("word", ["no", "on", "off", "yes", "2026-11-22", "12:30:45", "1.2.3"])
def test_words_that_yaml_1_1_converts_stay_text(folder: Path, word: str) -> None:
    assert load(Root, write(folder, "x.yaml", f"name: {word}\n")).name == word


def test_a_leading_zero_is_not_octal() -> None:
    assert load(Root, None, ["seed=010"]).seed == 10


def test_a_fraction_is_not_cut_to_an_integer() -> None:
    assert message(Root, None, ["seed=3.7"]).endswith("seed: expected a valid integer, got 3.7")


def test_a_boolean_is_not_a_number() -> None:
    text = message(Root, None, ["seed=true", "model.lr=true"])
    assert "seed: expected a number, got true" in text
    assert "model.lr: expected a number, got true" in text


def test_a_number_is_not_text_and_the_way_out_is_quotes() -> None:
    assert message(Root, None, ["name=2024"]).endswith(
        "name: expected a valid string, got 2024; put it in quotes: '2024'"
    )


def test_a_choice_lists_the_choices() -> None:
    assert message(Root, None, ["model.decoder=flow"]).endswith(
        "model.decoder: expected 'pixelcnn' or 'deconv', got 'flow'"
    )


def test_extends_merges_left_to_right_and_the_file_wins(folder: Path) -> None:
    write(folder, "a.yaml", "seed: 1\nname: a\nmodel: {hidden: 1, lr: 0.1}\n")
    write(folder, "b.yaml", "seed: 2\nmodel: {hidden: 2}\n")
    path = write(folder, "x.yaml", "extends: [a.yaml, b.yaml]\nseed: 3\n")
    config = load(Root, path)
    assert (config.seed, config.name, config.model.hidden, config.model.lr) == (3, "a", 2, 0.1)


def test_extends_is_relative_to_the_file_and_may_be_chained(folder: Path) -> None:
    (folder / "deep").mkdir()
    write(folder, "a.yaml", "seed: 1\n")
    write(folder / "deep", "b.yaml", "extends: ../a.yaml\nname: b\n")
    config = load(Root, write(folder, "x.yaml", "extends: deep/b.yaml\n"))
    assert (config.seed, config.name) == (1, "b")


def test_a_circle_of_extends_is_refused(folder: Path) -> None:
    write(folder, "a.yaml", "extends: b.yaml\n")
    path = write(folder, "b.yaml", "extends: a.yaml\n")
    assert message(Root, path).endswith(
        "got a circle: configs/b.yaml -> configs/a.yaml -> configs/b.yaml"
    )


def test_one_file_may_be_extended_twice(folder: Path) -> None:
    write(folder, "root.yaml", "seed: 7\n")
    write(folder, "a.yaml", "extends: root.yaml\n")
    write(folder, "b.yaml", "extends: root.yaml\n")
    assert load(Root, write(folder, "x.yaml", "extends: [a.yaml, b.yaml]\n")).seed == 7


def test_a_missing_extended_file_is_reported_with_its_line_and_the_others(folder: Path) -> None:
    write(folder, "base.yaml", "")
    path = write(folder, "x.yaml", "seed: few\nextends: bse.yaml\n")
    text = message(Root, path)
    assert "configs/x.yaml:2: extends: expected a YAML file, got none named bse.yaml" in text
    assert "base.yaml" in text
    assert "configs/x.yaml:1: seed" in text


def test_extends_must_be_a_file_or_a_list(folder: Path) -> None:
    path = write(folder, "x.yaml", "extends: {a: 1}\n")
    assert "configs/x.yaml:1: extends: expected a file or a list, got a section" in message(
        Root, path
    )


def test_a_missing_file_names_its_neighbours(folder: Path) -> None:
    write(folder, "minatar.yaml", "")
    assert message(Root, folder / "minitar.yaml") == (
        "configs/minitar.yaml: expected a YAML file, got none named minitar.yaml; "
        "in configs there is minatar.yaml"
    )


def test_an_override_replaces_a_whole_section(folder: Path) -> None:
    path = write(folder, "x.yaml", "kwargs: {a: 1, b: 2}\n")
    assert load(Root, path, ["kwargs={c: 3}"]).kwargs == {"c": 3}
    assert load(Root, path, ["kwargs.a=null"]).kwargs == {"a": None, "b": 2}


def test_later_overrides_win() -> None:
    assert load(Root, None, ["seed=1", "seed=2"]).seed == 2


def test_an_override_may_hold_an_equals_sign_and_be_empty() -> None:
    config = load(Root, None, ["name=a=b", "model.likelihood="])
    assert (config.name, config.model.likelihood) == ("a=b", None)


@pytest.mark.parametrize("override", ["seed", "=3", "model..lr=3", "a b=3"])
def test_an_override_that_is_no_assignment_is_refused(override: str) -> None:
    text = message(Root, None, [override])
    assert text == f"override {override!r}: expected name=value, such as policy.horizon=15"


def test_an_override_that_is_no_yaml_is_refused() -> None:
    assert message(Root, None, ["kwargs={a: 1"]).startswith(
        "override 'kwargs={a: 1': kwargs: expected a YAML value, got: "
    )


def test_a_key_written_twice_is_refused(folder: Path) -> None:
    path = write(folder, "x.yaml", "seed: 1\nname: a\nseed: 2\n")
    assert message(Root, path) == (
        "configs/x.yaml:3: seed: expected each key once, got it again after line 1"
    )


def test_a_key_that_is_no_name_is_refused(folder: Path) -> None:
    assert "configs/x.yaml:1: 1: expected a name as key, got 1" in message(
        Root, write(folder, "x.yaml", "1: 2\n")
    )


@pytest.mark.parametrize(("text", "got"), [("- 1\n", "a list"), ("hello\n", "a single value")])
def test_a_file_that_is_no_mapping_is_refused(folder: Path, text: str, got: str) -> None:
    path = write(folder, "x.yaml", text)
    assert message(Root, path) == f"configs/x.yaml:1: expected a mapping of settings, got {got}"


def test_broken_yaml_names_its_line(folder: Path) -> None:
    path = write(folder, "x.yaml", "seed: 1\nname: [a\n")
    assert message(Root, path).startswith("configs/x.yaml:3: expected YAML, got: ")


def test_python_objects_are_never_made(folder: Path) -> None:
    path = write(folder, "x.yaml", "name: !!python/object/apply:os.getcwd []\n")
    assert message(Root, path).startswith("configs/x.yaml:1: expected YAML, got: could not")


def test_an_alias_inside_itself_is_refused(folder: Path) -> None:
    path = write(folder, "x.yaml", "kwargs: &all\n  again: *all\n")
    assert "got an alias of itself" in message(Root, path)


def test_a_file_that_is_no_text_is_refused(folder: Path) -> None:
    path = folder / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert message(Root, path).startswith("configs/x.yaml: expected a YAML file in UTF-8")


def test_a_class_that_ignores_unknown_keys_is_refused() -> None:
    class Loose(BaseModel):
        seed: int = 0

    with pytest.raises(TypeError, match="Loose: expected model_config"):
        load(Loose)


def test_a_dumped_config_loads_to_an_equal_one(folder: Path) -> None:
    config = Root(
        name="1e-4",
        kwargs={"a": "no", "b": "010", "c": [1, "true", None], "d": {"e": 1e-05}, "f": "x: y"},
        model=Model(lr=1e-7, layers=(Layer(width=3), Layer()), likelihood="2026-11-22"),
        folder=Path("over/there"),
    )
    assert load(Root, write(folder, "x.yaml", dump(config))) == config


def test_a_dumped_config_keeps_the_order_of_the_classes() -> None:
    keys = [line.partition(":")[0] for line in dump(Root()).splitlines() if line[0] != " "]
    assert keys == list(Root.model_fields)
