from __future__ import annotations

import pickle

import pytest

from sisa_ray.core import errors
from sisa_ray.core.errors import ConfigError, DataError, SelfCheckError, SisaError, StorageError

ALL = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, SisaError)]


@pytest.mark.parametrize("kind", ALL, ids=lambda k: k.__name__)
def test_errors_cross_process_borders(kind: type[SisaError]) -> None:
    error = pickle.loads(pickle.dumps(kind("sisa.epochs: must be positive")))
    assert type(error) is kind
    assert str(error) == "sisa.epochs: must be positive"


@pytest.mark.parametrize("kind", ALL, ids=lambda k: k.__name__)
def test_exit_codes_are_no_verdicts(kind: type[SisaError]) -> None:
    """0 is success, 1 is what ``verify`` says of bits, or of a certificate: no other error may look like either."""
    assert kind.exit_code > 1 or kind is errors.CertificateInvalid
    assert kind.__doc__


def test_users_mistakes_are_value_errors() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(DataError, ValueError)


def test_storage_can_be_told_from_the_rest() -> None:
    storage = {e.__name__ for e in ALL if issubclass(e, StorageError)}
    assert {"ObjectMissing", "ObjectExists", "StorageFull", "IntegrityError", "PurgeIncomplete"} <= storage
    assert "SelfCheckError" not in storage
    assert SelfCheckError.exit_code != StorageError.exit_code
