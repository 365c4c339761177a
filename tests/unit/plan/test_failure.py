"""The end of a pod in words: what it was, what to do, and whom to believe."""

from __future__ import annotations

import pytest

from builders import NOW_TEXT, failed_report, make_child, make_job, make_pod, report_for
from finetune_api.failures import FailureCode
from finetune_api.status import Attempt, Reason
from finetune_api.trainer import Stage
from finetune_operator.plan.failure import DISRUPTIONS, cause_of, end_of, failure_of, follow_up, word_of, words_of

CHILD = make_child(make_job(), Stage.TRAIN)
LOW = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 20Mi. "
LIMIT = "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. "


def dead(**fields):
    return make_pod(CHILD, ended=NOW_TEXT, **fields)


@pytest.mark.parametrize(
    ("end", "word", "words", "reason"),
    [
        ({"cause": "OOMKilled", "exit_code": 137}, "OOMKilled", "raise resources.memory", "OutOfMemory"),
        (
            {"cause": "Evicted", "disrupted": "TerminationByKubelet", "node_said": LOW},
            "Evicted",
            "short of memory or disk, or shut down: The node was low on resource: memory",
            "BackoffLimitExceeded",
        ),
        (
            {"cause": "Evicted", "node_said": LIMIT},
            "Evicted",
            "was evicted: Pod ephemeral local storage usage exceeds the total limit of containers 1Gi: have the limit",
            "BackoffLimitExceeded",
        ),
        ({"disrupted": "DeletionByPodGC"}, "NodeLost", "lost with its node, which is gone", "BackoffLimitExceeded"),
        ({"disrupted": "Unheard"}, "Unheard", "was disrupted (Unheard)", "BackoffLimitExceeded"),
        (
            {"cause": "StartError", "exit_code": 128, "node_said": "exec: not found"},
            "StartError",
            "could not be started (StartError: exec: not found): check spec.image",
            "BackoffLimitExceeded",
        ),
        (
            {"cause": "UnexpectedAdmissionError", "node_said": "no GPU left"},
            "UnexpectedAdmissionError",
            "was ended by its node (UnexpectedAdmissionError: no GPU left)",
            "BackoffLimitExceeded",
        ),
        ({"gone": True}, "PodVanished", "is gone, and nobody saw how it ended", "BackoffLimitExceeded"),
        ({"exit_code": 1}, "NoFinalReport", "with exit code 1 and left no report", "BackoffLimitExceeded"),
        ({"exit_code": 17}, "NoFinalReport", "which this operator does not know", "Internal"),
        ({"exit_code": 4}, "PeerLost", "with exit code 4", "BackoffLimitExceeded"),
    ],
)
def test_an_end_has_a_word_a_sentence_and_a_cause(end, word, words, reason):
    pod = dead(**end)
    assert word_of(pod, None) == word
    assert words in end_of(pod, None)
    attempt = Attempt(pod=pod.name, end_time=pod.ended, exit_code=pod.exit_code, reason=word, message=end_of(pod, None))
    told, sentence = cause_of(attempt, "not used")
    assert told == reason
    assert words in sentence
    assert sentence.startswith("no retry is left") is (told is Reason.BACKOFF_LIMIT_EXCEEDED)


@pytest.mark.parametrize("disruption", list(DISRUPTIONS))
def test_a_disrupted_pod_tells_by_whom_and_what_it_saved(disruption):
    pod = dead(disrupted=disruption, exit_code=3)
    word = failed_report(pod, Stage.TRAIN, FailureCode.STOPPED, step="7")
    sentence = end_of(pod, word)
    assert DISRUPTIONS[disruption][1] in sentence
    assert sentence.endswith("stopped on request after step 7")
    told = follow_up(pod, word)
    assert told.reason in (Reason.EVICTED, Reason.NODE_LOST)
    assert told.message == f"{sentence}; a new pod follows"


def test_a_cause_that_does_not_go_with_the_exit_code_is_not_believed():
    pod = dead(exit_code=1)
    lie = failed_report(pod, Stage.TRAIN, FailureCode.DIVERGED)
    assert failure_of(pod, lie) is None
    assert word_of(pod, lie) == "NoFinalReport"


def test_without_a_pod_the_job_controller_has_the_word():
    assert cause_of(None, "its words") == (Reason.BACKOFF_LIMIT_EXCEEDED, "its words")


def test_a_pod_that_had_to_go_before_its_end_was_recorded_is_no_mystery():
    pod = dead(exit_code=3)
    done = report_for(pod, Stage.TRAIN, finished=True)
    assert words_of(pod, done, 20) == (
        "Stopped",
        f"pod {pod.name} was stopped before its end was recorded; the next one tells of it",
    )
