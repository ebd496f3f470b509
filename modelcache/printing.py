"""What may be anything, fit for a terminal or a page.

Responsible for: leaving out what cannot be seen: escapes that drive a terminal, line breaks, what turns a text round.
"""


def printable(text: str, instead: str = " ") -> str:
    """The same text where all of it can be seen."""
    return text if text.isprintable() else "".join(each if each.isprintable() else instead for each in text)
