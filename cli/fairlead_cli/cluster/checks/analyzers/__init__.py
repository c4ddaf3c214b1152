"""The checks themselves: a pure function each, from facts to a verdict, by section."""
