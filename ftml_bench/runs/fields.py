"""What the fields of a definition take: pydantic checks, and each type says in words what it expected."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, ClassVar, TypeVar

import pydantic
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError

from ftml_bench.errors import unknown
from ftml_bench.runs.values import LARGEST, folder_name, shown

# Keywords of benchmarks, models and strategies that count something, by the names that the suite uses.
_SIZE_NAME = re.compile(r"rounds|steps|filters|heads|step_factor|\w+_(size|steps|per_round|per_class|classes|epochs)")
_RATE_NAME = re.compile(r"lr|\w+_lr")


def expected(what: str) -> pydantic.WrapValidator:
    """Says in words what a type takes, where the type itself refuses a value."""

    def check(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            if error.errors()[0]["type"] == "value_error":  # what stands in it has said it
                raise
            raise ValueError(f"expected {what}, got {shown(value)}") from None

    return pydantic.WrapValidator(check)


def _in_json(value: Any) -> Any:
    """YAML also has dates, sets, bytes and infinity."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AssertionError from error
    return value


T = TypeVar("T")
AS_TUPLE = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)  # YAML has lists alone
MAY_BE_EMPTY = BeforeValidator(lambda value: {} if value is None else value)  # a key with nothing behind it

Text = Annotated[pydantic.StrictStr, expected("text")]
FolderName = Annotated[Text, AfterValidator(folder_name)]
Flag = Annotated[pydantic.StrictBool, expected("true or false")]
Size = Annotated[pydantic.StrictInt, Field(ge=1, lt=LARGEST), expected("a whole number of at least 1")]
Seed = Annotated[pydantic.StrictInt, Field(ge=0, lt=LARGEST), expected("a whole number of at least 0")]
Rate = Annotated[pydantic.StrictFloat, Field(gt=0, allow_inf_nan=False), expected("a finite number above 0")]
Plain = Annotated[Any, AfterValidator(_in_json), expected("text, numbers, true or false, or lists, nothing infinite")]
Several = Annotated[
    tuple[T, ...], Field(min_length=1, strict=True), AS_TUPLE, expected("a list with at least one entry")
]
OneOrSeveral = Annotated[
    Annotated[T, pydantic.Tag("one")] | Annotated[Several[T], pydantic.Tag("several")],
    pydantic.Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
]


class Model(pydantic.BaseModel):
    """Keys with values, none but its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seldom: ClassVar[frozenset[str]] = frozenset()  # what is written down only where something is said

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _in_words(cls, value: Any, handler: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"expected keys with values, got {shown(value)}")
        try:
            return handler(value)
        except ValidationError as error:
            of_keys = {found["type"]: found["loc"][0] for found in reversed(error.errors()) if len(found["loc"]) == 1}
            if "extra_forbidden" in of_keys:  # what is missing may be what it was meant to be
                names = [field.alias or name for name, field in cls.model_fields.items()]
                raise unknown("key", of_keys["extra_forbidden"], names) from None
            if "missing" in of_keys:
                raise ValueError(f"{of_keys['missing']!r} is missing") from None
            raise

    @pydantic.model_serializer(mode="wrap")
    def _said(self, handler: Any) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value or key not in self.seldom}


class Keywords(Model):
    """Keys of its own, and all others keywords of a constructor."""

    model_config = ConfigDict(extra="allow")

    given: ClassVar[frozenset[str]] = frozenset()  # what the suite itself passes

    @pydantic.model_validator(mode="after")
    def _sound(self) -> Keywords:
        for key, value in (self.model_extra or {}).items():
            if key in self.given:
                raise ValueError(f"{key!r} cannot be set here: the cell gives it itself")
            kind = _SIZES if _SIZE_NAME.fullmatch(key) else _RATES if _RATE_NAME.fullmatch(key) else _PLAIN
            for one in value if isinstance(value, list) and value else [value]:
                if one is not None:
                    kind.validate_python({key: one})
        return self


_SIZES = pydantic.TypeAdapter(dict[str, Size])
_RATES = pydantic.TypeAdapter(dict[str, Rate])
_PLAIN = pydantic.TypeAdapter(dict[str, Plain])


def as_written(model: type[Model]) -> BeforeValidator:
    """Checks keys as those of a model, and keeps them as they are written: 1 is not 1.0 in a hash."""
    return BeforeValidator(lambda value: model.model_validate(value) and value)


class Named(Model):
    """Keys below a name."""

    _name: str = pydantic.PrivateAttr("")

    @property
    def name(self) -> str:
        """It is the name of its folder, too."""
        return self._name


def _give_names(found: dict[str, Named]) -> dict[str, Named]:
    for name, one in found.items():
        one._name = name
    return found


N = TypeVar("N", bound=Named)
ByName = Annotated[dict[str, N], Field(min_length=1), expected("keys with values"), AfterValidator(_give_names)]


def in_words(error: ValidationError, content: Any) -> str:
    """The first error of `content` in one line: the keys that lead to it, names without what they are names of."""
    first = error.errors()[0]
    place: list[str] = []
    for key in first["loc"]:
        if isinstance(content, dict) and key in content:
            content = content[key]
            place.append(str(key))
    keys = [key for key in place[:-1] if key not in ("benchmarks", "strategies")] + place[-1:]
    return ": ".join([*keys, first["msg"].removeprefix("Value error, ")])
