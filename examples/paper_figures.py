"""Panels as in the paper's Figures 3, 4 and 5: datapoints to γ, where there is one, and the error after some of them.

python examples/paper_figures.py leaderboards/results/rainbow_mnist_cpu 100 900 figure-3.png
python examples/paper_figures.py leaderboards/results/cifar100_cpu 50 250 600 figure-4.png
python examples/paper_figures.py leaderboards/results/pose_cpu 60 400 figure-5.png
"""

import sys

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

from ftml_bench.results import load
from ftml_bench.results.looks import looks

if len(sys.argv) < 4 or not all(number.isdigit() for number in sys.argv[2:-1]):
    sys.exit(
        "expected a leaderboard's folder, numbers of datapoints and a picture to write: "
        "python examples/paper_figures.py DIR 100 900 FILE.png"
    )
folder, picture = sys.argv[1], sys.argv[-1]
checkpoints = [int(number) for number in sys.argv[2:-1]]

results = load(folder)
benchmarks = results.boards[0].results
if len(benchmarks) != 1:
    names = ", ".join(one.spec.name for one in benchmarks) or "no results"
    sys.exit(f"expected a leaderboard of one benchmark; {folder} has {names}")
(result,) = benchmarks
look = looks([result.spec])
rounds, curves = results.efficiency(), results.curves()
own = curves[curves["round"] == curves.evaluated_round]  # the round that is being learned
own = own.merge(rounds[["row", "seed"]].drop_duplicates())  # of seeds that have finished
own = own.assign(error=own.loss if result.measure == "loss" else 1 - own.accuracy)

# Of every panel: its title, and a line a round of every seed.
panels = {f"datapoints to γ ({result.gamma})": (rounds, "datapoints")} if result.threshold else {}
for checkpoint in checkpoints:
    if (some := own[own.datapoints == checkpoint]).empty:
        evaluated = ", ".join(map(str, sorted(own.datapoints.unique())))
        sys.exit(f"no evaluation after {checkpoint} datapoints; there are {evaluated}")
    panels[f"{result.measure} after {checkpoint} datapoints"] = (some, "error")

plt.style.use("ftml_bench.report.ftml")
figure, (axes,) = plt.subplots(1, len(panels), figsize=(11, 3.7), squeeze=False)
for panel, (title, (frame, column)) in zip(axes, panels.items(), strict=True):
    for row in own.row.unique():
        of_row = frame[frame.row == row]
        seeds = of_row.pivot_table(index="round", columns="seed", values=column)
        seeds = seeds.rolling(5, center=True, min_periods=1).mean()  # at the ends over fewer
        mean, error = seeds.mean(axis=1), seeds.sem(axis=1)
        panel.plot(mean, label=row, color=look[row].color, linestyle=look[row].linestyle, marker="")
        panel.fill_between(mean.index, mean - error, mean + error, color=look[row].color, alpha=0.15, linewidth=0)
    panel.set(title=title, xlabel="round")
    if column == "datapoints" or result.measure == "loss":
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
    else:
        panel.set_ylim(bottom=0)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
seeds = ", ".join(map(str, sorted(own.seed.unique())))
figure.savefig(picture, dpi=200, metadata={"Source": f"{results.boards[0].name}, seeds {seeds}"})
