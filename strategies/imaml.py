"""iMAML (Rajeswaran, Finn, Kakade, Levine 2019, "Meta-Learning with Implicit Gradients", Algorithms 1 and 2)."""

from __future__ import annotations

from ftml_bench.adaptation import InnerRule
from ftml_bench.errors import UsageError, above_zero, at_least
from ftml_bench.strategies.avalanche.unfit import refuse_complex
from ftml_bench.strategies.ftml import FTML


class IMAML(FTML):
    """FTML whose inner problem is to stay near the initial weights w, and whose derivative forgets the way there.

    The inner steps descend L(θ; D_k^tr) + λ/2 ‖θ - w‖² (its equation 3), in evaluations too. At the minimum, which they
    are taken to have come to, the meta-gradient is (I + H/λ)⁻¹ ∇L(θ; D_k^val) with the Hessian H of the support loss
    (Lemma 1), found by conjugate gradients from products with H. Memory does not grow with the inner steps. Few inner
    steps leave the minimum, and the gradient is then not that of what was computed. Where H has eigenvalues below -λ
    there is no minimum, and conjugate gradients find something else; a larger λ mends it. The engine "higher" is
    refused.

    :param penalty: λ.
    :param cg_steps: iterations of conjugate gradients.
    """

    def __init__(self, *, penalty: float = 1.0, cg_steps: int = 5, **learner) -> None:
        above_zero(penalty=penalty)
        at_least(1, cg_steps=cg_steps)
        super().__init__(**learner)
        refuse_complex(self)
        if not self.engine.second_order:
            raise UsageError("second_order=False: the gradient of IMAML is of second order, without the steps' graph")
        self.penalty = penalty
        self.cg_steps = cg_steps

    @property
    def rule(self) -> InnerRule:
        """The proximal inner problem, from the weights that are adapted."""
        return InnerRule(penalty=self.penalty, implicit=self.cg_steps)

    def _step_cost(self) -> tuple[int, int]:
        query, support = len(self.mbatch[0]), self.mbatch[2].shape[0] * self.mbatch[2].shape[1]
        # a product with H is one evaluation more, as in the second order of FTML; the last is of what is not adapted
        return support + query, query + support * (self.engine.inner_steps + self.cg_steps + 1)
