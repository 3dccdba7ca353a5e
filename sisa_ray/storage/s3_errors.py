"""What S3 says, in our words: which failures pass, which are definite, and what to do about them."""

from __future__ import annotations

import asyncio
import os

import aiohttp
import botocore.exceptions as boto

from sisa_ray.core.errors import (
    BucketMissing,
    ConfigError,
    ObjectExists,
    ObjectMissing,
    SisaError,
    StorageDenied,
    StorageError,
    StorageFull,
)
from sisa_ray.storage.retry import Transient

_DENIED = {
    "401",
    "403",
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "NotSignedUp",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
}
_PASSING = {
    "409",
    "429",
    "BandwidthLimitExceeded",
    "ConditionalRequestConflict",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "RequestThrottled",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
_MISSING = {"404", "NoSuchKey", "NoSuchUpload", "NoSuchVersion"}
_EXISTS = {"412", "PreconditionFailed"}
_FULL = {"507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"}
_UNSUPPORTED = {"405", "501", "MethodNotAllowed", "NotImplemented"}
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.ProfileNotFound,
    boto.SSOError,
)
_PASSING_ERRORS = (
    aiohttp.ClientError,
    asyncio.TimeoutError,
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.ResponseStreamingError,
    ConnectionError,
    TimeoutError,
)


class OperationUnsupported(StorageError):
    """The server does not know this operation."""


def mapped(name: str, error: Exception) -> Exception:
    """Our error, or :class:`Transient`, for one of s3fs, botocore or aiohttp about the object ``name``."""
    answer = _answer(error)
    if answer is not None:
        return _answered(name, answer)
    if isinstance(error, SisaError):
        return error
    if isinstance(error, _NO_CREDENTIALS):
        return StorageDenied(f"{name}: there are no credentials for S3 ({error}); {_FIX_CREDENTIALS}")
    if isinstance(error, _PASSING_ERRORS) or isinstance(error.__cause__, _PASSING_ERRORS):
        return Transient(f"{type(error).__name__}: {error}"[:300])
    if isinstance(error, FileNotFoundError):
        return ObjectMissing(f"{name}: there is no such object")
    if isinstance(error, ValueError) and "endpoint" in str(error).lower():
        return ConfigError(f"AWS_ENDPOINT_URL: {error}; write it like https://s3.example.org:9000")
    if isinstance(error, (boto.BotoCoreError, OSError)):
        return StorageError(f"{name}: {type(error).__name__}: {error}")
    return error  # no failure of storage but a fault in a program: keep its traceback


def mapped_deletion(name: str, answer: dict[str, str]) -> Exception | None:
    """Our error for one object of a deletion of many, None where it was not there anyway."""
    code, message = answer.get("Code", ""), answer.get("Message", "")
    if code in _MISSING:
        return None
    if code in _PASSING:
        return Transient(f"{code}: {message}")
    return StorageDenied(
        f"{name}: could not be deleted ({code}: {message}); allow s3:DeleteObject and s3:DeleteObjectVersion, and "
        "see that no object lock holds it"
    )


def _answered(name: str, answer: boto.ClientError) -> Exception:
    code = str(answer.response.get("Error", {}).get("Code", ""))
    message = str(answer.response.get("Error", {}).get("Message", ""))
    status = answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    said = f"{code}: {message}" if message else code
    if code == "NoSuchBucket":
        return BucketMissing(
            f"{name}: the bucket does not exist at {_endpoint()}; create it, or correct storage_path or "
            "AWS_ENDPOINT_URL"
        )
    if code in _DENIED:
        return StorageDenied(f"{name}: {_endpoint()} refused ({said}); {_FIX_CREDENTIALS}")
    if code in _EXISTS:
        return ObjectExists(f"{name}: exists already")
    if code in _FULL:
        return StorageFull(f"{name}: no space is left ({said}); free some and run the same command again")
    if code in _MISSING:
        return ObjectMissing(f"{name}: there is no such object")
    if code in _UNSUPPORTED:
        return OperationUnsupported(f"{name}: {_endpoint()} does not support the operation ({said})")
    if code in _PASSING or (isinstance(status, int) and status >= 500):
        return Transient(f"{_endpoint()} answered {said}")
    return StorageError(f"{name}: {_endpoint()} answered {said}")


_FIX_CREDENTIALS = (
    "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what that user may do, and that AWS_ENDPOINT_URL names the "
    "server that knows it"
)


def _endpoint() -> str:
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return named or "AWS (AWS_ENDPOINT_URL is not set)"


def _answer(error: BaseException) -> boto.ClientError | None:
    """What the server answered, which s3fs keeps as the cause of the error that it raises."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, boto.ClientError):
        cause = cause.__cause__
    return cause
