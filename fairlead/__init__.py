"""What every Fairlead component shares: words, values and limits. It imports none of the components."""

__version__ = "0.1.0"
