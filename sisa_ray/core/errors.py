"""One exception tree. Every message names what was wrong, the rule and the fix.

All classes take a single message, so that they survive pickling across actors.
"""

from __future__ import annotations


class SisaError(Exception):
    """Base of every error that sisa_ray raises on purpose.

    ``exit_code`` is what the command line exits with when the error ends a command.
    """

    exit_code = 2


class ConfigError(SisaError, ValueError):
    """The configuration can never work as written."""


class DataError(SisaError, ValueError):
    """A source table breaks a rule; the message names rows, never the values in them."""


class KeyReused(DataError):
    """An idempotency key stands for another request."""


class SourceMissing(DataError):
    """No file of a source table is where it should be."""


class RecipeError(SisaError):
    """A recipe cannot be imported, is incomplete, or breaks the contract."""


class RecipeMissing(RecipeError):
    """The source of a recipe is not where this process looks for it."""


class SelfCheckError(RecipeError):
    """A recipe keeps state of its own: a stage depends on more than its checkpoint."""


class RunConflict(SisaError):
    """The run at that address has another spec, or its secret or code is not the one here."""


class RunNotFound(SisaError):
    """There is no run at that address."""


class RunBehind(SisaError):
    """The run was restored from before people asked to be forgotten whom its mirror knows."""


class CommitFailed(SisaError):
    """Another process won the log entry: this one is fenced and must stop."""

    exit_code = 5


class StateMoved(SisaError):
    """A commit of this very process, thought lost, had been applied: decide anew."""

    exit_code = 5


class CommitStateUnknown(SisaError):
    """The answer to a commit was lost: it may or may not have been applied. Never clean up on this."""

    exit_code = 5


class StorageError(SisaError):
    """Object storage refused, failed or returned something broken."""

    exit_code = 4


class ObjectMissing(StorageError):
    """There is no object at that path."""


class ObjectExists(StorageError):
    """A conditional create found the path taken."""


class StorageUnavailable(StorageError):
    """Storage did not answer for longer than our patience; the outcome of a write is unknown."""


class StorageDenied(StorageError):
    """Credentials or permissions do not allow the operation."""


class BucketMissing(StorageError):
    """The bucket (or the directory that should hold the runs) does not exist."""


class StorageFull(StorageError):
    """No space is left."""


class IntegrityError(StorageError):
    """Stored bytes are not the bytes that were committed."""


class PurgeIncomplete(StorageError):
    """Something that must be gone could not be shown to be gone."""


class ExecutionError(SisaError):
    """A shard could not be trained: the cause is in the message."""

    exit_code = 6


class ClusterError(ExecutionError):
    """The Ray cluster cannot be joined by this program, or has not what the run needs."""


class CertificateInvalid(SisaError):
    """A certificate or receipt does not hold: a verdict about the file, as ``verify`` has one about bits."""

    exit_code = 1
