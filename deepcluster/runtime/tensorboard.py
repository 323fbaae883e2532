"""The rounds of a run as scalars of TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepcluster.errors import missing_extra
from deepcluster.runtime.console import Silent

FOLDER = "tensorboard"  # in the run folder


class TensorBoard(Silent):
    """Writes the numbers of each row of history.csv to RUN/tensorboard. UsageError where the package is missing."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing_extra("tensorboard", error) from None
        self._open = SummaryWriter
        self._run = ""
        self._writer: Any = None

    def say(self, heading: str, text: str) -> None:
        if heading == "Run" and text != self._run:
            if self._writer:
                self._writer.close()
            self._run, self._writer = text, None

    def round(self, row: Mapping[str, Any], rounds: int) -> None:
        if self._writer is None:  # what an earlier process wrote of rounds that are made again is not shown
            self._writer = self._open(str(Path(self._run, FOLDER)), purge_step=row["round"])
        for name, value in row.items():
            if name != "round" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, row["round"])
        self._writer.flush()
