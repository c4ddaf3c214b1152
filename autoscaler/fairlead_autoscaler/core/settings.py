"""What can be set of the scaling core. One set serves every model that was measured (docs/decisions/0038): change it only with a
replay beside the old one (``fairlead replay-scaling``).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """Times in seconds, shares 0..1, the rest plain numbers.

    ``freeze``: nothing is changed while it is set, whatever is seen; the plan still says what it would be about.
    """

    freeze: bool = False

    # Load: what arrives, in bins.
    bin_seconds: float = 30.0
    level_seconds: float = 300.0
    short_bins: int = 3
    recent_seconds: float = 30.0
    past_seconds: float = 2_400.0
    spread_sigmas: float = 1.0
    recur_share: float = 3.0
    burst_room: float = 1.6
    burst_few: float = 4.0
    burst_spare: float = 0.03
    clump_seconds: float = 600.0
    clump_least: float = 6.0
    swing_over: float = 0.25
    swing_few: int = 4
    swing_sigmas: float = 3.0
    swing_guess: float = 0.08
    swing_most: float = 0.5
    change_sigmas: float = 5.0
    change_share: float = 0.25
    change_odds: float = 6.0
    fall_sigmas: float = 3.0
    trend_t: float = 4.0
    trend_seconds: float = 300.0
    trend_bins: int = 8
    ahead_quantile: float = 0.5
    ready_extra_seconds: float = 10.0

    # Capacity: where the knee lies.
    itl_share: float = 0.7
    itl_share_decoding: float = 0.9
    hurt_share: float = 1.0
    gentle_room: float = 0.7
    gentle_reserve: float = 1.3
    crowd_sigmas: float = 4.3
    busy_least: float = 0.2
    prefill_busy_most: float = 0.96
    prefill_pool_busy: float = 0.85
    length_seconds: float = 60.0
    drift_sigmas: float = 3.0
    drift_most: float = 2.0
    length_slow_seconds: float = 900.0
    turn_times: float = 1.5
    turn_sigmas: float = 5.0
    speed_seconds: float = 20.0
    speed_odd: float = 0.12
    speed_least: float = 0.5
    speed_most: float = 3.0

    # Margin: the error budget.
    margin: float = 1.0
    margin_least: float = 0.85
    margin_most: float = 1.4
    margin_up_per_second: float = 1.5e-4
    margin_down_per_second: float = 2.0e-5
    margin_spend: float = 0.4
    spare_most: float = 0.5
    spare_margin: float = 0.93
    short_seconds: float = 60.0
    budget_fast_seconds: float = 300.0
    budget_slow_seconds: float = 3_600.0

    # Backlog and starts.
    queue_usual: float = 2.0
    drain_seconds: float = 60.0
    backlog_seconds: float = 60.0
    backlog_ahead: float = 1.0
    hedge: float = 2.0
    hedge_overloaded: float = 3.0
    overloaded_share: float = 1.25
    hedge_missing_share: float = 0.1
    hedge_lone_share: float = 0.25
    hedge_lone_slow: float = 1.5

    start_price: float = 0.3
    switch_starts: float = 1.0
    mix_seconds: float = 300.0
    mix_switch_share: float = 0.15

    # Down.
    window_seconds: float = 300.0
    window_least_seconds: float = 60.0
    window_startups: float = 3.0
    restart_seconds: float = 120.0
    doubt_seconds: float = 315.0
    what_if_share: float = 0.95
    down_every_seconds: float = 60.0
    down_least_seconds: float = 15.0
    down_share: float = 0.5

    # Blind.
    blind_hold_seconds: float = 60.0
    blind_rise: float = 1.25
    gap_intervals: float = 3.5
    lie_share: float = 0.5
    lie_most_seconds: float = 900.0

    # Zero, and asleep.
    cold_start_price: float = 4.0
    sleep_price: float = 0.1
