"""All parts between a worker's requests and the engines, built in order.

From the outside in: credentials and connections; routers and outlier detection; admission; attempts
and their records; relay, stream resumption and forwarder.
"""

import os
import random
from collections.abc import Callable

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Fleet
from fairlead_gateway.telemetry import MetricsRecorder
from fairlead_gateway.worker.adapters.adapter_loader import AdapterLoader
from fairlead_gateway.worker.disaggregation.prefill_coordinator import PrefillCoordinator
from fairlead_gateway.worker.dispatch.admission_queue import AdmissionController
from fairlead_gateway.worker.dispatch.router_registry import RouterRegistry
from fairlead_gateway.worker.model_selection.context_lengths import ContextLengths
from fairlead_gateway.worker.model_selection.fallbacks import Fallbacks
from fairlead_gateway.worker.model_selection.request_parser import ModelRequestParser
from fairlead_gateway.worker.proxy.attempt import Dispatcher
from fairlead_gateway.worker.proxy.fast_path import FastPath, RequestLifecycle
from fairlead_gateway.worker.proxy.forwarder import Forwarder
from fairlead_gateway.worker.proxy.relay import ResponseRelay
from fairlead_gateway.worker.proxy.request_recorder import RequestRecorder
from fairlead_gateway.worker.proxy.stream_resume import StreamResume
from fairlead_gateway.worker.quota.limit_gate import LimitGate
from fairlead_gateway.worker.reporting.reporters import Reporters
from fairlead_gateway.worker.resilience.ejection_prober import EjectionProber
from fairlead_gateway.worker.resilience.engine_progress import EngineProgress
from fairlead_gateway.worker.resilience.failure_attribution import FailureAttribution
from fairlead_gateway.worker.resilience.outlier_detection import OutlierDetector
from fairlead_gateway.worker.resilience.poison_requests import PoisonRequestGuard
from fairlead_gateway.worker.resilience.retry import RetryBudget
from fairlead_gateway.worker.runtime import WorkerRuntime
from fairlead_gateway.worker.shadow.shadow_traffic import ShadowTraffic
from fairlead_gateway.worker.tenancy.visible_models import ModelVisibility
from fairlead_gateway.worker.upstream.connection_pool import ConnectionPool
from fairlead_gateway.worker.upstream.hop_header import create_hop_id


class ForwardingStack:
    """The parts that carry requests to engines; a new fleet updates all of them."""

    def __init__(
        self,
        runtime: WorkerRuntime,
        *,
        secret: bytes,
        credentials: EngineCredentials,
        recorder: RequestRecorder,
        reporters: Reporters,
        has_api_keys: bool,
    ) -> None:
        limits, telemetry, siblings = runtime.limits, recorder.telemetry, reporters.siblings
        draw = random.Random(f"{runtime.clock.wall()}").random
        outlier_detector, retry_budget = OutlierDetector(limits, draw), RetryBudget(limits)
        self._now = runtime.now
        self.credentials = credentials
        pool = self.pool = ConnectionPool(limits, runtime.loop, credentials, runtime.response_memory)
        self.routers = RouterRegistry(
            secret=secret, limits=limits, outlier_detector=outlier_detector, reporters=reporters
        )
        serving = self.routers.serving
        self.poison_guard = PoisonRequestGuard(
            secret,
            limits,
            report_crash=siblings.report_crash if siblings is not None else None,
            report_cleared=siblings.report_cleared if siblings is not None else None,
        )
        self.failures = FailureAttribution(
            runtime,
            outlier_detector,
            ready_instances=serving.ready_instances,
            telemetry=telemetry,
            retry_budget=retry_budget,
            fingerprint=self.poison_guard.fingerprint,
        )
        self.engine_progress = self.failures.progress = EngineProgress(runtime, pool, create_hop_id(secret))
        self.context_lengths = ContextLengths(runtime, pool, create_hop_id(secret), lambda: self.routers.fleet)
        self.ejection_prober = self._create_ejection_prober(runtime, secret)
        self.prefill_coordinator = PrefillCoordinator(
            runtime, routers=self.routers, pool=pool, telemetry=telemetry, poison_guard=self.poison_guard, random=draw
        )
        self.admission = AdmissionController(
            runtime,
            routers=self.routers,
            telemetry=telemetry,
            has_api_keys=has_api_keys,
            on_needs_instance=reporters.on_needs_instance,
        )
        self.limit_gate = recorder.limit_gate = LimitGate(runtime, serving, reporters.limits, recorder.record_refusal)
        self._dispatcher = Dispatcher(
            runtime,
            routers=serving,
            admission=self.admission,
            failures=self.failures,
            poison_guard=self.poison_guard,
            recorder=recorder,
            reporters=reporters,
        )
        self.adapter_loader = AdapterLoader(runtime, serving, telemetry, pool, create_hop_id(secret))
        self._dispatcher.adapter_loader = self.adapter_loader
        self.relay = self._create_relay(runtime, telemetry, retry_budget)
        self.forwarder = Forwarder(
            self._dispatcher,
            pool=pool,
            prefill_coordinator=self.prefill_coordinator,
            retry_budget=retry_budget,
            relay=self.relay,
            limit_gate=self.limit_gate,
        )

    def _create_relay(
        self, runtime: WorkerRuntime, telemetry: MetricsRecorder, retry_budget: RetryBudget
    ) -> ResponseRelay:
        relay = ResponseRelay(
            runtime,
            routers=self.routers.serving,
            telemetry=telemetry,
            failures=self.failures,
            poison_guard=self.poison_guard,
            stream_resume=StreamResume(
                self._dispatcher, pool=self.pool, telemetry=telemetry, retry_budget=retry_budget
            ),
        )
        relay.limit_gate = self.limit_gate
        return relay

    def _create_ejection_prober(self, runtime: WorkerRuntime, secret: bytes) -> EjectionProber:
        return EjectionProber(
            runtime,
            failures=self.failures,
            pool=self.pool,
            fleet=lambda: self.routers.fleet,
            hop_id=create_hop_id(secret),
            salt=os.urandom(16).hex(),
        )

    def create_fast_path(self, lifecycle: RequestLifecycle) -> FastPath:
        """Returns the fast path for requests of `lifecycle`, which also gets relayed streams."""
        self.relay.lifecycle = lifecycle
        return FastPath(
            lifecycle,
            self._dispatcher,
            forwarder=self.forwarder,
            relay=self.relay,
            pool=self.pool,
            prefill_routers=self.routers.prefilling,
        )

    def create_fallbacks(self, visible_models: ModelVisibility) -> Fallbacks:
        """Returns the fallbacks of routes, which the forwarder uses too."""
        fallbacks = Fallbacks(
            self.routers.serving,
            self.failures.outlier_detector,
            self._dispatcher.recorder.telemetry,
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
        copies = ShadowTraffic(self._dispatcher, self.routers, self.pool, parser, is_short_of_memory)
        self._dispatcher.recorder.copies = copies
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
        self.prefill_coordinator.close()
        self.pool.close()
