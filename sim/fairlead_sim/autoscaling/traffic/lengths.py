"""Lengths of prompts and answers, as quantiles.

Source: those of conversations are from Azure's hour of 2023. The files are not in the repository,
but their quantiles are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

GRID_SIZE = 4096
"""Values of a sampling grid."""
_QUANTILE_STEPS = 400


@dataclass(frozen=True, slots=True)
class LengthDistribution:
    """Quantiles (0..1 in equal steps) of prompt and answer tokens, which are drawn independently.

    Source: their correlation in the hour of conversations is -0.11.
    """

    prompt: tuple[int, ...]
    output: tuple[int, ...]

    def sampling_grids(self, output_factor: float = 1.0) -> tuple[list[int], list[int]]:
        """Returns prompt and answer tokens to draw from uniformly.

        output_factor: factor on the answers.
        """
        outputs = [max(1, round(value * output_factor)) for value in _quantile_grid(self.output)]
        return [max(1, round(value)) for value in _quantile_grid(self.prompt)], outputs


CHAT_LENGTHS = LengthDistribution(
    (2, 181, 207, 372, 387, 396, 403, 414, 703, 984, 1020, 1045, 1071, 1097, 1130, 1189, 1315, 1877, 2735, 4083, 4142),
    (7, 41, 54, 67, 77, 85, 91, 96, 103, 113, 129, 151, 177, 217, 384, 395, 400, 411, 424, 451, 620),
)
"""The hour of conversations: 1,155 / 211 tokens on average."""
SHORT_OUTPUT_LENGTHS = LengthDistribution(
    (
        20,
        170,
        330,
        490,
        650,
        810,
        970,
        1130,
        1290,
        1450,
        1620,
        1800,
        2000,
        2220,
        2470,
        2760,
        3110,
        3560,
        4200,
        5300,
        7400,
    ),
    (1, 5, 6, 7, 8, 8, 9, 10, 11, 12, 13, 15, 17, 19, 22, 26, 31, 40, 56, 100, 250),
)
"""Code completion: about 2,048 / 28 tokens on average."""


SHORT_CHAT_LENGTHS = LengthDistribution(
    (2, 20, 33, 45, 60, 80, 100, 120, 145, 175, 215, 265, 340, 450, 620, 950, 1_900),
    (5, 25, 45, 65, 85, 110, 135, 160, 190, 230, 290, 380, 520, 800),
)
"""Questions without history: about 250 / 200 tokens on average, in round numbers."""
DOCUMENT_LENGTHS = LengthDistribution(
    (1_100, 1_900, 2_400, 2_900, 3_300, 3_700, 4_100, 4_600, 5_200, 6_100, 8_000),
    (60, 110, 140, 170, 200, 240, 280, 330, 400, 520, 800),
)
"""Long prompts: about 3,900 / 270 tokens on average, in round numbers."""


def quantiles_between(knots: Sequence[tuple[float, int]]) -> tuple[int, ...]:
    """Returns quantiles in equal steps, on geometric lines between known ones.

    knots: (share, tokens), from share 0 to share 1.
    """
    quantiles, below = [], 0
    for step in range(_QUANTILE_STEPS + 1):
        share = step / _QUANTILE_STEPS
        while below < len(knots) - 2 and share > knots[below + 1][0]:
            below += 1
        (begin, low), (end, high) = knots[below], knots[below + 1]
        quantiles.append(round(low * (high / low) ** ((share - begin) / (end - begin))))
    return tuple(quantiles)


VERY_LONG_LENGTHS = LengthDistribution(
    quantiles_between(
        (
            (0.0, 100),
            (0.1, 1_200),
            (0.25, 3_500),
            (0.5, 6_900),
            (0.75, 13_500),
            (0.9, 28_000),
            (0.95, 37_000),
            (0.99, 85_000),
            (1.0, 126_000),
        )
    ),
    quantiles_between(
        (
            (0.0, 1),
            (0.05, 10),
            (0.1, 24),
            (0.25, 150),
            (0.5, 351),
            (0.75, 480),
            (0.9, 620),
            (0.95, 760),
            (1.0, 1_600),
        )
    ),
)
"""Conversations with prompts of up to 126,000 tokens: about 12,100 / 346 tokens on average.

Source: Mooncake's published conversations without an upper limit, in rounded quantiles. The squared
coefficient of variation of the prompts is 1.7. One answer in ten has at most 24 tokens.
"""

LONG_CHAT_LENGTHS = LengthDistribution(
    quantiles_between(((0.0, 300), (0.1, 1_500), (0.5, 5_000), (0.9, 12_000), (1.0, 24_000))),
    quantiles_between(((0.0, 20), (0.1, 80), (0.5, 250), (0.9, 600), (1.0, 1_200))),
)
"""Conversations of many turns: about 6,000 / 300 tokens on average, in round numbers."""


def _quantile_grid(quantiles: Sequence[int]) -> list[float]:
    last = len(quantiles) - 1
    values = []
    for place in range(GRID_SIZE):
        position = (place + 0.5) / GRID_SIZE * last
        below = int(position)
        values.append(quantiles[below] + (quantiles[below + 1] - quantiles[below]) * (position - below))
    return values
