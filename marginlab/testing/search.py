"""Hypothesis looks for an input that breaks a law, and makes it small."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
from hypothesis.strategies import SearchStrategy

from marginlab.testing.agreement import Disagreement, LawBroken
from marginlab.testing.pool import RanksFailed
from marginlab.testing.strategies import seeds

Hold = Callable[[Any, int], None]


def search(
    subject: str,
    law: Callable[..., None],
    hold: Hold,
    examples: SearchStrategy[Any],
    names: Sequence[str],
    max_examples: int,
) -> None:
    """Try a law on drawn inputs; the same inputs in every run.

    Args:
        subject: name of the loss or measure.
        law: the law, for its name and its sentence.
        hold: called with the inputs and a seed; raises where the law is broken.
        examples: strategy of the inputs, tuples of tensors.
        names: names of the inputs.
        max_examples: number of inputs tried.

    Raises:
        LawBroken: with the smallest inputs that break it. Ranks that failed are not asked again, so
            that a loss that hangs costs one wait: these inputs are the first found.
    """
    # of ranks that failed: hypothesis would call them many times to make the inputs small
    failed: list[LawBroken] = []

    @hypothesis.settings(
        max_examples=max_examples,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        verbosity=hypothesis.Verbosity.quiet,
        print_blob=False,
    )
    @hypothesis.given(examples, seeds)
    def trial(inputs: Sequence[Any], seed: int) -> None:
        if failed:
            return
        example = {**dict(zip(names, inputs, strict=False)), "seed": seed}
        try:
            reported(subject, law, example, functools.partial(hold, inputs, seed))
        except LawBroken as error:
            if not isinstance(error.__cause__, RanksFailed):
                raise
            failed.append(error)

    try:
        trial()
    except LawBroken as error:
        error.__notes__ = []  # the message has the example
        raise
    except hypothesis.errors.Flaky as error:
        raise LawBroken(
            subject,
            law.__name__,
            sentence(law),
            {},
            "It broke the law on an input, and held it when the same input was tried again: it "
            "draws random numbers, or depends on what it was given before.",
        ) from error
    if failed:
        raise failed[0]


def reported(
    subject: str, law: Callable[..., None], example: dict[str, Any], work: Callable[[], None]
) -> None:
    """Do some work of a law, and raise every error as `LawBroken`, with the example."""
    try:
        work()
    except Disagreement as error:
        raise LawBroken(subject, law.__name__, sentence(law), example, str(error)) from None
    except Exception as error:
        finding = f"It raised {type(error).__name__}: {error}"
        raise LawBroken(subject, law.__name__, sentence(law), example, finding) from error


def sentence(law: Callable[..., None]) -> str:
    """The first line of a law's docstring."""
    return (law.__doc__ or "").splitlines()[0]
