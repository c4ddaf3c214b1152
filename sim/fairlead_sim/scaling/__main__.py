"""Runs ``fairlead_sim.autoscaling`` under its documented name."""

import sys

from fairlead_sim.autoscaling.__main__ import main
from fairlead_sim.compiled import run_compiled

if __name__ == "__main__":
    run_compiled()
    sys.exit(main(sys.argv[1:]))
