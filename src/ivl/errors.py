"""Errors that a user can cause, and can fix.

Every one carries a message (what is wrong) and a hint (what to do about it). The command line
prints both and exits with 2; a server turns them into its API's error JSON. Anything else that is
raised is a defect of ours.
"""


class IvlError(Exception):
    """Base of all errors that a user can fix. `hint` may be empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(IvlError):
    """A model's configuration, or an option given by the user, cannot be used."""


class CheckpointError(IvlError):
    """Files of weights are missing, damaged, or not those of the model they claim to be."""


class UnsupportedError(IvlError):
    """A valid thing that ivl does not do."""


class CapacityError(IvlError):
    """The request or the model is larger than the memory or the context allows."""


class RequestError(IvlError):
    """A question, an image or a generation option is not usable."""


class LockedError(RequestError):
    """A PDF needs a password, or another than those that were given."""


class BusyError(IvlError):
    """More is asked for at once than the limits allow; the same may be had later."""


class UnavailableError(IvlError):
    """What would answer is stopping, or has failed; another try needs it to be there again."""


class NonFiniteError(IvlError):
    """The model has computed numbers that are not finite, from which nothing can be chosen."""
