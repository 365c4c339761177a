"""What checking data needs to know of a model, without its weights: tokenizer, longest sequence, embedding, size."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError

from finetune_api.failures import FailureCode
from finetune_api.resolve import source_uri
from finetune_api.trainer import Start
from finetune_api.uris import OBJECT_STORES, parse_uri
from finetune_trainer.data import hub, stores
from finetune_trainer.data.chat import ChatTokenizer
from finetune_trainer.data.deadline import TEMPLATE_SECONDS, TookTooLong
from finetune_trainer.data.hub import HubFailed
from finetune_trainer.data.shape import Shape, Tensors, shape_of
from finetune_trainer.data.sources import (
    FetchedModel,
    fetch_checkpoint,
    fetch_model,
    fetch_tokenizer,
    model_failure,
)
from finetune_trainer.failures import MALFORMED, failed
from finetune_trainer.files import weight_files, weights_digest
from finetune_trainer.remote_code import refuse_code
from finetune_trainer.trouble import StoreFailed, Trouble
from finetune_trainer.vision import read_vision
from finetune_trainer.volumes import OutsideVolume

TEMPLATE_FILE = "chat_template.jinja"
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
ARCHITECTURE = (
    "model_type",
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"),
    *("n_embd", "n_layer", "n_head", "num_local_experts", "num_experts"),
)
"""What two configurations share that differ only in their weights; a vocabulary may have grown by a few tokens."""
VISION_ARCHITECTURE = ("hidden_size", "depth", "intermediate_size", "num_heads", "patch_size", "out_hidden_size")
SANE_LENGTH = 10**9
"""Tokenizers without a limit of their own carry a huge number in its place."""
MAX_HEADER_BYTES = 100_000_000
DAMAGED = "the header of its weights is damaged"


@dataclass(frozen=True, slots=True)
class StartModel:
    """The starting weights, as far as the data is concerned."""

    source: str
    """Hub id, or URI of a folder."""
    revision: str | None
    parameters: int | None
    shape: Shape | None
    """None where the headers of its weights could not be read, or are of a kind that is not known."""
    longest: int | None
    """Tokens that the model takes; None = it does not say."""
    vocab_size: int | None
    chat: ChatTokenizer


def read_model(
    uri: str,
    mounts: Mapping[str, str],
    offline: bool,
    template: str | None = None,
    remote_code: bool = False,
    *,
    weights: bool = False,
) -> StartModel:
    """Fetch and read everything but the weights; `template` renders messages in place of the model's own.

    No code of the model is run here; one that needs it is refused unless training may run it (`remote_code`). With
    `weights` all that training needs is fetched too, for training pods that read the same cache.

    Raises:
        RunFailed: ModelNotFound, ModelUnsupported, ModelUnreachable, RemoteCode; ConfigInvalid for a template that is
            none.
    """
    model = fetch_model(uri, mounts, offline, tokenizer_only=not weights, code=weights and remote_code)
    refuse_code(uri, model.path, remote_code)
    whole = _read_config(uri, model.path)
    config = _of_text(whole)
    chat = read_tokenizer(uri, model.path, template, whole)
    parts = parse_uri(uri)
    tensors = _tensors(uri, model, offline)
    return StartModel(
        source=parts.root if parts.scheme == "hf" else uri,
        revision=model.revision,
        parameters=sum(map(math.prod, tensors.values())) if tensors is not None else None,
        shape=shape_of(config, tensors or {}),
        longest=_longest(config, chat),
        vocab_size=_positive(config.get("vocab_size")),
        chat=chat,
    )


def read_without_weights(model: str, template: str | None) -> StartModel:
    """What is known of a model that is a folder here, a Hub id or a URI, whether or not it has weights.

    Raises:
        RunFailed: ModelNotFound, ModelUnsupported, ModelUnreachable; ConfigInvalid for a template that is none.
    """
    uri = f"file://{Path(model).resolve()}" if Path(model).is_dir() else source_uri(model)
    folder, revision = fetch_tokenizer(uri)
    whole = _read_config(uri, folder) if (folder / "config.json").exists() else {}
    config = _of_text(whole)
    chat = read_tokenizer(uri, folder, template, whole)
    longest = _longest(config, chat)
    return StartModel(model, revision, None, None, longest, _positive(config.get("vocab_size")), chat)


def resolve_length(asked: int | None, model: StartModel) -> int:
    """The longest sequence in tokens: the one asked for, else the model's.

    Raises:
        RunFailed: SequenceTooLongForModel; ConfigInvalid if neither names one.
    """
    if asked is None and model.longest is None:
        problem = "the model names no longest sequence: set one"
        raise failed(FailureCode.CONFIG_INVALID, field="hyperparameters.maxSeqLength", problem=problem)
    if asked is not None and model.longest is not None and asked > model.longest:
        raise failed(FailureCode.SEQUENCE_TOO_LONG_FOR_MODEL, value=asked, limit=model.longest)
    return asked or model.longest or 0


def check_checkpoint(start: Start, mounts: Mapping[str, str]) -> str | None:
    """The digest of the checkpoint that the job continues, None if it continues none.

    Raises:
        RunFailed: CheckpointMissing, CheckpointChanged, ModelUnreachable.
    """
    uri = start.adapter or start.model
    if start.adapter is None and start.sha256 is None:
        return None
    with _reading_checkpoint(uri):
        digest = weights_digest(fetch_checkpoint(uri, mounts))
    if start.sha256 is not None and digest != start.sha256:
        raise failed(FailureCode.CHECKPOINT_CHANGED, uri=uri)
    return digest


def check_architecture(start: Start, mounts: Mapping[str, str], offline: bool) -> None:
    """Hold the starting weights to the architecture and the size of the model that they stand for.

    Raises:
        RunFailed: ModelNotFound, ModelUnsupported, ModelUnreachable.
    """
    if start.same_as is None:
        return
    theirs, ours = (
        _architecture(_read_config(uri, fetch_model(uri, mounts, offline, tokenizer_only=True).path))
        for uri in (start.model, start.same_as)
    )
    for key, value in theirs.items():
        if value != ours[key]:
            problem = (
                f"its {key} is {value}, that of {start.same_as} is {ours[key]}:"
                " fromHfModel takes weights of the same architecture and size"
            )
            raise failed(FailureCode.MODEL_UNSUPPORTED, uri=start.model, problem=problem)


def inherited_template(start: Start, mounts: Mapping[str, str]) -> str | None:
    """The chat template that was published with the adapter that the job continues; None if it continues none.

    Raises:
        RunFailed: CheckpointMissing, ModelUnreachable.
    """
    if start.adapter is None:
        return None
    with _reading_checkpoint(start.adapter):
        file = fetch_checkpoint(start.adapter, mounts) / TEMPLATE_FILE
        return file.read_text(encoding="utf-8") if file.exists() else None


def _architecture(config: dict[str, Any]) -> dict[str, Any]:
    """What of a config.json two models have in common that differ only in their weights."""
    text, encoder = _of_text(config), dict(config.get("vision_config") or {})
    sees = {f"vision_config.{key}": encoder.get(key) for key in VISION_ARCHITECTURE}
    return {key: text.get(key) for key in ARCHITECTURE} | sees


@contextmanager
def _reading_checkpoint(uri: str) -> Iterator[None]:
    try:
        yield
    except StoreFailed as problem:
        if problem.trouble is Trouble.NOT_FOUND:
            raise failed(FailureCode.CHECKPOINT_MISSING, uri=uri) from problem
        raise failed(FailureCode.MODEL_UNREACHABLE, uri=uri, problem=problem) from problem
    except (OutsideVolume, OSError, ValueError) as error:
        raise failed(FailureCode.CHECKPOINT_MISSING, uri=uri) from error


def _read_config(uri: str, folder: Path) -> dict[str, Any]:
    """config.json, whose part that speaks of text is an object where there are several."""
    try:
        config = json.loads((folder / "config.json").read_text())
        dict(_of_text(config))
        return dict(config)
    except FileNotFoundError as error:
        raise failed(FailureCode.MODEL_UNSUPPORTED, uri=uri, problem="it has no config.json") from error
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise failed(FailureCode.MODEL_UNSUPPORTED, uri=uri, problem="its config.json is damaged") from error


def _of_text(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config.json that speaks of text where there are several, else all of it."""
    text: dict[str, Any] = config.get("text_config", config)
    return text


def read_tokenizer(
    uri: str, folder: Path, template: str | None, config: Mapping[str, Any] | None = None
) -> ChatTokenizer:
    """The tokenizer in `folder`, of the model `uri`, with what its `config` says of images.

    Raises:
        RunFailed: ModelUnsupported; ConfigInvalid for a template that is none.
    """
    if not (folder / "tokenizer.json").is_file():
        raise failed(FailureCode.MODEL_UNSUPPORTED, uri=uri, problem="it has no tokenizer.json")
    try:
        vision = read_vision(folder, config or {})
    except MALFORMED as error:
        problem = "its image processor is damaged, or does not fit its vision encoder"
        raise failed(FailureCode.MODEL_UNSUPPORTED, uri=uri, problem=problem) from error
    try:
        return ChatTokenizer(folder, template, vision)
    except TemplateSyntaxError as error:
        problem = f"line {error.lineno}: {error.message}"
        raise failed(FailureCode.CONFIG_INVALID, field="data.chatTemplate", problem=problem) from error
    except TookTooLong as error:
        problem = f"the chat template is still not done with a short message after {TEMPLATE_SECONDS:.0f} s"
        raise failed(FailureCode.CONFIG_INVALID, field="data.chatTemplate", problem=problem) from error
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, MALFORMED):  # tokenizers raises a bare Exception
            raise
        raise failed(FailureCode.MODEL_UNSUPPORTED, uri=uri, problem="its tokenizer is damaged") from error


def _longest(config: dict[str, Any], chat: ChatTokenizer) -> int | None:
    for key in POSITIONS:
        if (given := _positive(config.get(key))) is not None:
            return given
    limit = int(chat.tokenizer.model_max_length)
    return limit if limit < SANE_LENGTH else None


def _positive(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None


def _tensors(uri: str, model: FetchedModel, offline: bool) -> Tensors | None:
    """Shape of each tensor, from the headers of its files; None where only the Hub has these and may not be asked."""
    parts = parse_uri(uri)
    try:
        if parts.scheme == "hf" and model.revision is not None and not offline:
            return hub.tensor_shapes(parts.root, model.revision)
        if parts.scheme in OBJECT_STORES:
            return _all_of(stores.weight_readers(uri))
        return _all_of(map(_reader, weight_files(model.path)))
    except (HubFailed, StoreFailed) as problem:
        raise model_failure(uri, problem) from problem
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise failed(FailureCode.MODEL_UNSUPPORTED, uri=uri, problem=DAMAGED) from error


def tensors_in(path: Path) -> Tensors:
    """Those of a safetensors file."""
    return _read_tensors(_reader(path))


def _all_of(readers: Iterable[stores.Read]) -> Tensors:
    return {name: shape for read in readers for name, shape in _read_tensors(read).items()}


def _reader(path: Path) -> stores.Read:
    def read(start: int, end: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    return read


def _read_tensors(read: stores.Read) -> Tensors:
    """Those of a safetensors file: 8 bytes of length (little-endian), then a JSON header with every shape."""
    size = int.from_bytes(read(0, 8), "little")
    if size > MAX_HEADER_BYTES:
        raise ValueError("the header is too long")
    header = json.loads(read(8, 8 + size))
    return {name: tuple(map(int, tensor["shape"])) for name, tensor in header.items() if name != "__metadata__"}
