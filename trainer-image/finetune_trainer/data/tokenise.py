"""From an example to the tokens of a cache row: which renderer it takes, and which of its tokens are trained."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from finetune_api.findings import DataErrorCode as Code
from finetune_api.method import TrainOnInputs
from finetune_trainer.data import plain, spans
from finetune_trainer.data.chat import ChatTokenizer, Part, RowRefused, TokenisedPair
from finetune_trainer.data.examples import ChatPair, Example, Talk, Text, TextPair, images_of, texts
from finetune_trainer.data.images import file_of
from finetune_trainer.data.rows import Row
from finetune_trainer.data.tokens import ByteArray, Conversation, IntArray, Pair


@dataclass(frozen=True, slots=True)
class Tokenised:
    """A row, and whether it was one of those of which only the last answer can be trained."""

    row: Pair | Conversation
    last_turn_only: bool = False


@dataclass(frozen=True, slots=True)
class Tokeniser:
    """How rows become tokens."""

    chat: ChatTokenizer
    vocab_size: int | None
    """Rows of the model's embedding, where its configuration says."""
    train_on_inputs: TrainOnInputs = TrainOnInputs.AUTO

    def __call__(self, example: Example, line: int, weight: float) -> Tokenised:
        """The row that `example` becomes.

        Raises:
            RowRefused: it cannot be rendered, has no clear answer, or a token that the model does not have.
        """
        if isinstance(example, ChatPair | Talk) and not self.chat.has_template:
            raise RowRefused(Part.ROW, Code.NO_CHAT_TEMPLATE)
        if isinstance(example, Talk) and self.train_on_inputs is not TrainOnInputs.ALWAYS:
            example = example.until_learned()
        if (images := images_of(example)) and self.chat.vision is None:
            raise RowRefused(Part.ROW, Code.IMAGES_UNSUPPORTED)
        if self._holds_image_mark(example):
            raise RowRefused(Part.ROW, Code.IMAGE_TOKEN)
        found = self._tokens(example, line, weight)
        return replace(found, row=replace(found.row, images=tuple(map(_file_of, images)))) if images else found

    def _tokens(self, example: Example, line: int, weight: float) -> Tokenised:
        match example:
            case ChatPair():
                return self._pair(self.chat.pair(example), line, weight)
            case TextPair():
                return self._pair(plain.text_pair(self.chat, example), line, weight)
            case Talk():
                return self._conversation(self._talk(example), line, weight)
            case Text():
                return self._conversation(self._text(example), line, weight)

    def learns(self, example: Example) -> bool:
        """Whether there is anything to train on: of a conversation all answers may have weight 0."""
        always = self.train_on_inputs is TrainOnInputs.ALWAYS
        return always or not isinstance(example, Talk) or bool(example.learned)

    def holds_mark(self, example: Example) -> bool:
        """Whether what is said holds BOS or EOS, beside the one that a text may bring at its own begin and end."""
        begin, end = self.chat.tokenizer.bos_token or "", self.chat.tokenizer.eos_token or ""
        for text in texts(example):
            if isinstance(example, Text | TextPair):
                text = text.removeprefix(begin).removesuffix(end)
            if any(mark and mark in text for mark in (begin, end)):
                return True
        return False

    def _holds_image_mark(self, example: Example) -> bool:
        """Whether a row in plain text, which has no images, holds what stands for one; a chat's rendering tells."""
        mark = self.chat.image_mark
        return (
            mark is not None and isinstance(example, Text | TextPair) and any(mark in text for text in texts(example))
        )

    def _pair(self, found: TokenisedPair, line: int, weight: float) -> Tokenised:
        self._judge(found.prompt, found.preferred, found.non_preferred)
        return Tokenised(Pair(line, found.prompt, found.preferred, found.non_preferred, weight))

    def _conversation(self, found: spans.TokenisedTalk, line: int, weight: float) -> Tokenised:
        self._judge(found.tokens)
        vision = self.chat.vision
        targets = found.targets if vision is None else found.targets & (found.tokens != vision.token)
        return Tokenised(Conversation(line, found.tokens, targets, weight), found.last_turn_only)

    def _talk(self, talk: Talk) -> spans.TokenisedTalk:
        if self.train_on_inputs is TrainOnInputs.ALWAYS:
            return spans.all_tokens(self.chat, talk)
        return spans.answers(self.chat, talk)

    def _text(self, text: Text) -> spans.TokenisedTalk:
        """`text` is trained but for its first token; of prompt and completion the completion, or all of it."""
        if text.stands_alone:
            tokens, begin = plain.text(self.chat, text.answer), 1
        else:
            prompt, answer = plain.completion(self.chat, text.prompt, text.answer)
            tokens, begin = np.concatenate([prompt, answer]), prompt.size
        if self.train_on_inputs is TrainOnInputs.ALWAYS:
            begin = 1
        return spans.TokenisedTalk(tokens, np.arange(tokens.size) >= begin)

    def _judge(self, *parts: IntArray) -> None:
        if self.vocab_size is not None and any(part.size and part.max() >= self.vocab_size for part in parts):
            raise RowRefused(Part.ROW, Code.TOKEN_OUT_OF_RANGE)


def _file_of(image: Row) -> ByteArray:
    return np.frombuffer(file_of(image["image"]), dtype=np.uint8)
