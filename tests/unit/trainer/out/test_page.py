"""The page: whole for every kind of run, small, safe against what rows hold, and without a request."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from finetune_api.metrics import METRICS
from finetune_trainer.out.course import read_course
from finetune_trainer.out.facts import Passage, Sample
from finetune_trainer.out.page import page
from reports import SFT, answer, checkpoint, facts, pair, write_metrics

VOID = {"meta", "br", "link", "img", "input", "hr", "base"}
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style></details><svg onload=alert(1)>",
    "<!-- ]]> {{ 7 * 7 }} {% raw %}",
    "\u202eright to left \u0645\u0631\u062d\u0628\u0627",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 e\u0301 \x00 \x1b[31m \ufffd",
    "&amp; &lt;script&gt;",
    "https://elsewhere.example/pixel.png",
    "x" * 100_000,
)


LOADING = {"script", "img", "link", "iframe", "object", "embed", "base", "form", "a", "use", "image", "video"}
"""Elements that ask for something, run something, or lead away."""
LEADING = {"src", "href", "xlink:href", "srcset", "action", "data", "background", "ping"}


class Outline(HTMLParser):
    """The elements of a page, held to be closed in their order; its texts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def made(told, path):
    return page(told, read_course(path))


def sft_sample(line=1):
    return Sample(line=line, prompt=Passage(text="hi", omitted=12), answers=(answer(),))


RUNS = {
    "evaluated": (200, 20, True, {}, (pair(1), pair(2, -1.0))),
    "not evaluated": (200, 0, True, {}, (pair(1),)),
    "one step": (1, 1, True, {}, (pair(1),)),
    "no step": (0, 0, True, {}, ()),
    "baseline alone": (0, 1, True, {}, ()),
    "sft": (200, 20, False, SFT, (sft_sample(),)),
    "unknown scores": (50, 0, True, {}, (pair(1, None),)),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_kind_of_run_has_a_whole_page(tmp_path, name):
    steps, every, pairs, config, samples = RUNS[name]
    text = made(facts(samples, config), write_metrics(tmp_path, steps, every, pairs=pairs))
    outline = Outline(text)
    assert "dpo" in outline.texts
    assert "without finite numbers" not in text
    assert outline.tags.count("svg") == (0 if name == "no step" else outline.tags.count("figure"))
    assert not re.search(r"\b(nan|inf|None|Markup)\b", re.sub(r"<style>.*?</style>", "", text, flags=re.S))


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_what_a_row_holds_stays_text(tmp_path, hostile):
    control = ("<|end|>", "<script>", "-->")
    told = facts((pair(1, 0.5, hostile, (hostile, "<|end|>" + hostile)),))
    told = told.model_copy(update={"base": hostile[:2000], "control_tokens": control})
    harmless = facts((pair(1, 0.5, "<|end|>"),))
    path = write_metrics(tmp_path, 20, 10)
    outline = Outline(made(told, path))
    assert set(outline.tags) == set(Outline(made(harmless, path)).tags)
    assert "".join(outline.texts).count(hostile) >= 3, "shown to the letter"


def test_it_asks_for_nothing_and_runs_nothing(tmp_path):
    told = facts((pair(1),), checkpoints=[checkpoint(100, "Final")])
    text = made(told, write_metrics(tmp_path, 200, 20))
    outline = Outline(text)
    assert not LOADING & set(outline.tags)
    assert not [name for name, _ in outline.attributes if name in LEADING or name.startswith("on")]
    assert not re.search(r"url\(|@import|expression\(", text)
    policy = next(value for name, value in outline.attributes if value and value.startswith("default-src"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def test_ten_thousand_steps_with_every_checkpoint_and_the_longest_texts_stay_small(tmp_path):
    longest = "\u6f22" * 2500
    listed = [checkpoint(step, evalLoss=0.5, evalRewardAccuracy=0.5) for step in range(1, 34)]
    told = facts(tuple(pair(n, 0.5, longest, (longest, longest)) for n in range(10)), checkpoints=listed)
    text = made(told, write_metrics(tmp_path, 10_000, 10))
    assert len(text.encode()) < 1_000_000
    assert text.count("step-") == 33
    assert Outline(text).tags.count("tr") < 200, "of a thousand evaluations a hundred are a table"


def test_a_failed_run_shows_why_and_its_curves(tmp_path):
    failure = {"code": "NeverFinite", "args": {"step": "3", "lines": "1, 2"}}
    text = made(facts(failure=failure), write_metrics(tmp_path, 30))
    assert 'class="state failed"' in text
    assert "Gradient norm" in text


def test_steps_without_finite_numbers_are_named(tmp_path):
    path = write_metrics(tmp_path, 30)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[6]["train/grad_norm"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = made(facts(), path)
    assert "1 step without finite numbers, marked at the axis: 7." in text
    assert 'class="gap"' in text


def test_warnings_stand_with_what_to_do(tmp_path):
    warning = {"reason": "TooEasy", "message": "99.9% <b> of the pairs were right: look why", "step": 40}
    short = {"reason": "SharedPrefixOff", "message": "attention cannot share a prompt"}
    text = made(facts(warnings=[warning, short]), write_metrics(tmp_path, 30))
    assert "attention cannot share a prompt; what to do: nothing: it is slower, not different" in text
    assert "99.9% &lt;b&gt; of the pairs were right: look why" in text
    assert "TooEasy" in text


def test_the_best_checkpoint_is_marked_and_metrics_have_their_columns(tmp_path):
    listed = [checkpoint(40, best=True, evalLoss=0.41), checkpoint(100, "Final", evalLoss=0.5)]
    text = made(facts(checkpoints=listed), write_metrics(tmp_path, 100, 20))
    assert text.count('class="tag">best') == 1
    assert "<td>0.4100</td>" in text
    assert "evalRewardAccuracy" not in text


def test_the_table_of_evaluations_has_no_accuracy_before_there_can_be_one(tmp_path):
    text = made(facts(), write_metrics(tmp_path, 100, 50))
    lines = re.findall(r"<tr>((?:<td>[^<]*</td>)+)</tr>", text)
    assert [re.findall(r"<td>([^<]*)</td>", line)[:3] for line in lines] == [
        ["0", "0.7000", ""],
        ["50", "0.4869", "0.7000"],
        ["100", "0.2747", "0.9000"],
    ]


def test_the_configuration_is_shown_as_a_manifest_has_it(tmp_path):
    template = "{{ messages }}"
    text = made(facts(config={"data": {"chatTemplate": template}}), write_metrics(tmp_path, 30))
    rows = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", text))
    assert (rows["dpo.beta"], rows["learningRate"], rows["batchSize"]) == ("0.1", "0.01", "4")
    assert rows["chatTemplate"] == "of the job, 14 characters"
    assert template not in text


def test_the_same_facts_give_the_same_page(tmp_path):
    path = write_metrics(tmp_path, 200, 20)
    assert made(facts((pair(1),)), path) == made(facts((pair(1),)), path)


VALUES = st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.sampled_from([f"{stage}/{metric.log}" for stage in ("train", "eval") for metric in METRICS])
LINES = st.lists(st.tuples(st.integers(0, 10**9), st.dictionaries(NAMES, VALUES)), max_size=8)
SCORES = st.none() | st.floats(-1e100, 1e100)


@given(lines=LINES, text=st.text(max_size=50), scores=st.tuples(SCORES, SCORES, SCORES, SCORES))
@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
def test_whatever_a_run_has_measured_has_a_page(tmp_path_factory, lines, text, scores):
    """A page that could not be made would end a job whose weights are there already."""
    path = tmp_path_factory.mktemp("any") / "metrics.jsonl"
    ordered = sorted(lines, key=lambda line: line[0])
    path.write_text("".join(json.dumps({"step": step, **values}) + "\n" for step, values in ordered))
    before, after, margin_before, margin_after = scores
    answers = (answer(text, before, after), answer(text, after, before))
    sample = Sample(
        line=1,
        prompt=Passage(text=text),
        answers=answers,
        margin_before=margin_before,
        margin_after=margin_after,
    )
    Outline(made(facts((sample,)), path))
