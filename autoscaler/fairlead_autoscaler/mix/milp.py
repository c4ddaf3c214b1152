"""The mix as a mixed-integer program, for HiGHS.

For shapes b at r_b requests a second and pools g whose replica costs c_g and serves T_gb of a shape:

    min   Σ_g c_g·y_g + Σ_g (start_g·up_g + change_g·down_g)
    s.t.  Σ_g x_gb = 1                                  every request goes somewhere
          Σ_b x_gb·r_b/T_gb ≤ y_g                       a pool's replicas carry what goes there
          up_g ≥ y_g - running_g,  down_g ≥ running_g - y_g
          0 ≤ x_gb ≤ 1,  y_g whole, between the pool's bounds

Mélange cuts each bucket into slices and gives each slice to one type (x binary). Requests of a bucket are routed one by one,
so a bucket can be shared at any ratio, and with continuous x only as many variables are whole as there are pools. The
optimum is never dearer than that with slices, whose every solution is one of ours, and it is found faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import highspy
import numpy as np

from fairlead_autoscaler.mix.types import MixSettings, PoolCandidate


@dataclass(frozen=True, slots=True)
class MilpSolution:
    """``status``: ``optimal``, ``limit`` (time ran out; the best found, if any), ``infeasible`` or ``failed``. Replicas and
    shares (``shares[candidate][shape]``) are None where nothing was found."""

    status: str
    replicas: tuple[int, ...] | None = None
    shares: tuple[tuple[float, ...], ...] | None = None


def start_stop_prices(one: PoolCandidate, settings: MixSettings) -> tuple[float, float]:
    """What a replica more and one fewer are charged beside their cost, per hour."""
    change = settings.change_share * one.cost_per_hour
    return one.cost_per_hour * one.startup_seconds / settings.hold_seconds + change, change


def solve_milp(
    rates: Sequence[float],
    candidates: Sequence[PoolCandidate],
    settings: MixSettings,
    *,
    start: Sequence[int] | None = None,
    slices: int = 0,
) -> MilpSolution:
    """Solve for ``rates`` within ``settings.solve_seconds``. ``start``: replicas of a mix that is known to do, to begin
    with. With ``slices`` the shares are whole slices, as Mélange has them; that is what benches compare with."""
    shapes = [shape for shape, rate in enumerate(rates) if rate > 0.0]
    columns = _Columns(len(candidates), len(shapes) * max(1, slices))
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("threads", 1)
    highs.setOptionValue("random_seed", 0)
    highs.setOptionValue("mip_rel_gap", 1e-6)
    highs.setOptionValue("time_limit", settings.solve_seconds)
    parts = [shape for shape in shapes for _ in range(max(1, slices))]
    part_rates = [rates[shape] / max(1, slices) for shape in parts]
    highs.passModel(_build_model(columns, part_rates, parts, candidates, settings, slices > 0))
    if start is not None:
        index = np.array([columns.count(at) for at in range(len(candidates))], dtype=np.int32)
        highs.setSolution(len(index), index, np.array(start, dtype=np.double))
    highs.run()
    status = highs.getModelStatus()
    if status == highspy.HighsModelStatus.kInfeasible:
        return MilpSolution("infeasible")
    found = highs.getInfo().primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    if status == highspy.HighsModelStatus.kOptimal:
        name = "optimal"
    elif status == highspy.HighsModelStatus.kTimeLimit:
        name = "limit"
    else:
        return MilpSolution("failed")
    if not found:
        return MilpSolution(name if name == "limit" else "failed")
    values = highs.getSolution().col_value
    replicas = tuple(round(values[columns.count(at)]) for at in range(len(candidates)))
    shares = []
    for at in range(len(candidates)):
        row = [0.0] * len(rates)
        for part, shape in enumerate(parts):
            row[shape] += min(1.0, max(0.0, values[columns.share(at, part)])) / max(1, slices)
        shares.append(tuple(row))
    return MilpSolution(name, replicas, tuple(shares))


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where a variable stands: replicas, starts and stops of each candidate, then shares."""

    candidates: int
    parts: int

    def count(self, at: int) -> int:
        return at

    def up(self, at: int) -> int:
        return self.candidates + at

    def down(self, at: int) -> int:
        return 2 * self.candidates + at

    def share(self, at: int, part: int) -> int:
        return 3 * self.candidates + at * self.parts + part

    @property
    def size(self) -> int:
        return self.candidates * (3 + self.parts)


def _build_model(
    columns: _Columns,
    rates: Sequence[float],
    parts: Sequence[int],
    candidates: Sequence[PoolCandidate],
    settings: MixSettings,
    whole: bool,
) -> highspy.HighsLp:
    """The program of ``rates`` (of each part) and the shape that each part is of."""
    endless = highspy.kHighsInf
    cost, lower, upper = np.zeros(columns.size), np.zeros(columns.size), np.ones(columns.size)
    kinds = [highspy.HighsVarType.kInteger if whole else highspy.HighsVarType.kContinuous] * columns.size
    rows: list[list[tuple[int, float]]] = []
    row_lower: list[float] = []
    row_upper: list[float] = []

    def row(least: float, terms: list[tuple[int, float]], most: float) -> None:
        rows.append(terms)
        row_lower.append(least)
        row_upper.append(most)

    for at, one in enumerate(candidates):
        count, up, down = columns.count(at), columns.up(at), columns.down(at)
        cost[count] = one.cost_per_hour
        cost[up], cost[down] = start_stop_prices(one, settings)
        lower[count], upper[count] = one.minimum, one.maximum
        upper[up] = upper[down] = endless
        kinds[count] = highspy.HighsVarType.kInteger
        kinds[up] = kinds[down] = highspy.HighsVarType.kContinuous
        row(-endless, [(count, 1.0), (up, -1.0)], float(one.running))
        row(float(one.running), [(count, 1.0), (down, 1.0)], endless)
        load = [(count, -1.0)]
        for part, shape in enumerate(parts):
            if one.throughput[shape] > 0.0:
                load.append((columns.share(at, part), rates[part] / one.throughput[shape]))
            else:
                upper[columns.share(at, part)] = 0.0
        row(-endless, load, 0.0)
    for part in range(len(parts)):
        row(1.0, [(columns.share(at, part), 1.0) for at in range(len(candidates))], 1.0)
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = columns.size, len(rows)
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = cost, lower, upper
    lp.row_lower_, lp.row_upper_ = np.array(row_lower), np.array(row_upper)
    lp.integrality_ = kinds
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.cumsum([0, *[len(terms) for terms in rows]])
    lp.a_matrix_.index_ = np.array([at for terms in rows for at, _ in terms])
    lp.a_matrix_.value_ = np.array([value for terms in rows for _, value in terms])
    return lp
