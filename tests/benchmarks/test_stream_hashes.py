"""Nobody changes a stream by accident: what each gives at seed 0 against a committed table, `stream_hashes.json`.

If a change was meant, raise the stream's `version` (docs/extending-benchmark.md), then make the table anew:

    python -m tests.benchmarks.test_stream_hashes

What needs data that are not at hand keeps its entry; FTML_BENCH_DATA names their folder.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import pytest
import torch
from torch.nn.functional import interpolate

from ftml_bench import protocol, registry
from ftml_bench.benchmarks import ColoredDigits, arrivals
from ftml_bench.benchmarks.data import data_root
from ftml_bench.benchmarks.rainbow_digits import read_digits
from ftml_bench.benchmarks.transforms import resize

FILE = Path(__file__).with_name("stream_hashes.json")
SETTINGS = {  # small; of streams with a table of tasks, all of them
    "RainbowMNIST": {"rounds": 56, "images_per_round": 4, "held_out_per_round": 2},
    "RainbowDigits": {"rounds": 56, "images_per_round": 4, "held_out_per_round": 2},
    "FiveWayCIFAR100": {"rounds": 4, "images_per_class": 4, "held_out_per_class": 2, "subset": True},
    "ColoredMNIST": {"rounds": 56, "images_per_round": 10, "held_out_per_round": 10},
    "ColoredDigits": {"rounds": 56, "images_per_round": 10, "held_out_per_round": 10},
    "ObjectPose": {"rounds": 3, "images_per_round": 3, "held_out_per_round": 1, "image_size": 32},
    "Sinusoids": {"rounds": 2, "images_per_round": 4, "held_out_per_round": 4},
    "LinearRegression": {"rounds": 2, "images_per_round": 8, "held_out_per_round": 8},
    "HiddenBoundaries": {"rounds": 9, "images_per_round": 4, "held_out_per_round": 2, "stay": 0.5, "overlap": 0.3},
}
MNIST = data_root() / "MNIST" / "raw"
DATA = {"RainbowMNIST": MNIST, "ColoredMNIST": MNIST, "FiveWayCIFAR100": data_root() / "cifar-100-subset" / "train"}
STEP = 1 / 512
ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-10}  # by how much platforms may differ


def content(part: torch.Tensor) -> bytes:
    """A tensor as bytes that are the same on every platform, its type and shape before them.

    Floats in steps of `STEP`: their last bits depend on the processor.

    :raises ValueError: one lies where these could decide.
    """
    kind = f"{part.dtype} {tuple(part.shape)}".encode()
    if part.is_floating_point():
        steps = part.double() / STEP
        edge = float((steps - steps.floor() - 0.5).abs().min() * STEP)
        if edge <= ROUNDING[part.dtype]:
            raise ValueError(f"a number is {edge:.0e} from where it is rounded otherwise: it needs other SETTINGS")
        part = steps.round().long()
    array = part.numpy()
    return kind + array.astype(array.dtype.newbyteorder("<")).tobytes()


def fingerprint(benchmark) -> str:
    """Of inputs and labels, a round's data in the order in which they arrive, then its held-out data."""
    digest = hashlib.sha256()
    for round, held_out in zip(benchmark.train_stream, benchmark.test_stream, strict=True):
        for experience in (*arrivals(round, benchmark.arrivals), held_out):
            for part in experience.stacked.take(torch.arange(len(experience.stacked))):
                digest.update(content(part))
    return digest.hexdigest()


def enlarged(grey: torch.Tensor, size: int) -> torch.Tensor:
    """`resize` of small digits with halves rounded up: in float32 the processor decides about halves."""
    exact = interpolate(grey[:, None].double(), size=(size, size), mode="bilinear", align_corners=False)
    return (exact[:, 0] + 1e-6).round().to(torch.uint8)


def entry(name: str, cache: Path | str) -> dict[str, object]:
    """A stream's line in the table; `cache`: where pictures may be kept."""
    cls = registry.load("benchmark", name)
    settings = {"seed": 0, **SETTINGS[name]}
    with pytest.MonkeyPatch.context() as patch:
        for module in ("rainbow_digits", "colored_digits"):
            patch.setattr(f"ftml_bench.benchmarks.{module}.resize", enlarged)
        benchmark = cls(**settings, **({"cache": cache} if name == "ObjectPose" else {}))
    return {
        "version": cls.version,
        "protocol": protocol.VERSION,
        "settings": settings,
        "sha256": fingerprint(benchmark),
    }


def changed(table: dict[str, dict[str, object]], found: dict[str, dict[str, object]]) -> list[str]:
    """The streams whose data differ from the table's although nothing says so: no version, no size."""
    return [
        name
        for name, new in found.items()
        if name in table and table[name] != new and table[name] == {**new, "sha256": table[name]["sha256"]}
    ]


def make_anew() -> None:
    table = json.loads(FILE.read_text()) if FILE.is_file() else {}
    missing = [name for name in registry.BENCHMARKS if name in DATA and not DATA[name].is_dir()]
    found: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as cache:
        try:
            for name in registry.BENCHMARKS:
                if name not in missing:
                    found[name] = entry(name, cache)
        except ValueError as error:
            raise SystemExit(f"{name}: {error}; nothing was written") from None
    if names := changed(table, found):
        raise SystemExit(f"changed without a new version: {', '.join(names)}; nothing was written")
    new = {name: (table | found)[name] for name in registry.BENCHMARKS if name in table | found}
    FILE.write_text(json.dumps(new, indent=2) + "\n")
    print(f"{FILE.name}: written" + (f"; as before, for want of data: {', '.join(missing)}" if missing else ""))


def needs(name: str) -> list[pytest.MarkDecorator]:
    folder = DATA.get(name)
    if folder is None:
        return []
    reason = f"{name}'s data are not in {folder}; FTML_BENCH_DATA names the folder that has them"
    return [pytest.mark.skipif(not folder.is_dir(), reason=reason)]


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in registry.BENCHMARKS])
def test_a_stream_gives_what_it_gave(name, tmp_path):
    table = json.loads(FILE.read_text())
    assert entry(name, tmp_path) == table[name], (
        f"{name} gives other data than {FILE.name} says. If that is meant: raise {name}.version, "
        "then run python -m tests.benchmarks.test_stream_hashes"
    )


def test_the_table_holds_what_is_registered_and_nothing_else():
    assert sorted(json.loads(FILE.read_text())) == sorted(registry.BENCHMARKS)


def one_more(label):
    label[0] += 1


@pytest.mark.parametrize(
    "change",
    [
        lambda b: one_more(b.train_stream[1].stacked.y),
        lambda b: one_more(b.test_stream[0].stacked.y),
        lambda b: b.train_stream[0].stacked.x.mul_(2),
        lambda b: vars(b.train_stream[0]).pop("arrival_order"),
        lambda b: vars(b).update(arrivals=3),  # the classes of an arrival
    ],
)
def test_every_part_counts(change):
    benchmarks = [ColoredDigits(rounds=2, images_per_round=20, held_out_per_round=10) for _ in range(3)]
    before, again, _ = map(fingerprint, benchmarks)
    assert before == again
    change(benchmarks[2])
    assert fingerprint(benchmarks[2]) != before


def test_the_last_bits_of_floats_do_not_count_and_more_does():
    x = torch.tensor([[0.1234], [-4.7]])
    assert content(x) == content(x * (1 + 2e-7)) != content(x + 0.003)
    assert content(x) != content(x.double())
    assert content(torch.tensor([0.0])) == content(torch.tensor([-0.0]))
    with pytest.raises(ValueError, match="needs other SETTINGS"):
        content(torch.tensor([0.1, 1.5 / 512 + 1e-6]))


@pytest.mark.parametrize("size", [14, 28])
def test_digits_are_enlarged_as_the_table_has_them_but_for_halves(size):
    grey, _ = read_digits()
    up, used = enlarged(grey, size), resize(grey, size)
    differs = up != used
    assert torch.equal(up[differs], used[differs] + 1)
    exact = interpolate(grey[:, None].double(), size=(size, size), mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(exact[differs].frac(), torch.tensor(0.5, dtype=torch.float64), atol=1e-6)


def test_a_table_is_made_anew_only_for_what_says_that_it_changed():
    old = {"version": 1, "protocol": 1, "settings": {"rounds": 2}, "sha256": "a"}
    table = {"A": old}
    assert changed(table, {"A": old, "B": old}) == []
    assert changed(table, {"A": {**old, "sha256": "b"}}) == ["A"]
    for said in ({"version": 2}, {"protocol": 2}, {"settings": {"rounds": 3}}):
        assert changed(table, {"A": {**old, **said, "sha256": "b"}}) == []


if __name__ == "__main__":
    make_anew()
