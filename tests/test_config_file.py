"""Config files: how they stack, how YAML is read, and what every mistake is answered with."""

from pathlib import Path
from typing import Any, Literal, Self

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mbrl.config.file import change, dump, find_config, load
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


def test_no_file_and_an_empty_file_give_the_defaults(folder: Path) -> None:
    assert load(Root) == load(Root, write(folder, "x.yaml", "# nothing yet\n")) == Root()


def test_mistakes_are_reported_at_once_with_their_file_and_line_unless_overridden(
    folder: Path,
) -> None:
    write(folder, "base.yaml", "seed: 1\npolicy:\n  horizon: 0\n")
    path = write(folder, "x.yaml", "extends: base.yaml\nmodel:\n  hiden: 3\n  lr: fast\n")
    assert message(Root, path).splitlines() == [
        "3 mistakes in the settings:",
        "  configs/base.yaml:3: policy.horizon: expected greater than or equal to 1, got 0",
        "  configs/x.yaml:3: model.hiden: unknown setting; did you mean model.hidden?",
        "  configs/x.yaml:4: model.lr: expected a valid number, got 'fast'",
    ]
    assert len(message(Root, path, ["policy.horizon=2", "model.lr=1"]).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        # a check of a section is placed at the setting it names
        (
            "policy:\n  lam: 1\n  horizon: 2000\n",
            "3: policy.horizon: expected at most 1000, got 2000",
        ),
        ("model:\n  # lr: 1\n", "1: model: expected a mapping of settings, got None"),
        (
            "model:\n  layers: [{width: 1}, {width: 0}]\n",
            "2: model.layers.1.width: expected greater than or equal to 1, got 0",
        ),
        (
            "seed: 1\nname: a\nseed: 2\n",
            "3: seed: expected each key once, got it again after line 1",
        ),
        ("1: 2\n", "1: 1: expected a name as key, got 1"),
        ("- 1\n", "1: expected a mapping of settings, got a list"),
        ("hello\n", "1: expected a mapping of settings, got a single value"),
        ("seed: 1\nname: [a\n", "3: expected YAML, got: "),
        ("name: !!python/object/apply:os.getcwd []\n", "1: expected YAML, got: could not"),
        (
            "kwargs: &all\n  again: *all\n",
            f"2: kwargs{'.again' * 21}: expected fewer levels, got an alias of itself",
        ),
        ("extends: {a: 1}\n", "1: extends: expected a file or a list, got a section"),
    ],
)
def test_a_mistake_in_a_file_names_its_line(folder: Path, text: str, said: str) -> None:
    assert message(Root, write(folder, "x.yaml", text)).startswith(f"configs/x.yaml:{said}")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.hidden=few", "model.hidden: expected a valid integer, got 'few'"),
        ("horizon=3", "horizon: unknown setting; did you mean policy.horizon?"),
        ("policy.zzzzzz=3", "policy.zzzzzz: unknown setting; known here: horizon, lam"),
        ("seed=3.7", "seed: expected a valid integer, got 3.7"),
        ("seed=true", "seed: expected a number, got true"),
        ("model.lr=true", "model.lr: expected a number, got true"),
        ("name=2024", "name: expected a valid string, got 2024; put it in quotes: '2024'"),
        ("model.decoder=flow", "model.decoder: expected 'pixelcnn' or 'deconv', got 'flow'"),
        *[
            (word, "expected name=value, such as policy.horizon=15")
            for word in ("seed", "=3", "model..lr=3", "a b=3")
        ],
        ("kwargs={a: 1", "kwargs: expected a YAML value, got: "),
    ],
)
def test_a_mistake_in_an_override_names_the_override(override: str, said: str) -> None:
    assert message(Root, None, [override]).startswith(f"override {override!r}: {said}")


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


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("lr", "1e-4", 1e-4),
        ("hidden", "1e3", 1000),
        ("hidden", "1_000", 1000),
        ("hidden", "010", 10),
        *[("likelihood", word, word) for word in ("no", "on", "2026-11-22", "12:30:45", "1.2.3")],
    ],
)
def test_plain_values_are_those_of_yaml_1_2(
    folder: Path, name: str, word: str, value: object
) -> None:
    path = write(folder, "x.yaml", f"model: {{{name}: {word}}}")
    assert getattr(load(Root, path).model, name) == value


def test_extends_is_relative_and_merges_left_to_right_and_the_file_wins(folder: Path) -> None:
    (folder / "deep").mkdir()
    write(folder, "a.yaml", "seed: 1\nname: a\nmodel: {hidden: 1, lr: 0.1}\n")
    write(folder / "deep", "b.yaml", "extends: ../a.yaml\nseed: 2\nmodel: {hidden: 2}\n")
    path = write(folder, "x.yaml", "extends: [a.yaml, deep/b.yaml]\nseed: 3\n")
    config = load(Root, path)
    assert (config.seed, config.name, config.model.hidden, config.model.lr) == (3, "a", 2, 0.1)


def test_a_circle_of_extends_is_refused(folder: Path) -> None:
    write(folder, "a.yaml", "extends: b.yaml\n")
    path = write(folder, "b.yaml", "extends: a.yaml\n")
    assert message(Root, path).endswith(
        "got a circle: configs/b.yaml -> configs/a.yaml -> configs/b.yaml"
    )


def test_a_missing_extended_file_is_reported_with_its_line_and_the_others(folder: Path) -> None:
    write(folder, "base.yaml", "")
    text = message(Root, write(folder, "x.yaml", "seed: few\nextends: bse.yaml\n"))
    assert "x.yaml:2: extends: expected a YAML file, got none named bse.yaml; in configs" in text
    assert "base.yaml" in text and "configs/x.yaml:1: seed" in text


def test_a_missing_value_or_file_is_asked_for_and_other_files_are_refused(folder: Path) -> None:
    (folder / "x").write_bytes(b"\xff\xfe\x00")
    assert message(Root, folder / "x").startswith("configs/x: expected a YAML file in UTF-8")
    path = write(folder, "minatar.yaml", "{}")
    assert message(Strict, path) == "configs/minatar.yaml: steps: expected a value, got none"
    assert message(Root, folder / "minitar.yaml") == (
        "configs/minitar.yaml: expected a YAML file, got none named minitar.yaml; "
        "in configs there is minatar.yaml"
    )


def test_an_override_replaces_whatever_it_names_and_the_last_one_wins(folder: Path) -> None:
    path = write(folder, "x.yaml", "kwargs: {a: 1, b: 2}\n")
    assert load(Root, path, ["kwargs={c: 3}"]).kwargs == {"c": 3}
    assert load(Root, path, ["kwargs.a=null"]).kwargs == {"a": None, "b": 2}
    config = load(Root, None, ["seed=1", "seed=2", "name=a=b", "model.likelihood="])
    assert (config.seed, config.name, config.model.likelihood) == (2, "a=b", None)


def test_overrides_may_be_values_and_change_what_was_loaded_before() -> None:
    config = load(Root, None, {"seed": 5, "model.layers": [{"width": 3}]})
    assert (config.seed, config.model.layers) == (5, (Layer(width=3),))
    changed = change(config, {"model.hidden": 2})
    assert changed == Root(seed=5, model=Model(hidden=2, layers=(Layer(width=3),)))
    with pytest.raises(ConfigError, match=r"^override 'seed': seed: expected a number, got true"):
        change(config, {"seed": True})


def test_a_shipped_config_is_found_by_name_and_a_file_of_ones_own_comes_first(folder: Path) -> None:
    own = write(folder, "quickstart.yaml", "")
    assert find_config(own) == own
    assert find_config("quickstart").read_text() == find_config("quickstart.yaml").read_text() != ""
    assert find_config("nowhere") == Path("nowhere")


def test_a_dumped_config_loads_to_an_equal_one_in_the_order_of_the_classes(folder: Path) -> None:
    config = Root(
        name="1e-4",
        kwargs={"a": "no", "b": "010", "c": [1, "true", None], "d": {"e": 1e-05}, "f": "x: y"},
        model=Model(lr=1e-7, layers=(Layer(width=3), Layer()), likelihood="2026-11-22"),
        folder=Path("over/there"),
    )
    assert load(Root, write(folder, "x.yaml", dump(config))) == config
    keys = [line.partition(":")[0] for line in dump(Root()).splitlines() if line[0] != " "]
    assert keys == list(Root.model_fields)
