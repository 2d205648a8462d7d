"""The error of a user's mistake."""

from __future__ import annotations


class UserError(ValueError):
    """What somebody typed, or a file that he passed, breaks a rule: the message holds the value, the rule, the cure.

    Commands print it as one line. A ValueError of any other class is a defect of this program or of a library
    that was called wrongly, and keeps its traceback.
    """


class MisfitError(UserError):
    """Weights do not fit the model. The message is a table: name, expected, found."""
