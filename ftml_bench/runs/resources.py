"""What a cell asks of the machine that it runs on. Only a cluster asks: no result depends on it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ByteSize, ConfigDict, Field, ValidationError

from ftml_bench.errors import UsageError, unknown
from ftml_bench.runs.values import LARGEST, mapping, shown

_EXPECTED = {
    "cpus": "a share of a core of at least 0.01, or a whole number of them",
    "gpus": "a share of a GPU of at least 0.01, or a whole number of them",
    "memory": "a whole number of bytes, or a text such as 2GB",
}


def _share(number: float) -> float:
    """Whether it can be had: machines are divided, but no more of one is taken than whole ones."""
    if not (0.01 <= number <= 1 or (1 < number < LARGEST and number.is_integer())):
        raise ValueError
    return number


class Resources(BaseModel):
    """By what a cluster finds room; None: what is usual. A group of seeds that a GPU runs at once asks as one cell.

    :param cpus: cores; a cell computes with one thread, whatever it asks for. Usual: 1.
    :param gpus: of a device that is no CPU. Usual: 1.
    :param memory: bytes. Usual: it is not asked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    cpus: Annotated[float, AfterValidator(_share)] | None = None
    gpus: Annotated[float, AfterValidator(_share)] | None = None
    memory: Annotated[ByteSize, Field(gt=0, lt=LARGEST)] | None = None

    def but(self, other: Resources) -> Resources:
        """These, but for what the other says."""
        return self.model_copy(update=other.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """What is said, in plain values."""
        return self.model_dump(exclude_none=True)


USUAL = Resources()


def resources_of(value: Any, where: str) -> Resources:
    """Checked, as {"cpus": 1, "gpus": 0.25, "memory": "2GB"}.

    :raises UsageError: one line that says where, what came and what was expected.
    """
    try:
        return Resources(**mapping(value, where))
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        if name not in _EXPECTED:
            raise UsageError(f"{where}: {unknown('key', name, _EXPECTED)}") from None
        raise UsageError(f"{where}: {name}: expected {_EXPECTED[name]}, got {shown(value[name])}") from None
