"""A simulated gateway for the management port: real telemetry, log and app, invented traffic.

As a script, it serves the status page for a browser:

    python tests/gateway/supervisor/management/conftest.py busy|empty|unready|idle [PORT]
"""

import asyncio
import random
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest

from fairlead.audit import AuditLog, AuditRecord
from fairlead.audit.reader import AuditQuery
from fairlead.decision import Decision, DecisionInput, DecisionText, RejectedCandidate
from fairlead.fleet.hung_engines import EjectionReport
from fairlead.fleet.model import Fleet, Instance, InstanceState, Model, ModelRouting, SloTargets
from fairlead.fleet.signals import EngineSignals
from fairlead.limits import Limits
from fairlead.management_api import LimitOut
from fairlead.runtime.clock import Clock, ManualClock, SystemClock
from fairlead.runtime.loop_lag import LoopLag
from fairlead.tenants.model import Tenant
from fairlead.usage.ledger_reader import LedgerContent
from fairlead_gateway.ipc.decision_json import logged_decision
from fairlead_gateway.limits.budget_watch import BudgetState
from fairlead_gateway.messages import LoggedDecision
from fairlead_gateway.proxy.gateway import DECISION_LOG
from fairlead_gateway.routing import InstanceLoad
from fairlead_gateway.supervisor.management.view import GatewayStatus
from fairlead_gateway.telemetry import MetricsRecorder, assess_attainment
from fairlead_gateway.telemetry.decision_log import LATEST, DecisionLog, DecisionRecord
from fairlead_gateway.tenants.messages import TenantsSnapshot
from fairlead_testing.gateway.decision_view import append_decision
from fairlead_testing.gateway.running_gateway import make_outcome

KEY = "chat/llama-70b"


class SimulatedGateway:
    """A `management.view.GatewayView`; `serve` invents its traffic, `log` has the decisions."""

    def __init__(self, clock: Clock, seed: int = 1) -> None:
        self.clock = clock
        self.lag = LoopLag()
        self.telemetry = MetricsRecorder(clock, self.lag)
        self.log = DecisionLog(DECISION_LOG)
        self.audit = AuditLog("gateway", "gw-1", clock)
        self.snapshot = Fleet()
        self.ledger: dict[str, InstanceLoad] = {}
        self.notes: list[str] = []
        self.is_ready = True
        self.random = random.Random(seed)
        self.served = 0
        self.health_state: Callable[[str], tuple[str, str]] | None = None
        self.budget_states: list[BudgetState] = []
        self.usage_ledger: Callable[[str, str], LedgerContent] | None = None
        self.limits: list[LimitOut] = []
        self.ejections: dict[str, EjectionReport] = {}
        self.answer_times: dict[str, float] = {}
        self.tenant_table: dict[str, Tenant] = {}
        self.key_uses: dict[bytes, float] = {}
        self.previewed: list[str | None] = []
        self.preview_headers: list[tuple[str, str]] = []

    def fleet(self) -> Fleet:
        return self.snapshot

    def loads(self) -> Mapping[str, InstanceLoad]:
        return self.ledger

    @property
    def started_at(self) -> float:
        return self.telemetry.started_at

    async def status(self) -> GatewayStatus:
        return GatewayStatus(
            self.is_ready,
            self.notes,
            self.ledger,
            self.health_state,
            self.lag,
            ejections=self.ejections,
            answer_times=self.answer_times,
        )

    async def counters(self, *, windows: bool) -> MetricsRecorder:
        return self.telemetry

    @property
    def tenant_reports(self) -> "SimulatedGateway":
        return self

    def budgets(self) -> list[BudgetState]:
        return self.budget_states

    async def usage_content(self, first_day: str, last_day: str) -> LedgerContent | None:
        return self.usage_ledger and self.usage_ledger(first_day, last_day)

    async def limit_states(self, tenants: frozenset[str] | None, limit: int) -> list[LimitOut]:
        return [state for state in self.limits if tenants is None or state.tenant in tenants][:limit]

    def tenants(self) -> TenantsSnapshot:
        return TenantsSnapshot(self.tenant_table, 1_000.0, self.key_uses.get)

    async def decisions(
        self, limit: int, model_key: str | None, tenants: frozenset[str] | None = None, kind: str = LATEST
    ) -> list[LoggedDecision]:
        return [logged_decision(logged) for logged in self.log.latest(limit, model_key, tenants, kind)]

    async def decision(self, request_id: str, tenants: frozenset[str] | None = None) -> list[LoggedDecision]:
        return [logged_decision(logged) for logged in self.log.find(request_id, tenants)]

    def audit_records(self, query: AuditQuery, limit: int) -> list[AuditRecord]:
        return self.audit.recent(query, limit)

    async def preview_route(
        self,
        path: str,
        body: bytes,
        session: str | None,
        tenant: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> list[LoggedDecision]:
        self.previewed.append(tenant)
        self.preview_headers = list(headers)
        return [logged_decision(logged) for logged in self.log.latest(1)]

    def populate(self, *, ready: int = 8, starting: int = 0) -> None:
        """Sets up a big model with `ready` + `starting` instances and a small one with two."""
        big = Model("chat", "llama-70b", SloTargets(0.95, 2.0, 0.12, 0.05))
        small = Model("default", "qwen3-8b", SloTargets(0.9), ModelRouting("least-request"))
        states = [InstanceState.READY] * ready + [InstanceState.STARTING] * starting
        pool = tuple(self._instance("chat", "llama-70b", n, state) for n, state in enumerate(states))
        pair = tuple(self._instance("default", "qwen3-8b", n, InstanceState.READY) for n in range(2))
        if ready > 2:
            pool = (*pool[:2], replace(pool[2], state=InstanceState.DRAINING), *pool[3:])
        self.snapshot = Fleet(
            7, 3, {big.key: big, small.key: small}, {big.key: pool, small.key: pair if ready else pair[:0]}
        )

    def _instance(self, namespace: str, model: str, n: int, state: InstanceState) -> Instance:
        port = (9001 if model == "llama-70b" else 9101) + n
        signals = EngineSignals(
            running=float(n % 5 + 1),
            waiting=float(n % 3),
            kv_usage=0.11 * (n % 8) + 0.05,
            prefix_queries_total=200_000.0,
            prefix_hits_total=40_000.0 + 15_000 * (n % 8),
            preemptions_total=0.0,
        )
        heard = state is not InstanceState.STARTING
        return Instance(
            id=f"main-{n}/{port}/0",
            namespace=namespace,
            model=model,
            pool="main",
            url=f"http://127.0.0.1:{port}",
            state=state,
            signals=signals if heard else None,
            received_at=self.clock.now() - 0.8 - 0.2 * (n % 3) if heard else None,
        )

    def serve(self, count: int, *, key: str = KEY) -> None:
        """Invents `count` requests from start to end."""
        for _ in range(count):
            self._request(key)

    def _request(self, key: str) -> None:
        self.served += 1
        request_id = f"req_{self.random.getrandbits(64):016x}"
        prompt = self.random.randint(200, 18_000)
        self.telemetry.record_received(key)
        attempt = 1
        chosen, decision = self._decide(key, prompt)
        self._record(request_id, key, chosen, decision, attempt, prompt)
        if self.served % 37 == 0:
            self.telemetry.record_retry(key, chosen, "connect")
            self.telemetry.record_ejection(key, chosen, "refused")
            self.telemetry.record_resumption(key, "whole")
            self.telemetry.record_not_continued(key, "grammar")
            attempt = 2
            chosen, decision = self._decide(key, prompt)
            self._record(request_id, key, chosen, decision, attempt, prompt)
        if self.served % 11 == 0:
            return
        share = self.random.choice((0.0, 0.5, 0.8, 0.95))
        cached = int(prompt * share) // 16 * 16
        ttft = 0.05 + (prompt - cached) * 0.000145 * self.random.lognormvariate(0, 0.4)
        gone, failed = self.served % 23 == 0, self.served % 53 == 0
        gaps = [0.024 * self.random.lognormvariate(0, 0.3) for _ in range(20)]
        if not failed:
            self.telemetry.record_first_token(key, chosen, ttft)
            for gap in gaps:
                self.telemetry.record_inter_token(key, chosen, gap)
        mean = sum(gaps) / len(gaps)
        goals = self.snapshot.models[key].objectives
        met = assess_attainment(goals, prompt_tokens=prompt, ttft_seconds=ttft, itl_mean_seconds=mean, failed=failed)
        outcome = make_outcome(
            request_id=request_id,
            model_key=key,
            instance_id=chosen,
            status=502 if failed else 200,
            error="cut" if failed else None,
            started_wall=self.clock.wall(),
            duration_seconds=ttft + sum(gaps),
            ttft_seconds=None if failed else ttft,
            itl_mean_seconds=None if failed else mean,
            prompt_tokens=None if failed else prompt,
            cached_tokens=None if failed else cached,
            predicted_cached_tokens=int(cached * 0.97),
            output_tokens=None if failed else len(gaps) * 6,
            within_objective=None if gone else met.both,
            attempts=attempt,
            client_disconnected=gone,
            within_ttft=met.ttft,
            within_itl=met.itl,
        )
        self.telemetry.record_finished(outcome)
        self.log.complete(outcome)

    def serve_tenant(self, tenant: str, request_id: str, *, client_id: str | None = None, key: str = KEY) -> None:
        """Invents a request of a tenant that still runs."""
        _, decision = self._decide(key, 1_000)
        record = DecisionRecord(request_id, self.clock.wall(), key, decision, 1, 1_000.0, tenant)
        record.client_id = client_id
        append_decision(self.log, record)

    def _decide(self, key: str, prompt: int) -> tuple[str, Decision]:
        ready = [item.id for item in self.snapshot.instances[key] if item.state is InstanceState.READY]
        picked = self.random.sample(ready, min(3, len(ready)))
        chosen = picked[0]
        rule = self.random.choice(("affinity",) * 8 + ("slo-spill", "load", "load"))
        reason = {
            "affinity": f"a home with about {prompt // 2:,} tokens cached; first token in about 410ms",
            "slo-spill": "both homes over the TTFT target of 2s; first token in about 1.7s here",
            "load": "cheaper than its homes; first token in about 620ms",
        }[rule]
        inputs: dict[str, DecisionInput] = {"mean/backlog_seconds": DecisionInput(0.31)}
        for place, item in enumerate(picked):
            inputs[f"{item}/backlog_seconds"] = DecisionInput(0.2 + 0.9 * place)
            inputs[f"{item}/matched_tokens"] = DecisionInput(float(prompt // 2 if not place else 0))
            inputs[f"{item}/predicted_ttft_seconds"] = DecisionInput(0.41 + 1.1 * place)
            inputs[f"{item}/cost_seconds"] = DecisionInput(0.5 + 2.2 * place)
            inputs[f"{item}/home"] = DecisionInput(float(place < 2 and rule == "affinity"))
        why = tuple(
            RejectedCandidate(item, f"costs {2.7 + 2.2 * place:.1f}s against 500ms")
            for place, item in enumerate(picked[1:])
        )
        return chosen, Decision(chosen, rule, DecisionText(reason, why, inputs), 0.5)

    def _record(self, request_id: str, key: str, chosen: str, decision: Decision, attempt: int, prompt: int) -> None:
        self.telemetry.record_routed(key, chosen, decision)
        wall = self.clock.wall()
        append_decision(self.log, DecisionRecord(request_id, wall, key, decision, attempt, float(prompt)))

    def load_up(self) -> None:
        """Puts some work in flight."""
        for instances in self.snapshot.instances.values():
            for n, instance in enumerate(instances):
                if instance.state is not InstanceState.STARTING:
                    self.ledger[instance.id] = InstanceLoad(n % 5 + 2, n % 3, 0.17 * (n % 4), 4_000.0 * n)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(now=1_000.0)


@pytest.fixture
def made_up(clock: ManualClock) -> SimulatedGateway:
    """Returns a gateway with two models, work in flight, and no traffic yet."""
    view = SimulatedGateway(clock)
    view.populate()
    view.load_up()
    return view


async def _serve(state: str, port: int) -> None:
    from fairlead_gateway.supervisor.management.access.manage_tokens import ManageTokens
    from fairlead_gateway.supervisor.management.server import ManagementServer

    view = SimulatedGateway(SystemClock())
    view.lag.start()
    if state == "busy":
        view.populate(ready=8, starting=1)
        view.load_up()
        view.notes = ["no Redis: decisions are not shared with other gateways"]
    elif state == "unready":
        view.populate(ready=0, starting=3)
        view.is_ready, view.notes = (
            False,
            ["no engine of chat/llama-70b is ready", "no engine of default/qwen3-8b is ready"],
        )
    elif state == "idle":
        view.populate(ready=2)
    await ManagementServer(
        view, socket.create_server(("127.0.0.1", port)), limits=Limits(), tokens=ManageTokens(None)
    ).start()
    while True:
        if state == "busy":
            view.populate(ready=8, starting=1)
            view.serve(view.random.randint(4, 9))
            view.serve(1, key="default/qwen3-8b")
        await asyncio.sleep(0.5)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 9000))
