"""The run-time checker of annotations in tests: beartype, with an int accepted where a float is
asked for, as in any Python call.

The checker of a function is made at its first call, and checks the first calls of every test; with
the nightly profile it checks all. To make it takes milliseconds, and the library has thousands of
functions. A check takes as long as some small operations on tensors.
"""

import dataclasses
import functools
import inspect
import math
import os
from collections import Counter

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
MOST = math.inf if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 10
calls = Counter()  # of each function's code, in this test: a closure is made anew at every call
_checked = jaxtyping.jaxtyped


def jaxtyped(*, typechecker):
    """The decorator that jaxtyping's import hook puts at functions and classes."""

    def decorate(thing):
        if inspect.isclass(thing):
            if dataclasses.is_dataclass(thing) and "__init__" in vars(thing):
                thing.__init__ = decorate(thing.__init__)
            return thing

        code = getattr(thing, "__code__", thing)
        made = []

        @functools.wraps(thing)
        def first_calls(*arguments, **named):
            if calls[code] >= MOST:
                return thing(*arguments, **named)
            calls[code] += 1
            if not made:
                made.append(_checked(thing, typechecker=typechecker))
            return made[0](*arguments, **named)

        return first_calls

    return decorate


jaxtyping.jaxtyped = jaxtyped
