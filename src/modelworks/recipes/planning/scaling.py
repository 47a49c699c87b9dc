"""Which size and how many tokens a budget buys: published scaling laws.

Parametric: L(N, D) = E + A / N^a + B / D^b, least under C = 6 N D where
    N = G (C / 6)^(b / (a + b)),   D = (C / 6) / N,   G = (a A / (b B))^(1 / (a + b)).
N parameters, D tokens, C FLOPs, L nats a token of the data set that it was fitted on.
"""

from __future__ import annotations

from dataclasses import dataclass

PF_DAY = 1e15 * 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class Parametric:
    """A fitted L(N, D)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats a token."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def best(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of the least loss under 6 N D = `flops`."""
        both = self.alpha + self.beta
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / both)
        parameters = scale * (flops / 6) ** (self.beta / both)
        return parameters, flops / 6 / parameters

    def tokens_for(self, loss: float, parameters: float) -> float:
        """Tokens that a model of this size needs to reach `loss`; infinite where it never does."""
        left = loss - self.E - self.A / parameters**self.alpha
        return (self.B / left) ** (1 / self.beta) if left > 0 else float("inf")


CORRECTED = Parametric(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
"""Besiroglu et al. 2024, arXiv 2404.10102: the parametric fit done again on the data of Hoffmann et al."""
HOFFMANN = Parametric(E=1.6934, A=406.4, B=410.7, alpha=0.3392, beta=0.2849)
"""Hoffmann et al. 2022, arXiv 2203.15556, approach 3 (digits of the source; the text rounds them)."""
SOURCES = {
    "approach 1, least loss over runs": "Hoffmann et al. 2022, table 3: N = 67e9 at 5.76e23, exponent 0.50",
    "approach 2, equal FLOPs": "Hoffmann et al. 2022, 4.1: N = 63e9 at 5.76e23, exponent 0.49",
    "approach 3, parametric": "Hoffmann et al. 2022, equation 10",
    "approach 3 corrected": "Besiroglu et al. 2024, arXiv 2404.10102",
    "Kaplan, for contrast": "Kaplan et al. 2020, arXiv 2001.08361, appendix A: parameters without embeddings, "
    "runs too short for small models, hence too large",
}
RECOMMENDED = "approach 3 corrected"
GOPHER = 5.76e23
SERVED = 2.0
"""How often more tokens are served than trained on in the note on inference."""


def advise(flops: float) -> list[dict[str, float | str]]:
    """What every published law makes of a budget: parameters, tokens, their ratio, the loss by the corrected fit."""
    kaplan = 1.3e9 * (flops / PF_DAY) ** 0.73
    found = {
        "approach 1, least loss over runs": 67e9 * (flops / GOPHER) ** 0.50,
        "approach 2, equal FLOPs": 63e9 * (flops / GOPHER) ** 0.49,
        "approach 3, parametric": HOFFMANN.best(flops)[0],
        "approach 3 corrected": CORRECTED.best(flops)[0],
        "Kaplan, for contrast": kaplan,
    }
    rows: list[dict[str, float | str]] = []
    for law, parameters in found.items():
        tokens = flops / 6 / parameters
        rows.append(
            {
                "law": law,
                "parameters": parameters,
                "tokens": tokens,
                "tokens_per_parameter": tokens / parameters,
                "loss": CORRECTED.loss(parameters, tokens),
                "source": SOURCES[law],
            }
        )
    return rows


def for_serving(flops: float, served: float = SERVED) -> dict[str, float]:
    """The cheapest size that reaches the budget's best loss when `served` times its best tokens are served too.

    Training costs 6 N D, serving 2 N a token; a smaller model trained longer is cheaper in all
    (Sardana et al. 2024, arXiv 2401.00448). By the corrected parametric fit, over sizes down to a tenth.
    """
    parameters, tokens = CORRECTED.best(flops)
    target, asked = CORRECTED.loss(parameters, tokens), served * tokens
    best: dict[str, float] = {}
    for percent in range(10, 101):
        size = parameters * percent / 100
        needed = CORRECTED.tokens_for(target, size)
        total = 6 * size * needed + 2 * size * asked
        if not best or total < best["flops_in_all"]:
            best = {
                "parameters": size, "tokens": needed, "tokens_per_parameter": needed / size, "tokens_served": asked,
                "flops_training": 6 * size * needed, "flops_in_all": total,
                "flops_in_all_of_the_largest": flops + 2 * parameters * asked,
            }  # fmt: skip
    return best
