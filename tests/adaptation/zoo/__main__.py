"""Prints the table of docs/engines.md, a line a kind; to the other stream, what engines say of what they refuse."""

import sys

import torch

from tests.adaptation.zoo import KINDS, Case, line
from tests.adaptation.zoo.case import COLUMNS

torch.set_num_threads(1)
print(
    "| kind of module | " + " | ".join(f"`{name}`" for name in COLUMNS) + " |",
    "|---|" + "---|" * len(COLUMNS),
    sep="\n",
)
for name, kind in KINDS.items():
    case = Case(kind)
    print(line(name, case.words()), flush=True)
    print(*case.reasons.items(), sep="\n", file=sys.stderr)
