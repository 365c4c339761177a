"""The one way in which a run ends early: a named cause of the contract, raised anywhere and reported at the edge."""

from __future__ import annotations

from finetune_api.failures import Failure, FailureCode
from finetune_api.words import plain

MAX_ARGUMENT = 512
MALFORMED = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
"""What libraries raise on a file that is not what its name says: a configuration with a text for a number, say."""


class RunFailed(Exception):
    """The run cannot go on; `failure` holds the code, the values of its sentence and so the exit code."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.sentence)
        self.failure = failure


class PeerLost(Exception):
    """Another of the processes that train as one has ended, or does not answer: no cause, but its consequence."""


def failed(code: FailureCode, **args: object) -> RunFailed:
    """A `RunFailed` for `code`, its values as text and cut to what a report may carry."""
    return RunFailed(Failure(code=code, args={name: plain(str(value))[:MAX_ARGUMENT] for name, value in args.items()}))
