"""Cost of a Partial FC head before training, by a stated model: memory, exchange, operations."""

from marginlab.plan.machine import calibrate as calibrate
from marginlab.plan.memory import fits as fits
from marginlab.plan.memory import largest as largest
from marginlab.plan.memory import memory as memory
from marginlab.plan.memory import peak as peak
from marginlab.plan.published import Published as Published
from marginlab.plan.published import published as published
from marginlab.plan.setup import Setup as Setup
from marginlab.plan.traffic import Exchange as Exchange
from marginlab.plan.traffic import traffic as traffic
from marginlab.plan.work import Seconds as Seconds
from marginlab.plan.work import Work as Work
from marginlab.plan.work import seconds as seconds
from marginlab.plan.work import work as work

__all__ = [
    "Exchange",
    "Published",
    "Seconds",
    "Setup",
    "Work",
    "calibrate",
    "fits",
    "largest",
    "memory",
    "peak",
    "published",
    "seconds",
    "traffic",
    "work",
]
