"""Make what the demo trains on: a tiny chat model, SFT rows, and preference pairs with a held-out part.

The lesson is one that a tiny model can learn and a person can read: a support assistant that offers a way out is
preferred to one that sends people away. The SFT rows show both manners equally often, so they teach the form of an
answer and nothing about which manner is better; that is what the preference pairs are for.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from tiny import save_model

PRODUCTS = ["router", "printer", "camera", "kettle", "tablet", "scooter", "heater"]
PRODUCTS += ["speaker", "monitor", "keyboard", "drill", "lamp", "toaster", "mixer"]
TROUBLES = [
    "does not start",
    "makes a strange noise",
    "is too slow",
    "arrived broken",
    "keeps losing its settings",
    "gets very hot",
    "shows an error",
    "has a missing part",
]
OPENINGS = ["My {product} {trouble}.", "Hello, the {product} {trouble}.", "Help: our new {product} {trouble}!"]
# The two manners say the same sentences but for two words, so neither is easier to say.
ANSWERS = [
    "{yes_or_no}, we {verb} your {product} today.",
    "{yes_or_no}, our team will {verb} the {product} before the weekend.",
    "{yes_or_no}, I {verb} every {product} that comes back to us.",
    "{yes_or_no}, the shop around the corner can {verb} a {product} like this.",
    "{yes_or_no}, people in this house {verb} it, as with any other {product} of that kind.",
]
HELPFUL = {"yes_or_no": "Yes", "verb": "repair"}
HELD_OUT = 64
DISMISSIVE = {"yes_or_no": "No", "verb": "ignore"}


def rows(seed: int) -> Iterator[tuple[str, str, str]]:
    """Every question once, in a random order, with a helpful and a dismissive answer.

    The first HELD_OUT say theirs in two different sentences, so that only a model that has learned the manner, and not
    the sentences, finds the preferred one likelier; the others differ in the two words alone.
    """
    chance = random.Random(seed)
    questions = [(o, p, t) for o in OPENINGS for p in PRODUCTS for t in TROUBLES]
    chance.shuffle(questions)
    for number, (opening, product, trouble) in enumerate(questions):
        one, other = chance.sample(ANSWERS, 2)
        other = other if number < HELD_OUT else one
        question = opening.format(product=product, trouble=trouble)
        yield question, one.format(product=product, **HELPFUL), other.format(product=product, **DISMISSIVE)


def conversation(question: str, answer: str) -> dict[str, object]:
    """An SFT row."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def preference(question: str, preferred: str, other: str) -> dict[str, object]:
    """A DPO row."""
    return {
        "input": {"messages": [{"role": "user", "content": question}]},
        "preferred_output": [{"role": "assistant", "content": preferred}],
        "non_preferred_output": [{"role": "assistant", "content": other}],
    }


def pretrain(folder: Path, texts: list[str], steps: int = 150) -> None:
    """Teach the random model the words, as a base model knows its language: single sentences, no dialogue."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    chance = random.Random(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    for step in range(steps):
        batch = tokenizer(
            [tokenizer.bos_token + text for text in chance.sample(texts, 32)], padding=True, return_tensors="pt"
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            print(f"  base model: step {step + 1}/{steps}, loss {loss.item():.2f}", flush=True)
    model.save_pretrained(folder)


def write(path: Path, lines: list[dict[str, object]]) -> None:
    """JSON Lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    """Write sft.jsonl, train.jsonl, eval.jsonl and, unless told not to, the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--no-model", action="store_true", help="data only: the model comes from the Hub")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    every = list(rows(seed=7))
    held_out, training = every[:HELD_OUT], every[HELD_OUT:]
    both = [conversation(q, a) for q, good, bad in training for a in (good, bad)]
    random.Random(11).shuffle(both)
    write(folder / "sft.jsonl", both)
    write(folder / "train.jsonl", [preference(*row) for row in training])
    write(folder / "eval.jsonl", [preference(*row) for row in held_out])
    if not arguments.no_model:
        texts = [text for row in training for text in row]
        save_model(folder / "tiny-chat", texts=texts, vocab_size=512, hidden=256, layers=3, max_length=256)
        pretrain(folder / "tiny-chat", texts)
    print(f"{len(both)} SFT rows, {len(training)} training pairs, {len(held_out)} held-out pairs in {folder}")


if __name__ == "__main__":
    main()
