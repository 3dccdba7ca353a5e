"""Commands for evidence: the log of a run, certificates and receipts. Checking a file needs neither Ray nor torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from sisa_ray.core.errors import CertificateInvalid, ConfigError, DataError
from sisa_ray.service import render_desk
from sisa_ray.service.arguments import Json, Quiet, Run, SubjectsCommand, examples
from sisa_ray.service.console import EXIT_DIFFERENT, EXIT_NOT_COMPARABLE, Output, document_of

File = Annotated[str, typer.Argument(metavar="FILE", help="A certificate or a receipt.")]
Out = Annotated[str, typer.Option("--out", metavar="FILE", help="File to write.")]

certificate = typer.Typer(help="Signed evidence that people were forgotten.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(
        epilog=examples("log s3://sisa-runs/mnist", "log mnist.yaml --export segment.jsonl --from 120")
    )(log)
    certificate.command("list", epilog=examples("certificate list s3://sisa-runs/mnist"))(list_)
    certificate.command(epilog=examples("certificate fetch mnist.yaml --out certificate.json"))(fetch)
    certificate.command(
        cls=SubjectsCommand, epilog=examples("certificate receipt mnist.yaml train-17 --out receipt.json")
    )(receipt)
    certificate.command(epilog=examples("certificate show certificate.json"))(show)
    certificate.command(
        epilog=examples(
            "certificate verify certificate.json --public-key signing.pub",
            "certificate verify certificate.json --public-key signing.pub --log segment.jsonl",
            "certificate verify certificate.json --public-key signing.pub --replay s3://sisa-runs/mnist",
            "certificate verify receipt.json --public-key signing.pub --certificate certificate.json",
        )
    )(verify)
    app.add_typer(certificate, name="certificate")


def log(
    run: Run,
    export: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the entries as stored, one a line, for an auditor."),
    ] = None,
    first: Annotated[int, typer.Option("--from", metavar="N", min=0, help="First entry.")] = 0,
    last: Annotated[int | None, typer.Option("--to", metavar="N", min=0, help="Last entry.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what happened to a run, entry by entry; everything is read and the chain is checked."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.execution import evidence

        if export is not None:
            entries = evidence.segment(run, first=first, last=last)
            _write(export, b"".join(entry + b"\n" for entry in entries))
            done = {"file": export, "num_entries": len(entries)}
        else:
            lines = list(evidence.history(run, first=first, last=last))
    if export is not None:
        output.emit(done, lambda: render_desk.plain(f"{len(entries):,} entries written to {export}"))
        return
    document = {"records": [document_of(line) for line in lines]}
    output.emit(document, lambda: render_desk.history_text(lines))


def list_(run: Run, as_json: Json = False, quiet: Quiet = False) -> None:
    """List the certificates of a run."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.execution import evidence

        result = evidence.certificates(run)
    output.emit(document_of(result), lambda: render_desk.certificates_text(result))


def fetch(
    run: Run,
    out: Out,
    batch: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The batch, or the beginning of its id. Default: the latest."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Copy a certificate out of a run."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.execution import evidence

        _write(out, evidence.certificate_file(run, batch))
    output.emit({"file": out}, lambda: render_desk.plain(f"written to {out}"))


def receipt(
    run: Run,
    subject: Annotated[str, typer.Argument(metavar="SUBJECT", help="Whose receipt.")],
    out: Out,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make one person's own receipt: their tag, and nobody else's."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.execution import evidence

        _write(out, evidence.receipt_files(run, [subject])[0])
    output.emit({"file": out}, lambda: render_desk.plain(f"written to {out}"))


def show(file: File, as_json: Json = False, quiet: Quiet = False) -> None:
    """Show what a certificate or a receipt says. It is not checked: see verify."""
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        data = _read(file)
        try:
            content = json.loads(data, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise CertificateInvalid(f"{file}: is not JSON") from None
        if not isinstance(content, dict):
            raise CertificateInvalid(f"{file}: is not a certificate or a receipt")
    output.emit(content, lambda: render_desk.signed_text(content))


def verify(
    file: File,
    public_key: Annotated[
        str, typer.Option("--public-key", metavar="K", help="The signer's public key (PEM): signing.pub.")
    ],
    log: Annotated[
        str | None,
        typer.Option(metavar="SEGMENT", help="Entries of the run's log, as `sisa-ray log --export` writes."),
    ] = None,
    certificate: Annotated[
        str | None, typer.Option(metavar="FILE", help="For a receipt: the certificate that it belongs to.")
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="The run: train the certified shards once more and compare."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a certificate or a receipt: its form and signature, its place in the log, and by doing it again.

    Exits with 0 where all that was asked for holds, 1 where something does not, 3 where nothing could be compared.
    """
    output = Output(as_json=as_json, quiet=quiet)
    with output.reporting():
        from sisa_ray.core.certificate import Certificate, Receipt, read_signed
        from sisa_ray.core.chain import check_chain, check_receipt
        from sisa_ray.storage.signing import load_public

        key = load_public(public_key)
        document = read_signed(_read(file), key, name=file)
        checked = ["form", "signature", "paths"]
        document_out: dict[str, object] = {"kind": document.kind, "batch": document.batch, "valid": True}
        replayed = None
        if isinstance(document, Receipt):
            if log is not None or replay is not None:
                raise ConfigError(
                    "--log and --replay: are for certificates; check the receipt's own certificate"
                )
            if certificate is not None:
                data = _read(certificate)
                whole = read_signed(data, key, name=certificate)
                if not isinstance(whole, Certificate):
                    raise ConfigError(f"--certificate {certificate}: is a receipt; give the certificate")
                check_receipt(document, whole, data, name=file)
                checked.append("certificate")
        else:
            if certificate is not None:
                raise ConfigError("--certificate: is for receipts; the file given is a certificate itself")
            if log is not None:
                document_out["entries"] = check_chain(document, _read(log).splitlines(), name=file)
                checked.append("log")
            if replay is not None:
                with output.display("training from scratch") as display:
                    from sisa_ray.execution import evidence

                    replayed = evidence.replay_certificate(replay, document, on_event=display)
                document_out["replay"] = document_of(replayed)
                document_out["valid"] = replayed.outcome != "different"
                checked.append("replay")
        document_out["checked"] = checked
    output.emit(document_out, lambda: render_desk.verified_text(document, checked, replayed))
    if replayed is not None and replayed.outcome == "different":
        raise typer.Exit(EXIT_DIFFERENT)
    if replayed is not None and replayed.outcome in ("not comparable", "superseded"):
        raise typer.Exit(EXIT_NOT_COMPARABLE)


def _refuse_constant(name: str) -> NoReturn:
    """NaN and the like: Python reads them, and JSON has no such numbers."""
    raise ValueError(name)


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None


def _write(file: str, data: bytes) -> None:
    try:
        Path(file).write_bytes(data)
    except OSError as error:
        raise DataError(f"{file}: cannot be written: {error.strerror}") from None
