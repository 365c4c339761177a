"""Text from elsewhere stays on its line and holds no token."""

from __future__ import annotations

import pytest

from finetune_api.words import plain

TOKEN = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"401 for the token {TOKEN}", "401 for the token ***"),
        (f"Authorization: Bearer {TOKEN}x", "Authorization: Bearer ***"),
        ("Bearer abc.def-ghi, then", "Bearer *** then"),
        ("https://me:pass@hub.example/api", "https://***@hub.example/api"),
        ("hf://org/hf_small and hf_tiny", "hf://org/hf_small and hf_tiny"),
        ("hf://org/model@main could not be read", "hf://org/model@main could not be read"),
        ("a\nType: Failed\r\x1b[31mred\x00", "a Type: Failed [31mred "),
        ("left \u202egnirts\u2066 right\u2028next", "left  gnirts  right next"),
        ("naïve 模型 ✓", "naïve 模型 ✓"),
    ],
)
def test_plain(said, shown):
    assert plain(said) == shown
