"""What gateways know of one another and of engines, in the fleet simulator, and how late."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InformationDelays:
    """What gateways know of one another and of the engines: what others ``sent``, what they have in flight (``loads``), one table of
    ``hot`` prefixes for all, who served a session last (``pins``, where clients name it), and the ``index`` of what engines tell.
    Loads are taken for what is to be expected of them (``exchange.pace``), or where ``as_said`` for what was said, which shows what
    that is good for. ``perfect``: before each choice, what every engine holds at that moment or is about to compute, instead of all
    beliefs; the load is then its own and what ``loads`` tells."""

    sent: bool = True
    loads: bool = True
    hot: bool = True
    pins: bool = False
    index: bool = False
    raw_loads: bool = False
    perfect: bool = False
    round_seconds: float = 0.05
    publish_seconds: float = 0.05
    index_seconds: float = 0.05


NO_SHARING = InformationDelays(sent=False, loads=False, hot=False)
PERFECT_KNOWLEDGE = InformationDelays(sent=False, loads=True, hot=True, perfect=True)
