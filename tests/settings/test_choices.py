"""A choice among classes: a text, an object, a class or a partial, kept as its text."""

import sys
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import pytest

from marginlab import augment, losses, margins, measures, methods, optim, settings
from marginlab.augment import Augmentation
from marginlab.margins import ArcFace, CosFace
from marginlab.measures import NeuralCollapse, Uniformity
from marginlab.measures.measure import Measure
from marginlab.methods import MarginClassifier, Method, SimCLR
from marginlab.models import Backbone
from marginlab.optim import AdamW, Constant, OptimizerSettings, Schedule
from marginlab.settings import SettingsError, call_notation, make
from marginlab.train import Monitor, Recipe

NARROW = partial(Backbone, "resnet18", stem="strided", width=0.125)
OWN = """
from dataclasses import dataclass
from marginlab.optim import Schedule
@dataclass(frozen=True)
class Halved(Schedule):
    at: float = 0.5
    def __call__(self, step, steps):
        return 1.0 if step < self.at * steps else 0.5
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of one's own with a schedule."""
    (tmp_path / "halved_rates.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    import halved_rates

    yield halved_rates
    sys.modules.pop("halved_rates", None)


def test_an_object_a_class_and_a_partial_are_kept_as_their_texts(own):
    recipe = Recipe(
        augmentation=Augmentation("ad", strength=0.25),
        backbone=NARROW,
        method=partial(MarginClassifier, margin=ArcFace(0.4), subcenters=3),
        optimizer=AdamW(lr=0.01),
        schedule=own.Halved(at=0.25),
    )
    assert recipe == Recipe(
        augmentation=repr(Augmentation("ad", strength=0.25)),
        backbone="Backbone('resnet18', stem='strided', width=0.125)",
        method=f"MarginClassifier(margin={repr(ArcFace(0.4))!r}, subcenters=3)",
        optimizer=repr(AdamW(lr=0.01)),
        schedule="halved_rates:Halved(at=0.25)",
    )
    assert recipe.make_schedule() == own.Halved(at=0.25)
    made = recipe.make_method(5)
    assert isinstance(made, MarginClassifier)
    assert repr(made.classifier.margin) == repr(ArcFace(0.4))
    assert Recipe(method=SimCLR).method == "SimCLR()"
    monitor = Monitor(measures=(Uniformity(), NeuralCollapse, "Uniformity()"))
    assert monitor.measures == (repr(Uniformity()), "NeuralCollapse()", "Uniformity()")


def test_what_is_kept_reads_back_from_toml(tmp_path, own):
    recipe = Recipe(method=partial(SimCLR, temperature=0.1), schedule=own.Halved)
    (tmp_path / "recipe.toml").write_text(settings.to_toml(recipe))
    assert settings.read(Recipe, tmp_path / "recipe.toml") == recipe


def test_make_takes_what_it_is_given():
    rate = Constant()
    assert make(rate, optim, Schedule) is rate
    assert make(Constant, optim, Schedule) == rate
    assert make(partial(AdamW, lr=0.1), optim, OptimizerSettings) == AdamW(lr=0.1)
    backbone = NARROW()
    made = make(partial(SimCLR, temperature=0.1), methods, Method, backbone)
    assert made.backbone is backbone
    classifier = losses.MarginSoftmax(5, 8, margin=CosFace(0.2))
    assert repr(make(classifier.margin, margins, margins.Margin)) == repr(CosFace(0.2))


@pytest.mark.parametrize(
    ("choice", "room", "kind", "sentence"),
    [
        ("SGD()", optim, Schedule, r"'SGD\(\)' is no Schedule: marginlab\.optim has Constant"),
        (AdamW(), optim, Schedule, r"AdamW\(.*\) is no Schedule: marginlab\.optim has Constant"),
        (AdamW, optim, Schedule, r"is no Schedule"),
        (partial(AdamW, lr=0.1), optim, Schedule, r"is no Schedule"),
        (partial(print, "a"), optim, Schedule, r"which is no class.*functools\.partial\(Class"),
        (3, optim, Schedule, r"3 is not a choice in call notation: .* marginlab\.optim has"),
        (None, augment, Augmentation, r"None is not a choice in call notation"),
        ("Uniformty()", measures, Measure, r"did you mean 'Uniformity'"),
        (partial(AdamW, rl=0.1), optim, OptimizerSettings, r"takes no 'rl': did you mean 'lr'"),
        (partial(AdamW, lr=-1.0), optim, OptimizerSettings, r"cannot be made"),
    ],
)
def test_a_choice_of_another_kind_is_refused_with_what_there_is(choice, room, kind, sentence):
    with pytest.raises(SettingsError, match=sentence):
        make(choice, room, kind)


def test_an_object_that_lacks_more_arguments_is_refused_with_the_partial():
    method = SimCLR(NARROW())
    with pytest.raises(SettingsError, match=r"SimCLR is made already.*partial\(SimCLR, "):
        make(method, methods, Method, NARROW())
    with pytest.raises(SettingsError, match=r"is made already"):
        make(MarginClassifier(NARROW(), 3), methods, Method, offered={"num_classes": 3})
    offered = {"num_classes": 3}
    with pytest.raises(SettingsError, match=r"sets 'num_classes', which is not a setting"):
        make(partial(MarginClassifier, num_classes=4), methods, Method, NARROW(), offered=offered)


def test_weights_are_no_setting():
    for name, value in (("backbone", NARROW()), ("method", SimCLR(NARROW()))):
        with pytest.raises(SettingsError, match=rf"{name}: This .* has weights.*\.partial"):
            Recipe(**{name: value})


@dataclass(frozen=True)
class Ramp(Schedule):
    """A schedule that hides a setting from its repr."""

    to: float = 1.0
    hidden: float = 0.0

    def __call__(self, step: int, steps: int) -> float:
        return self.to

    def __repr__(self) -> str:
        return f"Ramp(to={self.to})"


def test_an_object_that_no_text_gives_back_is_refused():
    assert call_notation(Ramp(0.5)) == f"{__name__}:Ramp(to=0.5)"
    with pytest.raises(SettingsError, match=r"schedule: .*does not read back equal.*partial"):
        Recipe(schedule=Ramp(0.5, hidden=1.0))
    with pytest.raises(SettingsError, match=r"its repr is no call of its class"):
        call_notation(object())
    with pytest.raises(SettingsError, match=r"inf is no finite number"):
        call_notation(partial(AdamW, lr=float("inf")))


def test_a_class_that_no_other_program_can_import_is_refused(monkeypatch):
    class Local(Constant):
        """A schedule inside a function."""

    with pytest.raises(SettingsError, match=r"schedule: The class Local .* module of its own"):
        Recipe(schedule=Local)
    main = type("Main", (Constant,), {"__module__": "__main__", "__qualname__": "Main"})
    with pytest.raises(SettingsError, match=r"Main is written in __main__"):
        Recipe(schedule=main)


def test_offered_arguments_reach_only_who_takes_them():
    room = ModuleType("room")
    room.Uniformity, room.NeuralCollapse = Uniformity, NeuralCollapse
    room.__all__ = ["Uniformity", "NeuralCollapse"]
    offered = {"num_classes": 3, "dim": 4}
    for text in ("Uniformity()", "NeuralCollapse()"):
        made = make(text, room, Measure, offered=offered)
        assert type(made).__name__ == text[:-2]


def test_arguments_of_a_text_are_replaced_and_the_rest_stays():
    text = "MarginClassifier(\"ArcFace(0.3, gradient='true')\", scale=16.0)"
    changed = settings.with_arguments(text, sample_rate=0.5, scale=8.0)
    assert settings.with_arguments(changed, sample_rate=0.1) == (
        "MarginClassifier(\"ArcFace(0.3, gradient='true')\", scale=8.0, sample_rate=0.1)"
    )
    own = "package.module:Mine(size=2)"
    assert settings.with_arguments(own, kind="wide") == "package.module:Mine(size=2, kind='wide')"
    assert settings.with_arguments("Mine", size=3) == "Mine(size=3)"
    with pytest.raises(SettingsError, match="call notation"):
        settings.with_arguments("Mine(", size=3)
