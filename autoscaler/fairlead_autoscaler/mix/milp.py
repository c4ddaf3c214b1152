"""Mixed-integer program of the accelerator mix, for HiGHS.

For shapes b at r_b requests per second, and pools g whose replica costs c_g and serves T_gb of a
shape:

    min   Σ_g c_g·y_g + Σ_g (start_g·up_g + change_g·down_g)
    s.t.  Σ_g x_gb = 1                                  every request goes somewhere
          Σ_b x_gb·r_b/T_gb ≤ y_g                       a pool's replicas carry what goes there
          up_g ≥ y_g - running_g,  down_g ≥ running_g - y_g
          0 ≤ x_gb ≤ 1,  y_g whole, between the pool's bounds

Source: Mélange, which cuts each bucket into slices and gives each slice to one type (x binary).
Here requests of a bucket are routed one by one, so a bucket can be shared at any ratio. With
continuous x only as many variables are whole as there are pools. The optimum never costs more than
that of slices, whose every solution is also one here, and it is found faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import highspy
import numpy as np

from fairlead_autoscaler.mix.types import MixSettings, PoolCandidate


@dataclass(frozen=True, slots=True)
class MilpSolution:
    """The result of a solver run.

    status: `optimal`, `limit` (time ran out, the best solution so far), `infeasible` or `failed`.
    replicas, shares: of each candidate, and `shares[candidate][shape]`; None if nothing was found.
    """

    status: str
    replicas: tuple[int, ...] | None = None
    shares: tuple[tuple[float, ...], ...] | None = None


def start_stop_prices(candidate: PoolCandidate, settings: MixSettings) -> tuple[float, float]:
    """Returns the prices per hour of one replica more and of one fewer, in addition to its cost."""
    change = settings.change_share * candidate.cost_per_hour
    return candidate.cost_per_hour * candidate.startup_seconds / settings.hold_seconds + change, change


def solve_milp(
    rates: Sequence[float],
    candidates: Sequence[PoolCandidate],
    settings: MixSettings,
    *,
    start: Sequence[int] | None = None,
    slices: int = 0,
) -> MilpSolution:
    """Solves the program for `rates` within `settings.solve_seconds`.

    start: replicas of a mix that is known to be feasible, to begin with.
    slices: if not 0, the shares are whole slices, as in Mélange; only benchmarks compare with it.
    """
    shapes = [shape for shape, rate in enumerate(rates) if rate > 0.0]
    columns = _Columns(len(candidates), len(shapes) * max(1, slices))
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    # One thread and a fixed seed: the same rates give the same mix.
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
    is_feasible = highs.getInfo().primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    if status == highspy.HighsModelStatus.kOptimal:
        name = "optimal"
    elif status == highspy.HighsModelStatus.kTimeLimit:
        name = "limit"
    else:
        return MilpSolution("failed")
    if not is_feasible:
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
    """The positions of variables: replicas, starts and stops of each candidate, then shares."""

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
    is_binary: bool,
) -> highspy.HighsLp:
    """Returns the program.

    rates: of each part.
    parts: the shape of each part.
    is_binary: shares are 0 or 1.
    """
    infinity = highspy.kHighsInf
    cost, lower, upper = np.zeros(columns.size), np.zeros(columns.size), np.ones(columns.size)
    kinds = [highspy.HighsVarType.kInteger if is_binary else highspy.HighsVarType.kContinuous] * columns.size
    rows: list[list[tuple[int, float]]] = []
    row_lower: list[float] = []
    row_upper: list[float] = []

    def row(least: float, terms: list[tuple[int, float]], most: float) -> None:
        rows.append(terms)
        row_lower.append(least)
        row_upper.append(most)

    for at, candidate in enumerate(candidates):
        count, up, down = columns.count(at), columns.up(at), columns.down(at)
        cost[count] = candidate.cost_per_hour
        cost[up], cost[down] = start_stop_prices(candidate, settings)
        lower[count], upper[count] = candidate.minimum, candidate.maximum
        upper[up] = upper[down] = infinity
        kinds[count] = highspy.HighsVarType.kInteger
        kinds[up] = kinds[down] = highspy.HighsVarType.kContinuous
        row(-infinity, [(count, 1.0), (up, -1.0)], float(candidate.running))
        row(float(candidate.running), [(count, 1.0), (down, 1.0)], infinity)
        load = [(count, -1.0)]
        for part, shape in enumerate(parts):
            if candidate.throughput[shape] > 0.0:
                load.append((columns.share(at, part), rates[part] / candidate.throughput[shape]))
            else:
                upper[columns.share(at, part)] = 0.0
        row(-infinity, load, 0.0)
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
