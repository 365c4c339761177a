"""One thread for the numbers of every tier, set before torch can be imported.

Some tests fork a process that has already computed, to kill it; OpenMP's threads do not survive a fork, and a child
that waits for them would wait for ever. Models this small are no slower on one.

How long an example takes is the machine's matter, and no test is about it.
"""

import os

from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
