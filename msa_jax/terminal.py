"""Text of others on a terminal: what would drive the terminal is shown, not sent."""

from __future__ import annotations

import re
import sys

# Control characters but the tab, which moves nothing that was printed; line and paragraph
# separators; marks that turn the direction of what follows; bytes of file names that are no UTF-8.
_ONE_LINE = re.compile(r"[\0-\x08\n-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LINES = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str, lines: bool = False) -> str:
    r"""A text with `\x1b` and its like in place of characters that a terminal would obey.

    Whatever comes from documents, questions, models or file names is printed through this.

    Args:
        text: of anyone.
        lines: whether line ends stay.
    """
    pattern = _LINES if lines else _ONE_LINE
    return pattern.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def show(text: str, end: str = "\n") -> None:
    """Prints lines on standard output, at once."""
    print(escaped(text, lines=True), end=end, flush=True)


def note(text: str) -> None:
    """Prints one line beside the output, on standard error."""
    print(escaped(text), file=sys.stderr, flush=True)
