"""Blocks of a document that are carried out: commands after ``$``, and what they print, with ``…`` for anything."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^<!-- tried -->\n```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command, as the document has it."""

    text: str
    expected: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """As a remark announces it; 0 without one."""
        announced = re.search(r"# .*exit code (\d+)", self.text)
        return int(announced[1]) if announced else 0

    def check(self, directory: Path, environment: Mapping[str, str]) -> None:
        """Carry it out.

        Raises:
            AssertionError: where it ends or prints otherwise than the document says.
        """
        done = subprocess.run(
            ["bash", "-c", self.text],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        told = f"$ {self.text}\n{done.stdout}"
        assert done.returncode == self.exit_code, f"exit code {done.returncode} of\n{told}"
        assert re.fullmatch(self._pattern, done.stdout), f"expected {self.expected}, not\n{told}"

    @property
    def _pattern(self) -> str:
        """A line of ``…`` alone stands for any number of lines."""
        lines = [
            r"(?:.*\n)*?" if line == "…" else r".*?".join(map(re.escape, line.split("…"))) + r"\s*\n"
            for line in self.expected
        ]
        return "".join(lines)


def tried(document: str) -> Iterator[Command]:
    """The commands of all blocks that are marked as tried, in their order."""
    for block in _BLOCK.findall(document):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *expected = part.rstrip("\n").split("\n")
            yield Command(text=command, expected=tuple(expected))
