"""What a cell asks of the machine that it runs on. Only a cluster asks: no result depends on it."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, ByteSize, ConfigDict, Field, StrictFloat

from ftml_bench.runs.fields import Model, expected
from ftml_bench.runs.values import LARGEST


def _share(number: float) -> float:
    """Whether it can be had: machines are divided, but no more of one is taken than whole ones."""
    if not (0.01 <= number <= 1 or (1 < number < LARGEST and number.is_integer())):
        raise AssertionError
    return number


Share = Annotated[StrictFloat, AfterValidator(_share), expected("a share of at least 0.01, or a whole number")]
Memory = Annotated[ByteSize, Field(gt=0, lt=LARGEST), expected("a whole number of bytes, or a text such as 2GB")]


class Resources(Model):
    """By what a cluster finds room; None: what is usual. A group of seeds that a GPU runs at once asks as one cell."""

    model_config = ConfigDict(strict=True)

    seldom = frozenset({"cpus", "gpus", "memory"})

    cpus: Share | None = Field(default=None, description="cores (usual: 1); a cell computes with one thread")
    gpus: Share | None = Field(default=None, description="of a device that is no CPU (usual: 1)")
    memory: Memory | None = Field(default=None, description="bytes (usual: it is not asked)")

    def but(self, other: Resources) -> Resources:
        """These, but for what the other says."""
        return self.model_copy(update=other.model_dump())


USUAL = Resources()
