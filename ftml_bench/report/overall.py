"""Several leaderboards together: a table of ranks, and a picture of critical differences and performance profiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ftml_bench.errors import UsageError
from ftml_bench.report import figures, labels
from ftml_bench.report.tables import Table, best
from ftml_bench.results.looks import Look, of_rows
from ftml_bench.results.ranks import Overall, overall, profile
from ftml_bench.runs import record

NAME = "overall"


def write(folders: Sequence[Path], out: Path) -> str:
    """Writes `overall.md`, `overall.svg`, `overall.png` and `overall.pdf` into `out`.

    :return: the table as text for the terminal.
    :raises UsageError: `out` is a leaderboard's folder or archive; or see `ftml_bench.results.ranks.overall`.
    """
    if out.suffix == ".zip" or (out / "leaderboard.yaml").exists():  # as of `report --overall A B`, which is meant as
        raise UsageError(
            f"--overall: {out} is a leaderboard's, expected a folder to write to: report A B --overall OUT"
        )
    found = overall(folders)
    shown = table(found)
    with figures.styled():
        figures.save(picture(found), out / NAME)
    record.write_whole(out / f"{NAME}.md", f"# Overall\n\n![overall]({NAME}.png)\n\n{shown.markdown()}")
    return shown.text()


def table(found: Overall) -> Table:
    """A row a stream, its areas under the learning curve; below them the mean ranks."""
    rows = [
        [stream, *(f"{score:.3f}" for score in scores)]
        for stream, scores in zip(found.streams, found.scores, strict=True)
    ]
    bold = {(i, 1 + j) for i, scores in enumerate(found.scores) for j in best(scores.tolist(), 3)}
    ranks = found.ranks
    rows.append(["mean rank", *(f"{mean:.2f}" for mean in ranks.means)])
    bold |= {(len(rows) - 1, 1 + j) for j in best(ranks.means.tolist(), 2)}
    test = "" if np.isnan(ranks.p) else f" Friedman's test that all are alike: p = {ranks.p:.3g}."
    notes = [
        "Error or loss area: mean over the logarithm of datapoints, all rounds, and the seeds that all learners have "
        "finished; less is better. Rank 1 is "
        f"the best.{test} Mean ranks closer than {ranks.critical_difference:.2f} cannot be told apart (Nemenyi, 5 %, "
        f"{len(found.streams)} streams)."
    ]
    if found.left_out:
        notes.append(f"Left out, for some stream has them not: {', '.join(found.left_out)}.")
    if any(found.seeds_left_out):
        of_streams = zip(found.streams, found.seeds_left_out, strict=True)
        seeds = [f"{stream} {', '.join(map(str, some))}" for stream, some in of_streams if some]
        notes.append(f"Seeds left out, for some learner has not finished them: {'; '.join(seeds)}.")
    return Table("Ranks over streams", ["stream", *found.learners], rows, notes, frozenset(bold))


def picture(found: Overall) -> Figure:
    """Left, mean ranks: a bar joins learners that cannot be told apart. Right, the share of streams and seeds on which
    a learner's area is at most τ times that of the best."""
    figure, (left, right) = figures.panels(2)
    look = of_rows({name: name.split()[0] for name in found.learners})  # variants are called after their learner
    _differences(left, found, look)
    factors, shares = profile(found.by_seed)
    lines = {}
    for name, share in zip(found.learners, shares, strict=True):
        own = look[name]
        lines[name] = right.plot(
            factors, share, drawstyle="steps-post", marker="", color=own.color, linestyle=own.linestyle
        )[0]
    figures.logarithmic(right, "x")
    right.set(ylim=(0, 1.02), xlabel="τ", ylabel="share of streams and seeds",
              title="Area at most τ times the best")  # fmt: skip
    labels.at_ends(right, lines)
    return figure


def _differences(panel: Axes, found: Overall, look: dict[str, Look]) -> None:
    """Demšar's picture: mean ranks on a line, the better half named at the left, a bar a group below the line."""
    ranks = found.ranks
    groups, order = ranks.groups(), [int(i) for i in np.argsort(ranks.means, kind="stable")]
    count, better = len(order), -(-len(order) // 2)
    panel.set_axis_off()
    panel.set(xlim=(1 - 0.6 * count, 1.6 * count), ylim=(-len(groups) - better, 3), title="Mean rank")
    panel.plot([1, count], [0, 0], color="#444444", linewidth=1, marker="")
    for place in range(1, count + 1):
        panel.plot([place, place], [0, 0.25], color="#444444", linewidth=1, marker="")
        panel.annotate(str(place), (place, 0.4), ha="center", fontsize=8)
    panel.plot([1, 1 + ranks.critical_difference], [1.6, 1.6], color="#444444", linewidth=1.5, marker="")
    panel.annotate(f"critical difference {ranks.critical_difference:.2f}", (1, 1.8), fontsize=8)
    for level, group in enumerate(groups, 1):
        ends = [ranks.means[group[0]] - 0.03, ranks.means[group[-1]] + 0.03]
        panel.plot(ends, [-0.7 * level] * 2, color="#222222", linewidth=4, solid_capstyle="butt", marker="")
    sides = [("right", 0.95, order[:better]), ("left", count + 0.05, order[better:][::-1])]
    for align, end, learners in sides:
        for place, i in enumerate(learners):
            height, mean = -0.7 * len(groups) - 0.8 * (place + 1), ranks.means[i]
            panel.plot(
                [mean, mean, end], [0, height, height], color=look[found.learners[i]].color, linewidth=1.2, marker=""
            )
            text = f" {labels.shortened(found.learners[i])} ({mean:.2f}) "
            panel.annotate(text, (end, height), ha=align, va="center", fontsize=8.5)
