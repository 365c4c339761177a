"""From steps to a finished job: the loop, evaluation, the optimiser."""
