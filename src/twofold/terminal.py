"""Text from outside, such as a name, a reference or what a model wrote, on a terminal: it cannot move, colour or hide anything."""

from __future__ import annotations

import re

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: object) -> str:
    r"""Return a text with its control characters, marks of direction and half characters written as ``\x1b``, ``\u202e``.

    >>> print(visible("a\x1b[31m red"))
    a\x1b[31m red
    """
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], str(text).replace("\r\n", "\n"))
