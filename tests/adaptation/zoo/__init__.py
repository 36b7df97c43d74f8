"""Other people's kinds of modules, small, and what each engine makes of them.

`python -m tests.adaptation.zoo` prints the table of docs/engines.md.
"""

from tests.adaptation.zoo import layers, others  # noqa: F401 (they add their kinds, in this order)
from tests.adaptation.zoo.case import Case, line
from tests.adaptation.zoo.kinds import KINDS

__all__ = ["KINDS", "Case", "line"]
