"""All stages between a worker's requests and the engines, built in order.

From the outside in: credentials and connections; routers and outlier detection; admission; attempts
and their records; relay, continuation and forwarder.
"""

import random
from collections.abc import Callable

from fairlead.fleet.model import Fleet
from fairlead_gateway.adapters.worker.adapter_loader import AdapterLoader
from fairlead_gateway.admission.worker.admission_queue import AdmissionController
from fairlead_gateway.disaggregation.worker.prefill_coordinator import PrefillCoordinator
from fairlead_gateway.journal import Reporters
from fairlead_gateway.limits.worker.limit_gate import LimitGate
from fairlead_gateway.proxy.attempt import AttemptParts
from fairlead_gateway.proxy.background_work import BackgroundWork
from fairlead_gateway.proxy.context_lengths import ContextLengths
from fairlead_gateway.proxy.fallbacks import Fallbacks
from fairlead_gateway.proxy.fast_path import FastPath, RequestLifecycle
from fairlead_gateway.proxy.forwarder import Forwarder
from fairlead_gateway.proxy.model_selection import ModelRequestParser
from fairlead_gateway.proxy.relay import ResponseRelay
from fairlead_gateway.proxy.request_recorder import RequestRecorder
from fairlead_gateway.proxy.shadow_traffic import ShadowTraffic
from fairlead_gateway.resilience.outlier_detection import OutlierDetector
from fairlead_gateway.resilience.poison_requests import PoisonRequestGuard
from fairlead_gateway.resilience.worker.ejection_prober import EjectionProber
from fairlead_gateway.resilience.worker.engine_progress import EngineProgress
from fairlead_gateway.resilience.worker.failure_attribution import FailureAttribution
from fairlead_gateway.resilience.worker.retry import RetryBudget
from fairlead_gateway.router_registry import RouterRegistry
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.tenants.worker.api_keys import GatewaySecrets
from fairlead_gateway.tenants.worker.tenant_policy import ModelVisibility
from fairlead_gateway.upstream.connection_pool import ConnectionPool
from fairlead_gateway.upstream.request_encoder import create_hop_id


class RequestStages:
    """The parts that carry requests to engines; a new fleet updates all of them."""

    def __init__(
        self,
        lifecycle: RequestLifecycle,
        runtime: WorkerRuntime,
        secrets: GatewaySecrets,
        recorder: RequestRecorder,
        reporters: Reporters,
    ) -> None:
        secret = secrets.hash_secret
        limits, telemetry, sharing = runtime.limits, recorder.telemetry, reporters.sharing_journal
        draw = random.Random(f"{runtime.clock.wall()}").random
        detector, retry_budget = OutlierDetector(limits, draw), RetryBudget(limits)
        self._now = runtime.now
        self.credentials = secrets.credentials
        pool = self.pool = ConnectionPool(limits, runtime.loop, secrets.credentials, runtime.response_memory)
        self.routers = RouterRegistry(secret=secret, limits=limits, outlier_detector=detector, reporters=reporters)
        serving = self.routers.serving
        self.poison_guard = PoisonRequestGuard(
            secret,
            limits,
            report_crash=sharing.on_crash if sharing is not None else None,
            report_cleared=sharing.on_cleared if sharing is not None else None,
        )
        self.failures = FailureAttribution(
            runtime,
            detector,
            ready_instances=serving.ready_instances,
            telemetry=telemetry,
            retry_budget=retry_budget,
            fingerprint=self.poison_guard.fingerprint,
        )
        hop_id = create_hop_id(secret)
        self.engine_progress = self.failures.progress = EngineProgress(runtime, pool, hop_id)
        self.context_lengths = ContextLengths(runtime, pool, hop_id, lambda: self.routers.fleet)
        self.ejection_prober = EjectionProber(runtime, self.failures, pool, lambda: self.routers.fleet, hop_id)
        self.prefill_coordinator = PrefillCoordinator(
            runtime, routers=self.routers, pool=pool, telemetry=telemetry, poison_guard=self.poison_guard, random=draw
        )
        self.admission = AdmissionController(
            runtime,
            routers=self.routers,
            telemetry=telemetry,
            has_api_keys=secrets.api_keys is not None,
            on_needs_instance=reporters.on_needs_instance,
        )
        self.limit_gate = recorder.limit_gate = LimitGate(runtime, serving, reporters.limits, recorder.record_refusal)
        self._parts = AttemptParts(
            runtime,
            routers=serving,
            admission=self.admission,
            failures=self.failures,
            poison_guard=self.poison_guard,
            recorder=recorder,
            journal=reporters.journal,
        )
        self.adapter_loader = self._parts.adapter_loader = AdapterLoader(runtime, serving, telemetry, pool, hop_id)
        self.relay = ResponseRelay(
            lifecycle, self._parts, pool=pool, retry_budget=retry_budget, limit_gate=self.limit_gate
        )
        self.forwarder = Forwarder(
            self._parts,
            pool=pool,
            prefill_coordinator=self.prefill_coordinator,
            retry_budget=retry_budget,
            relay=self.relay,
            limit_gate=self.limit_gate,
        )
        self.forwarder.background_work = BackgroundWork(runtime, pool, hop_id)
        self.fast_path = FastPath(lifecycle, self._parts, forwarder=self.forwarder, relay=self.relay, pool=pool)

    def create_fallbacks(self, visible_models: ModelVisibility) -> Fallbacks:
        """Returns the fallbacks of routes, which the forwarder uses too."""
        fallbacks = Fallbacks(
            self.routers.serving,
            self.failures.outlier_detector,
            self._parts.recorder.telemetry,
            visible_models,
            self.limit_gate,
        )
        self.forwarder.fallbacks = fallbacks
        self.failures.has_fallback = lambda timeout: fallbacks.can_leave(timeout, self._now())
        return fallbacks

    def create_shadow_traffic(
        self, parser: ModelRequestParser, is_short_of_memory: Callable[[], bool]
    ) -> ShadowTraffic:
        """Returns the copies of requests for shadows of routes, which the recorder starts."""
        copies = ShadowTraffic(self._parts, self.routers, self.pool, parser, is_short_of_memory)
        self._parts.recorder.copies = copies
        return copies

    def update_fleet(self, fleet: Fleet) -> None:
        """Replaces the fleet; requests in flight stay where they are."""
        self.routers.update_fleet(fleet, self._now())
        self.adapter_loader.update_fleet(fleet)
        self.credentials.update_fleet(fleet)
        self.prefill_coordinator.update_fleet(fleet)
        self.pool.retain(self.routers.addresses())
        self.admission.update_fleet(fleet)

    def close(self) -> None:
        """Cancels probes, loads and concurrent prefills, and closes idle connections."""
        self.ejection_prober.close()
        self.engine_progress.close()
        self.context_lengths.close()
        self.adapter_loader.close()
        self.limit_gate.close()
        self.prefill_coordinator.concurrent_prefills.close()
        self.pool.close()
