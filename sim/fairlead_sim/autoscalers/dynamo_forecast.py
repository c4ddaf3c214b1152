"""The forecasts of Dynamo's planner: the next value of a series with one value per interval.

- Kalman: a level that moves by a trend, level' = level + trend. Both drift, with variances of 1 and
  0.1 an interval; measurements have a variance of 10. The forecast is the next level. The first
  value sets the level, with a variance of 1000.
- Constant: the last value.

Both leave out zeros before the first value that is not zero. ARIMA (the planner's default) and
Prophet are not modelled: they need packages and minutes of data. The study of the presets used
Kalman in their place.

Source: ai-dynamo/dynamo, components/src/dynamo/planner/utils/load_predictor.py at 0ff50012
(KalmanPredictor, ConstantPredictor); defaults kalman_q_level 1.0, kalman_q_trend 0.1, kalman_r
10.0. Apache-2.0. Facts, not code: the filter's equations are written out for two states; the
original calls filterpy.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

_FIRST_VARIANCE = 1000.0


class ForecastMethod(StrEnum):
    """The method of the forecast."""

    CONSTANT = "constant"
    KALMAN = "kalman"


@dataclass(frozen=True, slots=True)
class LevelTrendSeries:
    """A local linear trend: level and trend with their variances and covariance.

    seen: the series has a value.
    """

    seen: bool = False
    last: float = 0.0
    level: float = 0.0
    trend: float = 0.0
    level_variance: float = _FIRST_VARIANCE
    covariance: float = 0.0
    trend_variance: float = _FIRST_VARIANCE
    level_noise: float = 1.0
    trend_noise: float = 0.1
    measurement_noise: float = 10.0

    def plus(self, value: float) -> "LevelTrendSeries":
        """Returns the series with the value of the next interval."""
        if not self.seen:
            return self if value == 0.0 else replace(self, seen=True, last=value, level=value)
        ahead = self._ahead()
        gain = ahead.level_variance / (ahead.level_variance + self.measurement_noise)
        trend_gain = ahead.covariance / (ahead.level_variance + self.measurement_noise)
        off = value - ahead.level
        return replace(
            ahead,
            last=value,
            level=ahead.level + gain * off,
            trend=ahead.trend + trend_gain * off,
            level_variance=(1.0 - gain) * ahead.level_variance,
            covariance=(1.0 - gain) * ahead.covariance,
            trend_variance=ahead.trend_variance - trend_gain * ahead.covariance,
        )

    def next(self, forecast: ForecastMethod) -> float:
        """Returns the forecast for the next interval; 0 before the first value."""
        return self.last if forecast is ForecastMethod.CONSTANT or not self.seen else self._ahead().level

    def _ahead(self) -> "LevelTrendSeries":
        return replace(
            self,
            level=self.level + self.trend,
            level_variance=self.level_variance + 2.0 * self.covariance + self.trend_variance + self.level_noise,
            covariance=self.covariance + self.trend_variance,
            trend_variance=self.trend_variance + self.trend_noise,
        )
