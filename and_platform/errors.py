"""Everything that `and_platform` raises on purpose.

A message says what is wrong and what to do next; the CLI prints it as one line and exits with `exit_code`.

    AndpError
    ├── ConfigError              a setting or a config file is wrong
    ├── NotFoundError            no such data set, network, neuron, dissection …
    ├── ConflictError            the name is taken by something else
    ├── InputError               what the user gave cannot be used
    │   ├── AudioError           a sound file that cannot be decoded or measured
    │   ├── ManifestError        a manifest, caption file or concept file
    │   ├── QueryError           SQL of the user's that the server refused
    │   └── MessageError         a broker's message that no sender of ours makes
    ├── DatabaseError
    │   ├── DatabaseUnreachableError
    │   ├── ExtensionMissingError
    │   ├── EmbeddedServerError
    │   └── SchemaVersionError   the schema is older or newer than this program
    ├── BrokerError              the workers' message broker cannot be used
    │   └── BrokerUnreachableError
    ├── BackendError             a model, encoder, tagger or LLM
    │   ├── MissingExtraError    a package is not installed; names the extra
    │   ├── WeightsMissingError
    │   └── GenerationError      an LLM or captioner gave no usable answer
    ├── ActivationError          values that cannot be stored (not finite, beyond half range) or modules that are missing
    ├── OutOfMemoryError         this machine has too little memory for the work
    └── IncompleteError          a result was asked for before its stage was complete
"""

from __future__ import annotations


class AndpError(Exception):
    """Base of all errors of the platform."""

    exit_code = 1


class ConfigError(AndpError):
    """A setting or a config file is wrong."""

    exit_code = 2


class NotFoundError(AndpError):
    """There is no such data set, network, neuron, dissection, concept set …"""

    exit_code = 3


class ConflictError(AndpError):
    """The name is already taken by something else."""


class InputError(AndpError):
    """What the user gave cannot be used."""

    exit_code = 2


class AudioError(InputError):
    """A sound file that cannot be decoded or measured. The message is the reason, without the path."""


class ManifestError(InputError):
    """A manifest, caption file or concept file that cannot be read."""


class QueryError(InputError):
    """SQL written by the user that the server refused."""


class MessageError(InputError):
    """A message in the workers' queues that no sender of ours makes."""


class DatabaseError(AndpError):
    """The database cannot be used.

    Attributes
    ----------
    passing : bool
        The same transaction, begun anew, may succeed: the connection was lost, or others wrote to the same rows.
    """

    exit_code = 4

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class DatabaseUnreachableError(DatabaseError):
    """No server answers, or it does not let us in."""


class ExtensionMissingError(DatabaseError):
    """pgvector is absent or too old."""


class EmbeddedServerError(DatabaseError):
    """The embedded Postgres does not start or stop."""


class SchemaVersionError(DatabaseError):
    """The schema is older or newer than this program."""


class BrokerError(AndpError):
    """The message broker of the workers cannot be used."""

    exit_code = 6


class BrokerUnreachableError(BrokerError):
    """No broker answers, or it does not let us in."""


class BackendError(AndpError):
    """A model, encoder, tagger or LLM failed."""

    exit_code = 5


class MissingExtraError(BackendError):
    """A package that this backend needs is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"the package '{package}' is not installed; install it with: pip install 'and-platform[{extra}]'"
        )
        self.package = package
        self.extra = extra


class WeightsMissingError(BackendError):
    """The files of a model are not where they should be."""


class GenerationError(BackendError):
    """An LLM or captioner gave no usable answer."""


class ActivationError(AndpError):
    """Activations that cannot be recorded: not finite, beyond half range, or a module that is missing."""


class OutOfMemoryError(AndpError):
    """This machine has too little memory for the work, whatever it is about."""


class IncompleteError(AndpError):
    """A result was asked for before the stage that makes it was complete."""
