"""The forecast in scalars against the same filter in matrices, as text books have it."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_sim.autoscalers.dynamo import ForecastMethod, LevelTrendSeries

Matrix = list[list[float]]
MOVE: Matrix = [[1.0, 1.0], [0.0, 1.0]]
NOISE: Matrix = [[1.0, 0.0], [0.0, 0.1]]
SCATTER = 10.0


def times(a: Matrix, b: Matrix) -> Matrix:
    return [[sum(a[i][k] * b[k][j] for k in range(len(b))) for j in range(len(b[0]))] for i in range(len(a))]


def plus(a: Matrix, b: Matrix) -> Matrix:
    return [[x + y for x, y in zip(one, other, strict=True)] for one, other in zip(a, b, strict=True)]


def transposed(a: Matrix) -> Matrix:
    return [list(column) for column in zip(*a, strict=True)]


def forecast(values: Sequence[float]) -> float:
    """Returns the forecast of a Kalman filter in matrix form, with H = [1, 0].

    x' = F x, P' = F P Fᵀ + Q.

    K = P' Hᵀ (H P' Hᵀ + R)⁻¹.

    P = (I - K H) P' (I - K H)ᵀ + K R Kᵀ.
    """
    state: Matrix = [[values[0]], [0.0]]
    covariance: Matrix = [[1_000.0, 0.0], [0.0, 1_000.0]]
    for value in values[1:]:
        state = times(MOVE, state)
        covariance = plus(times(times(MOVE, covariance), transposed(MOVE)), NOISE)
        gain = [[covariance[0][0] / (covariance[0][0] + SCATTER)], [covariance[1][0] / (covariance[0][0] + SCATTER)]]
        off = value - state[0][0]
        state = plus(state, [[gain[0][0] * off], [gain[1][0] * off]])
        kept = [[1.0 - gain[0][0], 0.0], [-gain[1][0], 1.0]]
        scattered = times([[gain[0][0] * SCATTER], [gain[1][0] * SCATTER]], transposed(gain))
        covariance = plus(times(times(kept, covariance), transposed(kept)), scattered)
    return times(MOVE, state)[0][0]


@pytest.mark.property
@given(st.lists(st.floats(1.0, 5_000.0), min_size=1, max_size=40))
def test_the_forecast_is_that_of_the_filter_in_matrices(values: list[float]) -> None:
    series = LevelTrendSeries()
    for value in values:
        series = series.plus(value)
    assert series.next(ForecastMethod.KALMAN) == pytest.approx(forecast(values), rel=1e-6, abs=1e-5)
