"""Tokenizers whose chat template a test chooses."""

import pytest

from finetune_trainer.data.chat import ChatTokenizer
from rows import save_light_model


@pytest.fixture
def chat_with(tmp_path):
    return lambda template: ChatTokenizer(save_light_model(tmp_path / "model", template))
