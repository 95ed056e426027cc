"""The one family of errors that a user can cause."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: one plain sentence saying what is wrong, and one saying what to do.

    The UI shows both, the command line prints them and exits with 2, a batch row records them and the batch goes on.
    Every other exception is a bug and is logged whole.
    """

    def __init__(self, sentence: str, hint: str = "") -> None:
        super().__init__(f"{sentence} {hint}".strip())
        self.sentence = sentence
        self.hint = hint


class OutOfMemory(UserError):  # noqa: N818 - named like torch's
    """Memory ran out although there should have been enough; asking for less may help."""


class Cancelled(Exception):  # noqa: N818 - the user's wish, not an error
    """Raised inside a run when its user asked for it to stop; never an error."""
