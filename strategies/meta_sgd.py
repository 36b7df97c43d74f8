"""Meta-SGD (Li, Zhou, Chen, Li 2017, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", Algorithm 1)."""

from __future__ import annotations

from ftml_bench.strategies.learned_rates import LearnedRates


class MetaSGD(LearnedRates):
    """FTML that learns an inner rate for every single weight: both where to start and where to go, how far.

    θ' = θ - α ∘ ∇L(D_k^tr, θ), and (θ, α) ← (θ, α) - β∇ L(D_k^val, θ') (its equation 3 and Algorithm 1), with the
    derivative through all inner steps. α starts as `inner_lr` everywhere (the authors draw it) and may become negative,
    as theirs. Twice as many numbers are trained and saved.
    """
