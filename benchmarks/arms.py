"""What the benchmarks compare: forward and backward of the same pairs on the same weights, by different code.

Random weights and tokens from fixed seeds, nothing is downloaded. An arm is a function that leaves gradients behind and
returns the loss; that all arms return the same loss is checked by whoever runs them.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from finetune_api.method import Preference, TrainingKind
from finetune_api.trainer import LoraConfig
from finetune_trainer.data.tokens import CacheKind, Pair, open_cache, write_cache
from finetune_trainer.run.rows import PreferenceRows
from finetune_trainer.step.adapter import new_adapter
from finetune_trainer.step.fused import fuse
from finetune_trainer.step.gradient import accumulate, scores
from finetune_trainer.step.logps import sequence_logps
from finetune_trainer.step.losses import preference_loss
from finetune_trainer.step.model import Policy
from finetune_trainer.step.recipe import Level, Recipe
from finetune_trainer.step.weights import Base, backbone_of, head_of

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from live import NO_FOLDER, LivePeak

EOS = 2
BETA = 0.1
RANK = 16

Shape = tuple[int, int, int]
"""Tokens of prompt, preferred and non-preferred answer."""
Arm = Callable[[], float]


def pairs_of(shapes: Sequence[Shape], vocabulary: int) -> list[Pair]:
    """Random pairs whose answers end in EOS."""
    random = np.random.default_rng(0)
    pairs = []
    for line, shape in enumerate(shapes):
        prompt, *answers = (random.integers(EOS + 1, vocabulary, length).astype(np.int32) for length in shape)
        for answer in answers:
            answer[-1] = EOS
        pairs.append(Pair(line, prompt, *answers))
    return pairs


def policy_of(config: PreTrainedConfig, device: torch.device) -> Policy:
    """Random weights with an adapter on every linear layer, which does nothing yet."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        causal = AutoModelForCausalLM.from_config(deepcopy(config), dtype=dtype, attn_implementation="sdpa")
    lora = LoraConfig.model_validate(
        {"rank": RANK, "alpha": RANK, "dropout": 0, "trainableModules": ["all-linear"]}, by_alias=True
    )
    root = new_adapter(causal, NO_FOLDER, lora, seed=0)
    base = Base("random weights", causal, {}, dtype, causal.config._attn_implementation)
    return Policy(root, backbone_of(causal), head_of(causal), base, device, TrainingKind.LORA)


@dataclass(frozen=True)
class Lines:
    """Both sides of every pair, of a pair the preferred one first."""

    ids: torch.Tensor
    """int64 [lines, width]."""
    mask: torch.Tensor | None
    """1 on tokens; None: there is no padding."""
    answers: torch.Tensor
    """Which of the tokens after the first are answers, bool [lines, width - 1]."""


@dataclass(frozen=True)
class Task:
    """Pairs to learn from, with the reference scored under the starting weights."""

    policy: Policy
    pairs: list[Pair]
    rows: PreferenceRows

    @property
    def tokens(self) -> int:
        """Tokens that someone has to compute who shares nothing: 2P + C + R of every pair."""
        return sum(2 * len(p.prompt) + len(p.preferred) + len(p.non_preferred) for p in self.pairs)

    @property
    def shared_tokens(self) -> int:
        """P + C + R of every pair."""
        return self.tokens - sum(len(p.prompt) for p in self.pairs)

    def ours(self, recipe: Recipe) -> Arm:
        """Our step by a recipe."""
        order = range(len(self.pairs))

        def run() -> float:
            self.policy.checkpointing(recipe.checkpointing)
            _clear(self.policy)
            sums = accumulate(self.policy, self.rows, recipe, order, lambda: None)
            return float(self.rows.loss(sums, order)) / len(order)

        return run

    def by_peft(self, recipe: Recipe) -> Arm:
        """The same with PEFT's own layers."""
        step = self.ours(recipe)

        def run() -> float:
            with peft_layers(self.policy):
                return step()

        return run

    def compiled(self, recipe: Recipe) -> Arm:
        """The same with every layer compiled by itself (regional compilation), for lengths of any size."""
        step, layers = self.ours(recipe), list(self.policy.backbone.layers)
        backend = "inductor" if self.policy.device.type == "cuda" else "eager"
        calls = []
        for layer in layers:
            layer.compile(dynamic=True, backend=backend)
            calls.append(layer._compiled_call_impl)
            layer._compiled_call_impl = None

        def run() -> float:
            for layer, call in zip(layers, calls, strict=True):
                layer._compiled_call_impl = call
            try:
                return step()
            finally:
                for layer in layers:
                    layer._compiled_call_impl = None

        return run

    def unshared(self) -> Arm:
        """Both sides as a batch through stock attention, then our head: the same step without sharing a prompt."""
        lines, head = self._lines(), self.policy.head

        def run() -> float:
            self._begin()
            states = self.policy.backbone(input_ids=lines.ids, attention_mask=lines.mask, use_cache=False)
            hidden = states.last_hidden_state[:, :-1][lines.answers]
            targets, sequence = lines.ids[:, 1:][lines.answers], lines.answers.nonzero()[:, 0]
            return self._end(sequence_logps(hidden, head, targets, sequence, len(lines.ids)))

        return run

    def plain(self) -> Arm:
        """A textbook's step on stock transformers: both sides as a batch, logits of every position."""
        lines = self._lines()

        def run() -> float:
            self._begin()
            given = {"input_ids": lines.ids, "attention_mask": lines.mask, "use_cache": False}
            with peft_layers(self.policy):
                logits = self.policy.root(**given).logits[:, :-1].float()
                logps = torch.log_softmax(logits, -1).gather(2, lines.ids[:, 1:, None])[..., 0]
                return self._end((logps * lines.answers).double().sum(1))

        return run

    def _lines(self) -> Lines:
        """Prompt and answer of both sides, one line each, padded on the right where lengths differ."""
        sequences = [np.concatenate([p.prompt, a]) for p in self.pairs for a in (p.preferred, p.non_preferred)]
        ids = np.zeros((len(sequences), max(map(len, sequences))), np.int64)
        scored = np.zeros_like(ids, dtype=np.bool_)
        for line, tokens in enumerate(sequences):
            ids[line, : len(tokens)] = tokens
            scored[line, len(self.pairs[line // 2].prompt) : len(tokens)] = True
        device = self.policy.device
        lines, answers = torch.from_numpy(ids).to(device), torch.from_numpy(scored[:, 1:]).to(device)
        padded = len({len(tokens) for tokens in sequences}) > 1
        return Lines(lines, (lines > 0).long() if padded else None, answers)

    def _begin(self) -> None:
        self.policy.as_loaded()
        self.policy.training(True)
        _clear(self.policy)

    def _end(self, sums: torch.Tensor) -> float:
        """Loss and gradients from the sums of log-probabilities of every line."""
        device = self.policy.device
        lengths, reference = torch.from_numpy(self.rows.lengths).to(device), self.rows.reference.to(device)
        loss = preference_loss(sums.view(-1, 2), reference, lengths, self.rows.objective).mean()
        loss.backward()
        return float(loss.detach())


@contextmanager
def peft_layers(policy: Policy) -> Iterator[None]:
    """Adapted layers compute as PEFT has them."""
    for layer in policy.root.modules():
        layer.__dict__.pop("forward", None)
    try:
        yield
    finally:
        fuse(policy.root)


def task_of(policy: Policy, shapes: Sequence[Shape], folder: Path) -> Task:
    """Pairs of `shapes` for `policy`, whose adapter starts to do something once the reference is scored."""
    pairs = pairs_of(shapes, policy.head.vocabulary)
    write_cache(folder, CacheKind.PREFERENCE, pairs)
    rows = PreferenceRows(open_cache(folder), Preference(beta=BETA), None)
    generator = torch.Generator(policy.device).manual_seed(1)
    with torch.no_grad():
        moved = [parameter for name, parameter in policy.trainable.items() if "lora_B" in name]
        for parameter in moved:
            parameter.zero_()
        recipe = Recipe(Level.SHARED, 8192)
        reference = scores(policy, rows, recipe, range(len(pairs)), lambda: None).cpu().view(-1, 2)
        for parameter in moved:
            parameter.normal_(0, 0.01, generator=generator)
    return Task(policy, pairs, PreferenceRows(rows.cache, rows.objective, reference))


def trl(task: Task, folder: Path, batch: int, **options: object) -> Arm:
    """TRL's step on the same pairs and weights, `batch` pairs at a time; `options` are DPOConfig's."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig as PeftLoraConfig
    from trl import DPOConfig, DPOTrainer

    disable_progress_bars()
    cpu = task.policy.device.type == "cpu"
    ours = task.policy.as_loaded()
    causal = AutoModelForCausalLM.from_config(deepcopy(ours.config), dtype=ours.dtype, attn_implementation="sdpa")
    args = DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        beta=BETA,
        max_length=None,
        report_to=[],
        use_cpu=cpu,
        bf16=not cpu,
        disable_tqdm=True,
        dataloader_pin_memory=not cpu,
        **options,
    )
    texts = [{"prompt": _text(p.prompt), **_answers(p)} for p in task.pairs]
    lora = PeftLoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    weights = deepcopy(task.policy.root.state_dict())
    plain = {name.replace("base_model.model.", "").replace(".base_layer", ""): w for name, w in weights.items()}
    causal.load_state_dict({name: w for name, w in plain.items() if "lora_" not in name})
    trainer = DPOTrainer(
        model=causal,
        args=args,
        train_dataset=Dataset.from_list(texts),
        processing_class=_tokenizer(task.policy.head.vocabulary),
        peft_config=lora,
    )
    theirs = trainer.model.state_dict()
    with torch.no_grad():
        for name, value in weights.items():
            if "lora_" in name:
                theirs[name].copy_(value)
    examples = list(trainer.train_dataset)
    chunks = [examples[first : first + batch] for first in range(0, len(examples), batch)]
    batches = [trainer.data_collator(chunk) for chunk in chunks]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # set by train(), which is not called

    def run() -> float:
        trainer.model.zero_grad()
        losses = [float(trainer.training_step(trainer.model, dict(some))) for some in batches]
        return sum(loss * len(chunk) for loss, chunk in zip(losses, chunks, strict=True)) / len(examples)

    return run


def _answers(pair: Pair) -> dict[str, str]:
    """TRL adds EOS to them itself."""
    return {"chosen": " " + _text(pair.preferred[:-1]), "rejected": " " + _text(pair.non_preferred[:-1])}


def _text(tokens: np.ndarray) -> str:
    return " ".join(f"t{token}" for token in tokens)


def _tokenizer(vocabulary: int) -> object:
    """One word per token id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<unk>": 1, "<eos>": EOS} | {f"t{token}": token for token in range(EOS + 1, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def _clear(policy: Policy) -> None:
    for parameter in policy.trainable.values():
        parameter.grad = None


def live_peak(arm: Arm) -> int:
    """Bytes that `arm` needs at once, weights not counted."""
    with LivePeak() as mode:
        arm()
    return mode.peak


def versions() -> str:
    """What ran, on what."""
    packages = ("torch", "transformers", "peft", "trl")
    named = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"Python {platform.python_version()}, {named}; {torch.get_num_threads()} threads, {platform.machine()}"


def temporary() -> tempfile.TemporaryDirectory[str]:
    """A folder for token caches and what TRL writes."""
    return tempfile.TemporaryDirectory(prefix="bench-")
