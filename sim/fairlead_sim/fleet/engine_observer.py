"""The observer of one engine of a fleet simulation.

Why: a base class, since compiled calls through a Protocol look up each method by name. Engines take
millions of steps.
"""

from fairlead_sim.engine.sequence import EngineSequence


class EngineObserver:
    """Receives what an engine's clients receive. These methods ignore it.

    Predicted steps are reported when they are taken (``FleetSimulation.settle``).
    """

    def on_gaps(self, tokens: int, seconds: float) -> None:
        """Notes tokens, each of which came ``seconds`` after the one before of its answer."""

    def on_first_token(self, sequence: EngineSequence, now: float) -> None:
        """Notes the first token of an answer."""

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        """Notes the last token of an answer."""
