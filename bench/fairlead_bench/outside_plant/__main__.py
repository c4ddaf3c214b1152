"""``python -m fairlead_bench.outside_plant --families noisy-chat,long-prompts --seeds 1,2``.

``--set NAME=VALUE`` sets a field of the core's settings. ``--help`` lists the rest.
"""

import sys

from fairlead_bench.outside_plant.benchmark import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
