"""How PyTorch's threads wait for each other; to be imported before PyTorch.

GNU OpenMP lets a thread that has nothing to do spin, for seconds by default, before it sleeps.
Where another program wants the core, the others then wait for a thread that waits for its turn, in
each of hundreds of loops an update: benchmarks/threads.py has the figures. Spinning as briefly as
here costs nothing on a quiet machine.
"""

import os
import sys

if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
