"""Short ways to tokenise a row and to read back what came of it, for tests of what is before training."""

from __future__ import annotations

import json

import numpy as np

from finetune_trainer.data import spans
from finetune_trainer.data.examples import ChatPair, Talk, example_of
from finetune_trainer.data.gate import CONVERSATION
from finetune_trainer.data.spans import TokenisedTalk
from rows import assistant, system, user

BOS, END = 1, 2
TALK = [system("Be brief."), user("One?"), assistant("Ja – 1."), user("Two?"), assistant("2."), user("bye")]


def pair_of(chat, messages, tools, preferred, non_preferred):
    return chat.pair(ChatPair(tuple(messages), tools, preferred, non_preferred))


def talk(messages: list[dict], tools=None) -> Talk:
    """A conversation as the gate hands it on."""
    example = example_of({"messages": messages, "tools": tools}, CONVERSATION, None)
    assert isinstance(example, Talk)
    return example


def talk_of(chat, messages, tools=None) -> TokenisedTalk:
    return spans.answers(chat, talk(messages, tools))


def text(chat, ids) -> str:
    return chat.encoder.decode(list(ids), skip_special_tokens=False)


def trained(chat, row) -> list[str]:
    """The text of each trained span."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.targets.astype(int), [0]])))
    return [text(chat, row.tokens[begin:end]) for begin, end in edges.reshape(-1, 2)]


def adding_bos(folder):
    """A tokenizer that begins every text with BOS, as those of Llama do."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [BOS], "tokens": ["<|begin|>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder
