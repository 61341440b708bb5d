"""Settings and fixtures of all tests.

Annotations are checked at run time, a process has one thread, hypothesis no deadlines. Fixtures are
the pool of ranks and the real images.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping

sys.path.insert(0, str(Path(__file__).parent))
import checker

jaxtyping.install_import_hook("marginlab", "checker.check")

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from marginlab.testing.pool import Pool  # noqa: E402

# two xdist workers share two cores; OMP_NUM_THREADS=2 asks for sums in another order
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
hypothesis.settings.register_profile(
    "lab",
    deadline=None,
    max_examples=12,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "nightly", hypothesis.settings.get_profile("lab"), max_examples=5000, derandomize=False
)
hypothesis.settings.register_profile(  # HYPOTHESIS_PROFILE=random pytest --hypothesis-seed=N
    "random", hypothesis.settings.get_profile("lab"), derandomize=False, database=None
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "lab"))


def pytest_runtest_setup() -> None:
    """Seed the global generators, so that a test draws the same whatever ran before it; check the
    annotations of every function anew.
    """
    checker.calls.clear()
    torch.manual_seed(0)
    np.random.seed(0)  # of libraries that draw from the global state


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the run-time check of annotations off, to see the error of a user without it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Four long-lived gloo ranks.

    A test that uses it carries `@pytest.mark.xdist_group("ranks")`, so that there is one pool.
    """
    with Pool(
        preload=["pytest", "hypothesis.strategies", "scipy.stats", "marginlab.train"]
    ) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of npz files with real images, named by MARGINLAB_DATA; a test that wants it is
    skipped, loudly, where it is absent.
    """
    folder = os.environ.get("MARGINLAB_DATA")
    if not folder:
        pytest.skip("MARGINLAB_DATA is not set: no real images to test with")
    return Path(folder)
