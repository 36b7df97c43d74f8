"""How much of FTML's lead is the normalisation's: a figure for a paper, and a table, from a leaderboard's results.

python examples/batch_norm_study.py leaderboards/results/batch_norm batch-norm-study.png
"""

import sys

import matplotlib.pyplot as plt
import pandas as pd

from ftml_bench.results import load

BASELINES = ("FollowTheLeader", "TrainOnEverything")
# FTML's rule, the baseline's rule, and what the comparison is called.
COMPARED = (
    ("support", "support", "both by support"),
    ("transductive", "transductive", "both transductive"),
    ("running", "running", "both running"),
    ("support", "running", "FTML by support,\nthe other running"),
)

if len(sys.argv) != 3:
    sys.exit("expected a leaderboard's folder and a picture to write: python examples/batch_norm_study.py DIR FILE.png")
folder, picture = sys.argv[1:]
results = load(folder)

# Paired by seed and round: FTML minus the other, so that the lead is what is below zero.
leads = []
for rule, other_rule, name in COMPARED:
    pairs = results.paired(to=f"FTML {rule}")
    for baseline in BASELINES:
        of_baseline = pairs[
            (pairs.minus == f"{baseline} {other_rule}") & pairs.quantity.str.endswith("area_all_rounds")
        ]
        leads += [
            (one.benchmark, baseline, name, -one.mean, -one.high, -one.low, one.p_holm, one.verdict)
            for one in of_baseline.itertuples()
        ]
frame = pd.DataFrame(leads, columns=["stream", "baseline", "rules", "lead", "low", "high", "p_holm", "FTML is"])
print(frame.round(3).replace("\n", " ", regex=True).to_string(index=False))

streams = list(dict.fromkeys(frame.stream))
plt.style.use("ftml_bench.report.ftml")
figure, axes = plt.subplots(len(BASELINES), len(streams), figsize=(9, 4.6), sharex="col", sharey=True, squeeze=False)
for line, baseline in zip(axes, BASELINES, strict=True):
    for panel, stream in zip(line, streams, strict=True):
        some = frame[(frame.stream == stream) & (frame.baseline == baseline)]
        bars = [some.lead - some.low, some.high - some.lead]
        panel.errorbar(some.lead, range(len(some)), xerr=bars, fmt="o", color="#0072B2", elinewidth=1.5)
        panel.axvline(0, color="#9A9A9A", linewidth=1, zorder=0)
        panel.set_yticks(range(len(some)), some.rules)
        panel.set_ylim(len(some) - 0.5, -0.5)
        panel.set_title(f"{stream}: {baseline}", loc="left", fontsize=9)
for panel, stream in zip(axes[-1], streams, strict=True):
    panel.set_xlabel(f"FTML's lead in {'loss' if stream == 'sinusoids' else 'error'} area")
figure.savefig(picture, dpi=200)
