"""Text from elsewhere, as it may stand in a status, an event or a log.

What a library raises, a model's files say or a pod reports is not ours: a line break in it could pass for another
line, an escape sequence for another text, and an error may quote a token.
"""

from __future__ import annotations

import re

ODD = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
"""Control characters, line breaks of every kind, and what turns the direction of writing."""
TOKEN = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{16,}|(?<=Bearer )[^\s\"']+|(?<=://)[^/\s@\"']+(?=@[^\s\"'/]+)")
"""Tokens of the Hub, bearer tokens, and names with passwords in URLs."""
REDACTED = "***"


def plain(text: str) -> str:
    """`text` on one line, without what could pass for a token."""
    return TOKEN.sub(REDACTED, ODD.sub(" ", text))
