"""Pictures of a leaderboard's tasks, for its page: drawn once, after a run, as reports see no data."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from ftml_bench.benchmarks.sheets import contact_sheet
from ftml_bench.benchmarks.stream import TaskStream
from ftml_bench.files import replacing
from ftml_bench.runs.building import build_benchmark
from ftml_bench.runs.definition import Definition
from ftml_bench.runs.progress import say

_ROUNDS, _IMAGES = 6, 8
_COLORS = 64  # of the file, so that a page stays small


def draw_tasks(definition: Definition, root: Path, data: str | None) -> None:
    """Writes `figures/<benchmark>-tasks.png`, the first data of the first rounds of the first seed, where it is missing
    and the benchmark is a stream that has a contact sheet.

    :param data: folder of data sets, or None for the usual places.
    """
    for spec in definition.benchmarks:
        file = root / "figures" / f"{spec.name}-tasks.png"
        if file.exists():
            continue
        benchmark = build_benchmark(spec, definition.seeds[0], data)
        if not isinstance(benchmark, TaskStream):
            continue
        drawn = io.BytesIO()
        try:
            contact_sheet(benchmark, drawn, _ROUNDS, _IMAGES)
        except Exception as error:  # inputs that no sheet shows, or a stream's own code: no reason to have no report
            say(f"{spec.name}: no picture of its tasks: {error}")
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(drawn) as picture, replacing(file) as written:
            picture.convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
