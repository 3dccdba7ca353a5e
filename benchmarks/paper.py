"""The paper's tables and figures, and this project's beside them: everything that docs/results.md shows.

    python benchmarks/paper.py                        # all sections, then the document
    python benchmarks/paper.py --only headline tasks  # these, and the document from what is kept of the others
    python benchmarks/paper.py --quick --output /tmp/results.d   # a twentieth of the data: does it run?
    python benchmarks/paper.py --render               # the document alone, from the figures that are kept
    python benchmarks/paper.py --check                # is the document what the figures say?

A section keeps every row as it comes (``<output>/results/<section>.json``), and a run goes on where it was cut;
``--anew`` drops the rows of the sections that run. Purchase-shaped data are generated; the others are looked for in
``../shared/data`` (or ``SISA_DATA``), and a section whose data or module is not there is left out, which is said.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from _paper_figures import draw
from _paper_report import render
from _paper_runs import SEED, Bench, data_dir
from _paper_sections import SECTIONS, Row, Section

QUICK_SHRINK = 20
NEEDS: dict[str, tuple[str, ...]] = {
    "frontier": ("mnist-train.parquet",),
    "slices": ("mnist-train.parquet",),
    "shards": ("mnist-train.parquet",),
    "mnist": ("mnist-train.parquet",),
    "transfer": ("cifar10-train.parquet",),
}
MODULES = {"strata": "_paper_strata", "transfer": "_paper_transfer"}


class Kept:
    """The JSON of one section: its rows as they come, and what it ran on."""

    def __init__(self, path: Path, *, section: Section, quick: bool, anew: bool) -> None:
        self._path = path
        self._data: dict[str, Any] = {"section": section.name, "rows": {}, "result": None}
        if path.exists() and not anew:
            self._data = json.loads(path.read_text(encoding="utf-8"))
        if self._data.setdefault("quick", quick) != quick:
            sys.exit(
                f"{path}: holds {'quick' if not quick else 'full'} rows; give --anew or another --output"
            )

    def row(self, key: str, make: Callable[[], Row]) -> Row:
        """The row that is kept under ``key``, or a new one."""
        rows: dict[str, Row] = self._data["rows"]
        if key not in rows:
            started = time.perf_counter()
            load = os.getloadavg()[0]
            made = make()
            took_s = time.perf_counter() - started
            rows[key] = {
                **made,
                "took_s": round(took_s, 1),
                "load": [round(load, 1), round(os.getloadavg()[0], 1)],
            }
            self._save()
            print(f"  {key}: {took_s:.0f} s", flush=True)
        return rows[key]

    def finish(self, result: Row, command: str) -> None:
        """Keep the section as the document shows it."""
        self._data |= {
            "result": result,
            "command": command,
            "machine": machine(),
            "date": datetime.now(UTC).date().isoformat(),
            "seed": SEED,
        }
        self._save()

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._data, indent=1) + "\n"
        self._path.with_suffix(".tmp").write_text(text, encoding="utf-8")
        self._path.with_suffix(".tmp").replace(self._path)


def machine() -> dict[str, Any]:
    """What a run's times depend on; no names."""
    import platform

    import torch

    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def missing(section: Section) -> str | None:
    """What a section lacks, or None."""
    module = MODULES.get(section.name)
    if module and find_spec(module) is None:
        return f"benchmarks/{module}.py"
    absent = [name for name in NEEDS.get(section.name, ()) if not (data_dir() / name).exists()]
    return f"{absent[0]} in {data_dir()}" if absent else None


def run(sections: list[Section], options: argparse.Namespace, directory: Path) -> None:
    """Run sections one after the other, saying how long each may take."""
    import ray

    from sisa_ray.service.environment import quiet_ray

    quiet_ray()
    os.environ.setdefault("SISA_RAY_KEYRING", str(directory / "keys"))
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    bench = Bench(directory=directory, shrink=QUICK_SHRINK if options.quick else 1)
    minutes = sum(s.minutes for s in sections) / bench.shrink
    print(f"{len(sections)} sections, about {minutes:.0f} minutes on two quiet cores", flush=True)
    for section in sections:
        if lacks := missing(section):
            print(f"{section.name}: left out, for there is no {lacks}")
            continue
        print(f"{section.name}: about {section.minutes / bench.shrink:.0f} minutes", flush=True)
        kept = Kept(
            options.output / "results" / f"{section.name}.json",
            section=section,
            quick=options.quick,
            anew=options.anew,
        )
        kept.finish(section.make(bench, kept.row), f"python benchmarks/paper.py --only {section.name}")


def load(output: Path) -> dict[str, dict[str, Any]]:
    """Every section that is finished, in the document's order."""
    found = {}
    for section in SECTIONS:
        path = output / "results" / f"{section.name}.json"
        if path.exists():
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["result"] is not None:
                found[section.name] = {**data, "title": section.title}
    return found


def main() -> None:
    names = [section.name for section in SECTIONS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="SECTION", help=f"of: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the data")
    parser.add_argument("--anew", action="store_true", help="drop the rows that are kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs")
    parser.add_argument("--directory", type=Path, help="keep tables and runs here (default: a temporary one)")
    parser.add_argument("--render", action="store_true", help="write the document only")
    parser.add_argument("--check", action="store_true", help="compare the document with the figures only")
    options = parser.parse_args()
    document = options.output / "results.md"
    if options.check:
        if document.read_text(encoding="utf-8") != render(load(options.output)):
            sys.exit(f"{document}: is not what the figures say; run python benchmarks/paper.py --render")
        return
    if not options.render:
        chosen = [s for s in SECTIONS if options.only is None or s.name in options.only]
        with tempfile.TemporaryDirectory() as temporary:
            run(chosen, options, options.directory or Path(temporary))
    found = load(options.output)
    draw(found, options.output / "results")
    document.write_text(render(found), encoding="utf-8")
    print(f"{document}: {len(found)} sections")


if __name__ == "__main__":
    main()
