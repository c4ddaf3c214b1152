"""The options of a fleet plant: what a scenario does not say."""

from dataclasses import dataclass, field

from fairlead_sim.autoscaling.fleet_plant.conversations import ConversationOptions


@dataclass(frozen=True, slots=True)
class FleetPlantOptions:
    """The prompts of the load, and the gateway.

    - conversations: the common prefixes of prompts.
    - preset: the routing preset; the gateway's default.
    - routing_seed: draws the homes of prefixes.
    """

    conversations: ConversationOptions = field(default_factory=ConversationOptions)
    preset: str = "dual-hash"
    routing_seed: int = 0
