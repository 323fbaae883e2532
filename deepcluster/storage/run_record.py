"""run.json as a value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The content of run.json; docs/run-folder.md explains the keys. None: not known (yet), and not in the file.

    other: Keys that other versions of the package write; they stay as they are.
    """

    schema_version: int = SCHEMA_VERSION
    run: str | None = None
    version: str | None = None
    status: str | None = None
    result: str | None = None  # None: there is none
    command: str | None = None
    images: str
    location: str
    started: str | None = None
    seed: int
    n_clusters: int | None = None  # None: -k auto, null in the file
    device: str | None = None
    environment: Mapping[str, str | int] | None = None
    memory_estimate_mb: int | None = None
    images_count: int | None = None
    skipped_count: int | None = None
    fingerprint: str | None = None
    backbone: str | None = None
    pseudo_labels: int | None = None
    reasons: Mapping[str, str] | None = None
    seconds_by_phase: Mapping[str, float] | None = None
    resumed: Sequence[str] | None = None
    candidates: Sequence[Mapping[str, Any]] | None = None
    rounds: int | None = None
    stopped_because: str | None = None
    peak_memory_mb: int | None = None
    seconds: float | None = None
    cut: str | None = None
    rows: str | None = None
    clusters: int | None = None
    stability: float | None = None
    verdict: str | None = None
    edits: str | None = None
    error: str | None = None
    other: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Self:
        names = {entry.name for entry in fields(cls)} - {"other"}
        other = {name: value for name, value in table.items() if name not in names}
        return cls(**{name: value for name, value in table.items() if name in names}, other=other)

    def to_json(self) -> dict[str, Any]:
        table = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "other"}
        known = {name: value for name, value in table.items() if value is not None or name == "n_clusters"}
        return known | {**self.other}

    def with_result_of(self, before: Self | None) -> Self:
        """Return the record of a run that goes on, with the entries of the result ``before``, which are still true."""
        return replace(self, **{name: getattr(before, name) for name in _RESULT}) if before else self

    def with_phase(self, phase: str, seconds: float) -> Self:
        """Return the record with the seconds of a phase."""
        return replace(self, seconds_by_phase={**(self.seconds_by_phase or {}), phase: round(seconds, 2)})


# Entries that a result adds to the record of a run.
_RESULT = (
    "result", "candidates", "rounds", "stopped_because", "peak_memory_mb", "seconds", "cut", "rows",
    "clusters", "stability", "verdict", "edits",
)  # fmt: skip
