"""The privacy desk over HTTP: requests to be forgotten, their state, their certificates; the run for those who may."""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from fastapi import Depends, FastAPI, Header, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from sisa_ray import __version__
from sisa_ray.core.bearer import Role
from sisa_ray.core.errors import DataError, KeyReused, SisaError
from sisa_ray.execution.acceptance import Acceptance, Submission, checked_subjects
from sisa_ray.execution.results import RequestRow
from sisa_ray.execution.served import ServedRun
from sisa_ray.serving.documents import (
    Accepted,
    Extension,
    ProblemView,
    Rejection,
    RequestView,
    UnlearningRequest,
    problems,
    view_of,
)
from sisa_ray.serving.gate import Audit, Gate
from sisa_ray.serving.http import request_id_of
from sisa_ray.serving.problems import MEDIA_TYPE, Problem, unavailable


class Coordinator(Protocol):
    """What the desk asks of a run's coordinator."""

    async def submit(self, submissions: list[Submission]) -> list[Acceptance | SisaError]:
        """Have requests accepted."""

    async def find_request(self, name: str) -> RequestRow | None:
        """A request by its id."""

    async def certificate_of(self, name: str) -> bytes | None:
        """The certificate that closed a request."""

    async def describe(self) -> ServedRun:
        """The run."""

    async def call(self, task: str, **arguments: Any) -> Any:
        """Have a task done between batches."""


_ALWAYS = (401, 403, 429, 503)
_ID = Annotated[str, Path(description="The request's id.", examples=["9f8c…"])]


class Desk:
    """Builds the FastAPI application.

    Args:
        coordinator: of the run.
        gate: admits callers.
        audit: remembers them.
        is_ready: whether this replica can answer, and if not, why.
        predict_api: the OpenAPI description of the path of predictions, which is answered elsewhere.
        max_subjects: of one request.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        gate: Gate,
        audit: Audit,
        *,
        is_ready: Any,
        predict_api: dict[str, Any],
        max_subjects: int,
    ) -> None:
        self._coordinator = coordinator
        self._gate = gate
        self._audit = audit
        self._is_ready = is_ready
        self._predict_api = predict_api
        self._max_subjects = max_subjects

    def app(self) -> FastAPI:
        """The application."""
        app = FastAPI(
            title="sisa_ray",
            version=__version__,
            summary="An ensemble that forgets people, bit for bit.",
            docs_url=None,
            redoc_url=None,
            responses=problems(400, *_ALWAYS),
        )
        app.add_exception_handler(Problem, _on_problem)
        app.add_exception_handler(SisaError, _on_error)
        app.add_exception_handler(RequestValidationError, _on_invalid)
        app.add_exception_handler(HTTPException, _on_http)
        self._add_requests(app)
        self._add_run(app)
        self._add_health(app)
        self._describe(app)
        return app

    def _may(self, *roles: Role) -> Any:
        def admit(request: Request) -> None:
            caller = self._gate.admit(request.headers.get("authorization"), roles, kind="desk")
            request.state.caller = caller

        return Depends(admit)

    def _note(self, request: Request, did: str, status: int, **facts: Any) -> None:
        caller = request.state.caller
        self._audit.note(
            request=_request_id(request),
            token=caller.token,
            name=caller.name,
            did=did,
            status=status,
            **facts,
        )
        self._audit.flush()

    def _add_requests(self, app: FastAPI) -> None:
        base = "/v1/unlearning-requests"

        @app.post(
            base,
            status_code=202,
            summary="Ask to be forgotten",
            dependencies=[self._may("request", "operate")],
            responses={
                200: {
                    "model": Accepted,
                    "description": "The request that this idempotency key was used for before.",
                },
                **problems(409, 413, 415, 422),
            },
        )
        async def file(
            body: UnlearningRequest,
            request: Request,
            response: Response,
            idempotency_key: Annotated[
                str | None,
                Header(
                    min_length=1,
                    max_length=1024,
                    pattern=r"\S",
                    description="The same request sent again is one request.",
                ),
            ] = None,
        ) -> Accepted:
            """Durable on return: from then on it is carried out, whatever crashes."""
            if len(body.subjects) > self._max_subjects:
                raise Problem(
                    413,
                    "too-many-subjects",
                    f"subjects: at most {self._max_subjects:,} in one request; send several",
                )
            submission = Submission(
                subjects=tuple(checked_subjects(body.subjects)),
                key=idempotency_key,
                received_at=body.received_at,
                basis=body.basis,
                priority=body.priority,
            )
            answer = (await self._coordinator.submit([submission]))[0]
            if isinstance(answer, SisaError):
                raise answer
            response.status_code = 202 if answer.is_new else 200
            response.headers["location"] = f"{base}/{answer.request}"
            self._note(request, "file", response.status_code, unlearning_request=answer.request)
            return Accepted(
                id=answer.request,
                state=answer.state,
                due_at=answer.due_at,
                num_subjects=answer.num_subjects,
                is_overdue=answer.is_overdue,
            )

        @app.get(
            base + "/{name}",
            summary="How far a request is",
            dependencies=[self._may("request", "operate", "read")],
            responses=problems(404, 422),
        )
        async def follow(name: _ID, request: Request) -> RequestView:
            row = await self._row(name)
            self._note(request, "follow", 200, unlearning_request=row.request)
            return view_of(row)

        @app.get(
            base + "/{name}/certificate",
            summary="The signed certificate",
            dependencies=[self._may("request", "operate", "read")],
            responses={
                200: {
                    "description": "The certificate, to be checked with `sisa-ray certificate verify`.",
                    "content": {"application/json": {"schema": {"type": "object"}}},
                },
                **problems(404, 409, 422),
            },
            response_class=Response,
        )
        async def certificate(name: _ID, request: Request) -> Response:
            row = await self._row(name)
            data = await self._coordinator.certificate_of(row.request)
            if data is None:
                raise Problem(
                    409,
                    "not-certified",
                    f"the request is {row.state}; its certificate comes when all of it is erased",
                )
            self._note(request, "certificate", 200, unlearning_request=row.request)
            return Response(data, media_type="application/json")

        @app.post(
            base + "/{name}/extension",
            summary="Extend the legal clock",
            dependencies=[self._may("operate")],
            responses=problems(404, 409, 415, 422),
        )
        async def extend(name: _ID, body: Extension, request: Request) -> RequestView:
            row = await self._changed(name, "extend", body.reason)
            self._note(request, "extend", 200, unlearning_request=row.request, reason=body.reason)
            return view_of(row)

        @app.post(
            base + "/{name}/rejection",
            summary="Reject a request that is not under way",
            dependencies=[self._may("operate")],
            responses=problems(404, 409, 415, 422),
        )
        async def reject(name: _ID, body: Rejection, request: Request) -> RequestView:
            row = await self._changed(name, "reject", body.reason)
            self._note(request, "reject", 200, unlearning_request=row.request, reason=body.reason)
            return view_of(row)

    async def _row(self, name: str) -> RequestRow:
        row = await self._coordinator.find_request(name)
        if row is None:
            raise Problem(404, "no-request", "there is no unlearning request of this id")
        return row

    async def _changed(self, name: str, task: str, reason: str) -> RequestRow:
        await self._row(name)
        try:
            row: RequestRow = await self._coordinator.call(task, name=name, reason=reason)
        except DataError as error:
            raise Problem(409, "not-possible", str(error)) from None
        return row

    def _add_run(self, app: FastAPI) -> None:
        @app.get(
            "/v1/run",
            summary="The run: generation, voters, what is fenced",
            dependencies=[self._may("read", "operate")],
        )
        async def run(request: Request) -> ServedRun:
            described = await self._coordinator.describe()
            self._note(request, "run", 200)
            return described

    def _add_health(self, app: FastAPI) -> None:
        @app.get("/healthz", summary="Whether the process lives")
        async def healthz() -> dict[str, str]:
            return {"status": "alive"}

        @app.get("/readyz", summary="Whether it can answer", responses=problems(503))
        async def readyz() -> dict[str, str]:
            problem = self._is_ready()
            if problem is not None:
                raise unavailable(problem, kind="not-ready")
            return {"status": "ready"}

    def _describe(self, app: FastAPI) -> None:
        """OpenAPI: with the path of predictions, problems as they are, and the bearer scheme."""
        build = app.openapi

        def openapi() -> dict[str, Any]:
            if app.openapi_schema is None:
                schema = build()
                schema["paths"]["/v1/predict"] = self._predict_api
                components = schema.setdefault("components", {})
                schemas = components.setdefault("schemas", {})
                schemas["ProblemView"] = ProblemView.model_json_schema()
                for name in ("HTTPValidationError", "ValidationError"):
                    schemas.pop(name, None)
                if not self._gate.is_open:
                    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
                for path, methods in schema["paths"].items():
                    for operation in methods.values():
                        if path.startswith("/v1/") and not self._gate.is_open:
                            operation["security"] = [{"bearer": []}]
                        found = operation["responses"]
                        if "422" in found and "HTTPValidationError" in str(found["422"]):
                            found |= {str(k): v for k, v in problems(422).items()}
                app.openapi_schema = schema
            return app.openapi_schema

        app.openapi = openapi  # type: ignore[method-assign]


def _request_id(request: Request) -> str:
    known: str | None = getattr(request.state, "request_id", None)
    if known is None:
        known = request.state.request_id = request_id_of(dict(request.scope["headers"]))
    return known


def _problem_response(request: Request, problem: Problem) -> Response:
    name = _request_id(request)
    headers = {**problem.headers, "cache-control": "no-store"}
    return Response(problem.body(name), problem.status, headers, MEDIA_TYPE)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _problem_response(request, error)


async def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, KeyReused):
        return _problem_response(request, Problem(409, "idempotency-key", str(error)))
    if isinstance(error, DataError):
        return _problem_response(request, Problem(422, "bad-request", str(error)))
    return _problem_response(request, unavailable(str(error)))


async def _on_invalid(request: Request, error: Exception) -> Response:
    """What breaks the schema: where and which rule, never the value, which may name a person."""
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    if any(f["type"] == "json_invalid" for f in faults):
        return _problem_response(request, Problem(400, "not-json", "body: is not JSON in UTF-8"))
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.method == "POST" and kind != "application/json":
        return _problem_response(
            request, Problem(415, "media-type", "content-type: must be application/json")
        )
    lines = [f"{'.'.join(str(p) for p in f['loc'][1:]) or f['loc'][0]}: {f['msg']}" for f in faults[:5]]
    return _problem_response(request, Problem(422, "bad-request", "; ".join(lines)))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    details = {404: "there is nothing at this path", 405: "this path does not know this method"}
    detail = details.get(error.status_code, "the request cannot be read")
    status = error.status_code if error.status_code in details else 400
    return _problem_response(request, Problem(status, "http", detail, headers=dict(error.headers or {})))
