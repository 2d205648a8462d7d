"""What the parts found, kept on disk after each of them, and shown as one table."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import Claim, claims_table

JSON_FILE, PAGE_FILE = "gpu.json", "gpu.md"


@dataclass(kw_only=True)
class Results:
    """Claims of each part, longer texts behind them, and what went wrong."""

    folder: Path
    about: dict[str, Any] = field(default_factory=dict)  # machine and versions
    claims: dict[str, list[Claim]] = field(default_factory=dict)  # by part
    texts: dict[str, str] = field(default_factory=dict)  # Markdown, by heading
    tables: dict[str, list[dict[str, str]]] = field(default_factory=dict)  # rows, by heading
    problems: dict[str, str] = field(default_factory=dict)  # by part and what was tried
    seconds: dict[str, float] = field(default_factory=dict)  # by part

    def add(self, part: str, name: str, value: float, **limits: Any) -> None:
        """A number of a part; `limits` are those of a `Claim`: bar, goal, at_least."""
        self.claims.setdefault(part, []).append(Claim(name=name, value=float(value), **limits))

    def add_row(self, heading: str, row: dict[str, str]) -> None:
        """A line of a table; its first row names the columns."""
        self.tables.setdefault(heading, []).append(row)

    def attempt(self, part: str, name: str, run: Callable[[], Any]) -> Any:
        """What `run` returns, or None where it fails: its traceback is kept, and the other numbers come."""
        try:
            return run()
        except Exception:  # whatever a driver, a kernel or a compiler raises
            self.problems[f"{part}: {name}"] = traceback.format_exc()
            return None

    @property
    def missed(self) -> list[str]:
        """Names of the claims under their bar."""
        return [
            claim.name for claims in self.claims.values() for claim in claims if claim.verdict == "missed"
        ]

    def save(self) -> None:
        """Write both files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "about": self.about,
            "seconds": self.seconds,
            "claims": {part: [claim.to_dict() for claim in claims] for part, claims in self.claims.items()},
            "tables": self.tables,
            "texts": self.texts,
            "problems": self.problems,
        }
        (self.folder / JSON_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (self.folder / PAGE_FILE).write_text(self.page(), encoding="utf-8")

    def page(self) -> str:
        """Markdown: texts, problems, tables, and the claims last."""
        about = "\n".join(f"- {name}: {value}" for name, value in self.about.items())
        blocks = [f"# GPU\n\n{about}"]
        blocks += [f"## {heading}\n\n{text}" for heading, text in self.texts.items()]
        blocks += [f"## Failed: {what}\n\n```\n{trace}```" for what, trace in self.problems.items()]
        blocks += [f"## {heading}\n\n{to_table(rows)}" for heading, rows in self.tables.items()]
        for part, claims in self.claims.items():
            took = f" ({self.seconds[part]:.0f} s)" if part in self.seconds else ""
            blocks.append(f"## {part}{took}\n\n{claims_table(claims)}")
        return "\n\n".join([*blocks, self.verdict()]) + "\n"

    def verdict(self) -> str:
        """One line for each thing that needs a look."""
        lines: Sequence[str] = [f"missed: {name}" for name in self.missed]
        lines = [*lines, *(f"failed: {what}" for what in self.problems)]
        return "\n".join(lines or ["All bars are met."])


def to_table(rows: Sequence[dict[str, str]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(rows[0])} |", "|---|" + "---:|" * (len(rows[0]) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row.values())} |" for row in rows)])
