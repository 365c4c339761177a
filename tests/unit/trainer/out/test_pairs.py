"""Rows as a person compares them: the worst first, every change with its sign and its place."""

from __future__ import annotations

from finetune_trainer.out.facts import Passage, Sample
from finetune_trainer.out.pairs import Piece, pieces, rows
from reports import answer, facts, pair


def test_what_got_worse_stands_first_and_what_is_unknown_last():
    found = rows(facts((pair(1, 2.0), pair(2, None), pair(3, -0.5), pair(4, 0.25))))
    assert [(row.line, row.gain, row.lost) for row in found] == [
        (3, "−0.50", True),
        (4, "+0.25", False),
        (1, "+2.00", False),
        (2, "unknown", False),
    ]
    assert [row.width for row in found] == [25.0, 12.5, 100.0, 0.0]


def test_a_pair_tells_of_both_answers_before_and_after():
    (row,) = rows(facts((pair(1, 0.5),)))
    assert row.margins == ("0", "0.5000")
    assert [(a.name, a.before, a.after, a.change, a.tokens) for a in row.answers] == [
        ("Preferred", "−20.00", "−18.00", "+2.00", 8),
        ("Non-preferred", "−20.00", "−22.00", "−2.00", 8),
    ]


def test_a_conversation_is_judged_by_its_answer_a_token():
    sample = Sample(line=1, prompt=Passage(text="hi"), answers=(answer(before=-20, after=-16, tokens=8),))
    (row,) = rows(facts((sample,)))
    assert (row.gain, row.margins, row.answers[0].name) == ("+0.500", None, "Answer")


def test_pairs_that_did_not_change_have_no_bar():
    (row,) = rows(facts((pair(1, 0.0),)))
    assert (row.width, row.lost) == (0.0, False)


def test_tokens_that_are_no_text_are_set_apart():
    assert pieces("hi<|end|>\n", ["<|end|>", "<|e"]) == [Piece("hi", False), Piece("<|end|>", True), Piece("\n", False)]
    assert pieces("a.b", ["."]) == [Piece("a", False), Piece(".", True), Piece("b", False)]
    assert pieces("hi", []) == [Piece("hi", False)]


def test_the_list_shows_the_end_of_a_prompt_on_one_line():
    (row,) = rows(facts((pair(prompt=f"{'word ' * 40}\n\nwhy?<|end|>"),)))
    assert row.glimpse.startswith("…")
    assert row.glimpse.endswith("word word why?")
    assert len(row.glimpse) == 77
