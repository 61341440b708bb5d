"""Settings that hold other settings: tables in TOML, dotted flags, and what both refuse."""

from dataclasses import dataclass, replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from marginlab import settings
from marginlab.settings import SettingsError
from marginlab.train import Monitor, Recipe


@dataclass(frozen=True)
class Deep:
    """The innermost settings."""

    rate: float = 0.5
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate is at least 0, not {self.rate}.")


@dataclass(frozen=True)
class Middle:
    """Settings that hold others, between two fields of their own."""

    size: int = 3
    deep: Deep = Deep(rate=0.25)
    name: str = "a"


@dataclass(frozen=True)
class Plain:
    """Settings that hold others at two depths."""

    seeds: tuple[int, ...] = (0, 1)
    middle: Middle = Middle()


NARROW = "Backbone('resnet18', stem='strided', width=0.0625)"
RECIPE, MONITOR = Recipe(epochs=1, backbone=NARROW), Monitor(images=40)


@dataclass(frozen=True)
class Outer(Plain):
    """Settings of a study that trains."""

    recipe: Recipe = RECIPE
    monitor: Monitor = MONITOR


TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
DEEP = st.builds(
    Deep, rate=st.floats(0, allow_nan=False), words=st.lists(TEXT, max_size=3).map(tuple)
)
PLAIN = st.builds(
    Plain,
    seeds=st.lists(st.integers(-5, 5), max_size=3).map(tuple),
    middle=st.builds(Middle, size=st.integers(), deep=DEEP, name=TEXT),
)


@given(PLAIN)
def test_nested_settings_read_back_equal(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("settings") / "config.toml"
    path.write_text(settings.to_toml(value), encoding="utf-8", newline="")
    assert settings.read(Plain, path) == value


def test_a_table_and_dotted_flags_replace_the_fields_that_they_name(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("seeds = [7]\n[middle.deep]\nrate = 2\n[recipe]\nbatch = 32\nseed = 5\n")
    flags = ["--recipe.batch", "64", "--middle.deep.words", "x", "y", "--monitor.bounds"]
    flags += ["--recipe.method", "SimCLR(temperature=0.1)", "--monitor.measures", "Uniformity()"]
    assert settings.read(Outer, path, flags) == Outer(
        seeds=(7,),
        middle=Middle(deep=Deep(rate=2.0, words=("x", "y"))),
        recipe=replace(RECIPE, batch=64, seed=5, method="SimCLR(temperature=0.1)"),
        monitor=Monitor(images=40, bounds=True, measures=("Uniformity()",)),
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[recipe]\nbacth = 3", r"Recipe has no setting 'recipe\.bacth': did you mean 'batch'\?"),
        ("[middle.deep]\nrat = 3", r"Deep has no setting 'middle\.deep\.rat': did you mean 'rate'"),
        ("batch = 3", r"Outer has no setting 'batch': did you mean 'recipe\.batch'\?"),
        ("rate = 3", r"Outer has no setting 'rate': did you mean 'middle\.deep\.rate'\?"),
        ("[recipes]\nbatch = 3", r"no setting 'recipes': did you mean 'recipe'\?"),
        ("[recipe]\nbatch = 'a'", r"recipe\.batch is of type int, not 'a'"),
        ("[recipe.batch]\na = 3", r"recipe\.batch is of type int, not \{'a': 3\}"),
        ("recipe = 3", r"recipe is a Recipe, in TOML a table of its settings, not 3"),
        ("[[recipe]]\nbatch = 3", r"recipe is a Recipe, in TOML a table"),
        ("[recipe]\nbatch = 0", r"config\.toml: recipe: batch is at least 2, not 0"),
        ("[middle.deep]\nrate = -1", r"config\.toml: middle\.deep: rate is at least 0, not -1"),
        ("[recipe]\nmethod = 3", r"recipe\.method is of type str in call notation"),
    ],
)
def test_a_bad_table_is_refused_with_the_dotted_name(tmp_path, text, sentence):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=sentence):
        settings.read(Outer, path)


def test_an_unknown_flag_at_depth_is_refused_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        settings.read(Outer, flags=["--recipe.bacth", "3"])
    assert stop.value.code == 2
    assert "--recipe.batch" in capsys.readouterr().err


def test_a_flag_may_leave_out_the_name_of_the_only_table_that_has_the_setting(capsys):
    flags = ["--batch", "64", "--words=x", "--bounds", "--image-size", "16", "--size", "4"]
    read = settings.read(Outer, flags=flags)
    assert (read.recipe.batch, read.recipe.image_size, read.monitor.bounds) == (64, 16, True)
    assert read.middle == Middle(size=4, deep=Deep(rate=0.25, words=("x",)))
    for flag in ("--images", "--seed", "--augmentation"):  # of the recipe, or of the monitor?
        with pytest.raises(SystemExit):
            settings.read(Outer, flags=[flag, "3"])
        assert f"--recipe.{flag[2:]}" in capsys.readouterr().err


@dataclass(frozen=True)
class Twice:
    """A field that a nested dataclass has as well."""

    batch: int = 1
    recipe: Recipe = RECIPE


def test_a_flag_without_a_table_means_the_outer_field_where_there_is_one():
    read = settings.read(Twice, flags=["--batch", "64"])
    assert (read.batch, read.recipe.batch) == (64, RECIPE.batch)


def test_replaced_takes_tables_and_objects():
    value = Outer(seeds=(3,), middle=Middle(name="b"))
    changed = settings.replaced(value, {"recipe": {"batch": 64}, "middle": {"deep": {"rate": 1}}})
    assert changed == replace(
        value,
        recipe=replace(value.recipe, batch=64),
        middle=Middle(name="b", deep=Deep(rate=1.0)),
    )
    assert settings.replaced(value, {"recipe": Recipe()}).recipe == Recipe()
    with pytest.raises(SettingsError, match=r"a change: .* no setting 'middle\.deep\.rat'"):
        settings.replaced(value, {"middle": {"deep": {"rat": 1}}})
    with pytest.raises(SettingsError, match="recipe is a Recipe"):
        settings.replaced(value, {"recipe": Monitor()})


@dataclass(frozen=True)
class Checked:
    """Settings made in Python, checked as those of a file."""

    deep: Deep = Deep()

    def __post_init__(self) -> None:
        settings.check(self)


def test_settings_made_in_python_are_checked_at_depth():
    made = Checked(Deep(rate=1, words=["a"]))
    assert repr(made) == "Checked(deep=Deep(rate=1.0, words=('a',)))"
    with pytest.raises(SettingsError, match=r"deep\.words is of type str, not 3"):
        Checked(Deep(words=(3,)))
    with pytest.raises(SettingsError, match=r"deep\.rate is a number, not nan"):
        Checked(Deep(rate=float("nan")))
    with pytest.raises(SettingsError, match=r"deep is a Deep"):
        Checked(deep={"rate": 1.0})


def test_flat_and_one_line_give_dotted_names():
    value = Middle(deep=Deep(words=("x",)))
    assert settings.flat(value) == {
        "size": 3,
        "deep.rate": 0.5,
        "deep.words": ("x",),
        "name": "a",
    }
    assert settings.one_line(value) == ('size = 3; deep.rate = 0.5; deep.words = ["x"]; name = "a"')


def test_code_named_at_depth_counts_and_is_not_imported_from_data(tmp_path):
    value = Outer(middle=Middle(deep=Deep(words=("no_such.module:Mine()", "record:faces(1)"))))
    assert settings.named_in(value) == {"no_such.module"}
    path = tmp_path / "config.toml"
    path.write_text("[recipe]\nmethod = 'no_such.module:Mine()'\n")
    with settings.as_data(), pytest.raises(SettingsError, match="code of the module 'no_such"):
        settings.read(Outer, path)
