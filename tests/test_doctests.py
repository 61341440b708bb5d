"""Every example in a docstring runs and gives what it says."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import marginlab

MODULES = [
    m.name
    for m in pkgutil.walk_packages(marginlab.__path__, "marginlab.")
    if "__main__" not in m.name and "_studies" not in m.name
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    tests = doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs={"torch": torch})
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert (
        sum(
            len(test.examples) > 0
            for name in MODULES
            for test in finder.find(importlib.import_module(name))
        )
        > 30
    )
