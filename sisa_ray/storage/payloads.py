"""Payloads: the only objects of a run that name who asked to be forgotten; deleted once nobody needs them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence

from sisa_ray.core.errors import IntegrityError
from sisa_ray.core.keys import canonical_json
from sisa_ray.core.records import PayloadRewritten
from sisa_ray.storage import layout
from sisa_ray.storage.objects import ObjectStore
from sisa_ray.storage.run import Run

_VERSION = 1


def write_payload(store: ObjectStore, path: str, subjects: Mapping[str, Sequence[str]]) -> None:
    """Store the subjects (canonical keys) of several requests, by request."""
    requests = {request: list(keys) for request, keys in subjects.items()}
    store.put(path, canonical_json({"version": _VERSION, "requests": requests}))


def read_subjects(run: Run, requests: Sequence[str]) -> list[str]:
    """Everybody whom open requests name, once each.

    Raises:
        IntegrityError: where a payload names others than were accepted.
    """
    named = read_each(run, requests)
    return list(dict.fromkeys(subject for name in requests for subject in named.get(name, ())))


def read_each(run: Run, requests: Sequence[str]) -> dict[str, list[str]]:
    """Whom each of these open requests names; those that are known by tags alone are left out.

    Raises:
        IntegrityError: where a payload names others than were accepted.
    """
    named: dict[str, list[str]] = {}
    payloads: dict[str, dict[str, list[str]]] = {}
    for name in requests:
        request = run.state.requests[name]
        if not request.payload:
            continue
        if request.payload not in payloads:
            payloads[request.payload] = _read(run, request.payload)
        named[name] = _named(run, name, payloads[request.payload])
    return named


def rewrite_payload(run: Run, path: str, requests: Sequence[str]) -> PayloadRewritten:
    """Store a payload again for some of its requests alone; the record that names the new object.

    Raises:
        IntegrityError: where it names others than were accepted.
    """
    there = _read(run, path)
    new = layout.payload_path(uuid.uuid4().hex)
    write_payload(run.store, new, {name: _named(run, name, there) for name in requests})
    return PayloadRewritten(before=path, path=new, requests=tuple(requests))


def _named(run: Run, name: str, payload: Mapping[str, list[str]]) -> list[str]:
    """Whom a request names, if they are the people that were accepted."""
    request, named = run.state.requests[name], payload.get(name, [])
    if tuple(run.secret.tags(named)) != request.tags:
        raise IntegrityError(
            f"{run.address}/{request.payload}: does not name the people that were accepted; restore this object"
        )
    return named


def _read(run: Run, path: str) -> dict[str, list[str]]:
    try:
        content = json.loads(run.store.get(path))
        requests = content["requests"] if content["version"] == _VERSION else {}
        return {str(name): [str(key) for key in keys] for name, keys in requests.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # The error's text could hold a piece of the file.
        raise IntegrityError(
            f"{run.address}/{path}: is no payload of requests ({type(error).__name__}); restore this object"
        ) from None
