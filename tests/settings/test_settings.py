from dataclasses import dataclass
from types import ModuleType

import hypothesis.strategies as st
import pytest
from hypothesis import given

from marginlab import settings
from marginlab.settings import SettingsError


@dataclass(frozen=True)
class Small:
    """A small set of settings."""

    data: str = "shapes"
    batch: int = 8
    rate: float = 0.1
    fast: bool = False
    seeds: tuple[int, ...] = (0, 1)
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.batch < 0:
            raise ValueError(f"batch is at least 0, not {self.batch}.")


class Room:
    def __init__(self, backbone: str = "", *, temperature: float = 0.5, kind: str = "a"):
        if temperature <= 0:
            raise ValueError(f"temperature is positive, not {temperature}.")
        self.arguments = backbone, temperature, kind

    def __repr__(self) -> str:
        return settings.describe("Room", temperature=self.arguments[1], kind=self.arguments[2])


room = ModuleType("room")
room.Room, room.__all__ = Room, ["Room"]


@given(
    st.builds(
        Small,
        data=st.text(st.characters(codec="utf-8")),
        batch=st.integers(0, 2**62),
        rate=st.floats(allow_nan=False),
        fast=st.booleans(),
        seeds=st.lists(st.integers(-5, 5)).map(tuple),
        names=st.lists(st.text(st.characters(codec="utf-8"), max_size=5)).map(tuple),
    )
)
def test_what_is_written_reads_back_equal(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("settings") / "config.toml"
    path.write_text(settings.to_toml(value), encoding="utf-8", newline="")
    assert settings.read(Small, path) == value


def test_flags_override_the_file_which_overrides_the_defaults(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("batch = 16\nrate = 1\n")
    assert settings.read(Small, path, ["--batch", "32", "--seeds", "4", "5", "--fast"]) == Small(
        batch=32, rate=1.0, seeds=(4, 5), fast=True
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "bach = 3",
            r"config\.toml: Small has no setting 'bach': did you mean 'batch'\? There are: "
            r"batch, data,",
        ),
        ("batch = '3'", "batch is of type int, not '3'"),
        ("batch = true", "batch is of type int, not True"),
        ("batch = -1", "batch is at least 0, not -1"),
        ("seeds = 3", "seeds is a list, not 3"),
        ("seeds = ['a']", "seeds is of type int, not 'a'"),
        ("batch == 3", "is not a TOML file"),
        (f"batch = {'9' * 5000}", "is not a TOML file: Exceeds the limit"),
        (f"seeds = {'[' * 5000}", "is not a TOML file: maximum recursion depth"),
    ],
)
def test_a_bad_file_is_refused_with_a_sentence(tmp_path, text, sentence):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=sentence):
        settings.read(Small, path)


def test_a_large_file_of_a_run_folder_is_not_read(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("batch = 3\n" + "#" * 2**20)
    assert settings.read(Small, path).batch == 3
    with settings.as_data(), pytest.raises(SettingsError, match="more than 1,048,576 for such a"):
        settings.read(Small, path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"no settings file .*none\.toml"):
        settings.read(Small, tmp_path / "none.toml")


def test_an_unknown_flag_is_refused_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        settings.read(Small, flags=["--bach", "3"])
    assert stop.value.code == 2
    assert "--batch" in capsys.readouterr().err


def test_a_refused_flag_value_is_a_settings_error():
    with pytest.raises((SettingsError, SystemExit)):
        settings.read(Small, flags=["--batch", "-1"])


@given(st.floats(1e-3, 1e3), st.text(st.characters(codec="utf-8"), max_size=8))
def test_a_repr_in_call_notation_reads_back(temperature, kind):
    made = Room(temperature=temperature, kind=kind)
    assert settings.make(repr(made), room, Room).arguments == made.arguments


def test_call_passes_on_what_a_text_cannot_hold():
    assert settings.make("Room(kind='b')", room, Room, "net").arguments == ("net", 0.5, "b")
    assert settings.make("Room", room, Room).arguments == ("", 0.5, "a")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Rom()", "names no class of room: did you mean 'Room'"),
        ("Room(temprature=1)", "takes no 'temprature': did you mean 'temperature'"),
        ("Room(temperature=-1)", "cannot be made: temperature is positive"),
        ("Room(temperature=x)", "not a choice in call notation"),
        ("Room(**{'kind': 'a'})", "not a choice in call notation"),
        ("__import__('os').system('true')", "not a choice in call notation"),
        ("Room(", "not a choice in call notation"),
        ("Room(1, 2, 3)", "cannot be made"),
        ("Room({[]: 1})", "not a choice in call notation"),
        (f"Room({'~' * 20000}1)", r"~\.\.\. \(str\) is not a choice in call notation"),
        (f"Room({'1+' * 20000}1)", "not a choice in call notation"),
    ],
)
def test_a_bad_call_is_refused_with_a_sentence(text, sentence):
    with pytest.raises(SettingsError, match=sentence):
        settings.make(text, room, Room)
