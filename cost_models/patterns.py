"""Regular expressions that people hand in, matched in time proportional to the text whatever they say (RE2)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

MOST_LETTERS = 2**14
"""Of the patterns of one document, together."""
MOST_BYTES = 2**18
"""Of a compiled pattern: 4,096 instructions, each of which may look at each character."""


@functools.lru_cache(maxsize=512)
def compiled(pattern: str, *, any_case: bool = False) -> Any:
    """A pattern to match with; raises ValueError for what is none, and for what cannot be matched in linear time.

    any_case : whether upper and lower case are the same. What it returns has the methods of `re.Pattern`, for UTF-8 text.
    """
    import re2  # only what has patterns of people's own pays for it

    if len(pattern) > MOST_LETTERS:
        raise ValueError(f"{len(pattern):,} characters of patterns, at most {MOST_LETTERS:,} are read")
    options = re2.Options()
    options.log_errors = False
    options.case_sensitive = not any_case
    options.max_mem = MOST_BYTES
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeError) as error:
        said = error.args[0] if error.args else error
        text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        raise ValueError(
            f"{pattern!r:.80} is no regular expression of RE2's kind ({text[:80]}): look-around, back-references and "
            "repetitions above 1,000 are left out, so that every text is matched in linear time"
        ) from error


def wildcard(pattern: str) -> str:
    """The regular expression of a shell's wildcards: `*`, `?` and `[seq]`, `[!seq]`."""
    return "".join(_pieces(pattern))


def _pieces(pattern: str) -> Iterator[str]:
    at = 0
    while at < len(pattern):
        sign = pattern[at]
        end = pattern.find("]", at + 2 + pattern.startswith("!", at + 1)) if sign == "[" else -1
        if end > 0:
            yield _one_of(pattern[at + 1 : end])
            at = end
        else:
            yield {"*": ".*", "?": "."}.get(sign) or literal(sign)
        at += 1


def _one_of(letters: str) -> str:
    negated = letters.startswith("!")
    inside = "".join(sign if sign == "-" else literal(sign) for sign in letters[negated:])
    return f"[{'^' if negated else ''}{inside}]"


def literal(text: str) -> str:
    """The regular expression of a text as it is."""
    return "".join(sign if sign.isalnum() or sign == "_" else rf"\x{{{ord(sign):x}}}" for sign in text)
