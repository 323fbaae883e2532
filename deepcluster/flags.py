"""Arguments and flags of the commands, and the readers of their texts. Nothing here imports torch."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from cyclopts import Parameter

from deepcluster.errors import UsageError, missing_extra
from deepcluster.evaluation.options import PROTOCOL_OPTIONS
from deepcluster.recipe import ANY, Recipe, declared

TIME = r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?"
MAX_SECONDS = 1e9  # of a time limit: 30 years
IMAGE_EXPORTS = ("folders", "imagefolder")  # the forms of `export` that hold images

RunArgument = Annotated[Path, Parameter(name="RUN", help="The run folder that `deepcluster fit` made.")]
if TYPE_CHECKING:
    PathText = str
else:  # the parser takes the text as it is; Path lets the shell complete it
    PathText = str | Path
ImagesArgument = Annotated[
    PathText,
    Parameter(
        help="A folder (searched recursively; of images or of .tar shards), a text file of paths, an .npy/.npz array, a"
        " .tar shard, several as 'train-{000..146}.tar', - for paths on standard input, sklearn:digits,"
        " torchvision:NAME or hf:NAME.",
        allow_leading_hyphen=True,
    ),
]


def _check_device(_: object, name: str) -> None:
    """Check the type alone: only torch knows the devices of this machine."""
    if name.partition(":")[0] not in ("auto", "cpu", "cuda", "mps"):
        raise ValueError("Choose auto, cpu, cuda or mps.")


Device = Annotated[str, Parameter(help="auto, cpu, cuda or mps.", validator=_check_device)]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], help="Print errors only.")]
Json = Annotated[bool, Parameter(name="--json", help="Result as JSON on standard output, messages on standard error.")]
Open = Annotated[bool, Parameter(name="--open", help="Open the report in a browser.")]
OutOfTable = Annotated[
    PathText, Parameter(name=["-o", "--out"], help="A CSV file, or - for standard output.", allow_leading_hyphen=True)
]
Overwrite = Annotated[bool, Parameter(help="Replace the file at -o.")]
Assignments = Annotated[
    list[str] | None, Parameter(name="--set", consume_multiple=True, help="OPTION=VALUE ... for any further option.")
]
NumberOfClusters = Annotated[str, Parameter(name=["-k", "--clusters"], help="Number of clusters, or auto.")]


def _recipe_flags() -> dict[str, Any]:
    flags: dict[str, Any] = {}
    for name, option in declared(Recipe).items():
        if option.flag:
            names = tuple(choice for choice in option.choices if not choice.endswith(ANY))
            kind: Any = str if option.auto else type(option.default)
            if names:
                kind = Literal[names] if names == option.choices else Literal[names] | str
            flags[name] = Annotated[kind, Parameter(help=option.help)]
    return flags


def _protocol_flags() -> dict[str, Any]:
    """Return the flags of all protocols. A flag of several may mean something else to each."""
    types: dict[str, type] = {}
    meanings: dict[str, dict[str, list[str]]] = {}
    for protocol, kind in PROTOCOL_OPTIONS.items():
        for name, option in declared(kind).items():
            if option.flag:
                types[name] = type(option.default)
                meanings.setdefault(name, {}).setdefault(option.help, []).append(protocol)
    return {
        name: Annotated[
            types[name],
            Parameter(help=" ".join(f"{', '.join(protocols)}: {text}" for text, protocols in texts.items())),
        ]
        for name, texts in meanings.items()
    }


if TYPE_CHECKING:
    RecipeFlags = dict[str, Any]
    ProtocolFlags = dict[str, Any]
else:  # the flags that were given, by the name of their option
    RecipeFlags = TypedDict("RecipeFlags", _recipe_flags(), total=False)
    ProtocolFlags = TypedDict("ProtocolFlags", _protocol_flags(), total=False)


@dataclass(frozen=True)
class FitFlags:
    """Flags of ``fit`` that are no options of a recipe."""

    out: Annotated[
        Path | None, Parameter(name=["-o", "--out"], help="The run folder to make (default: runs/NAME-DATE).")
    ] = None
    k: NumberOfClusters = "auto"
    recipe: Annotated[PathText, Parameter(help="A name (see `deepcluster recipes`) or FILE.toml.")] = "auto"
    device: Device = "auto"
    deterministic: Annotated[
        bool, Parameter(help="On a GPU: only kernels whose results repeat bit for bit; some are slower.")
    ] = False
    seed: Annotated[
        int, Parameter(help="The same seed gives the same bits on a CPU (on a GPU with --deterministic).")
    ] = 0
    time_limit: Annotated[
        str | None, Parameter(help="Finish within this time, with fewer rounds if needed: 90s, 30m, 2h.")
    ] = None
    labels: Annotated[
        PathText | None,
        Parameter(help="For metrics only: folders (or what comes with the source), or a CSV of path,label."),
    ] = None
    overwrite: Annotated[bool, Parameter(help="Replace the run at -o.")] = False
    resume: Annotated[bool, Parameter(help="Continue the run at -o from its last checkpoint.")] = False
    log: Annotated[
        Literal["tensorboard"] | None, Parameter(help="tensorboard: the numbers of each round, in RUN/tensorboard.")
    ] = None
    features: Annotated[
        bool,
        Parameter(
            help="IMAGES are features: N x D numbers in an .npy file (paths in a .txt or .csv of the same name)."
            " They are grouped without a network.",
        ),
    ] = False
    dry_run: Annotated[bool, Parameter(help="Print the plan with its time and memory, and stop.")] = False
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], help="Print every choice with its reason.")] = False

    def check(self) -> None:
        """Check the flags without looking at the images, and before torch is imported."""
        read_n_clusters(self.k)
        if self.seconds == 0:
            raise UsageError(f"--time-limit {self.time_limit}: give more than 0 seconds, as 90s, 30m, 2h or 1h30m")
        if self.resume and (self.overwrite or self.out is None):
            raise UsageError("--resume continues the run at -o: give -o RUN, and no --overwrite")
        for name in ("dry_run", "resume", "time_limit", "log") if self.features else ():
            if getattr(self, name):
                raise UsageError(f"{flag_names([name])} is for images: features are grouped at once; leave it out")
        if self.log and find_spec(self.log) is None:
            raise missing_extra(self.log, ImportError(f"no module named {self.log}"))

    @property
    def seconds(self) -> float | None:
        """Seconds of the time limit."""
        if self.time_limit is None:
            return None
        match = re.fullmatch(TIME, self.time_limit)
        hours, minutes, seconds = (float(value or 0) for value in match.groups()) if match else (0.0, 0.0, 0.0)
        seconds += 3600 * hours + 60 * minutes
        if not match or not any(match.groups()) or seconds > MAX_SECONDS:
            raise UsageError(f"--time-limit {short(self.time_limit)}: write it as 90s, 30m, 2h or 1h30m")
        return seconds


class ImageExportFlags(TypedDict, total=False):
    """The given flags of ``export`` that are for IMAGE_EXPORTS alone."""

    mode: Annotated[
        Literal["symlink", "hardlink", "copy"],
        Parameter(help="How images get there (default: folders take the first that works, imagefolder copies)."),
    ]
    outliers: Annotated[
        Literal["keep", "separate", "leave"],
        Parameter(help="Images far from all others: in their cluster (keep, the default), apart, or left out."),
    ]
    images: Annotated[PathText, Parameter(help="The images of the run, if they have moved since.")]
    strip_metadata: Annotated[
        bool,
        Parameter(
            negative="--keep-metadata",
            help="Copies of images without EXIF (time, place), comments and the like (default: for imagefolder).",
        ),
    ]
    dry_run: Annotated[bool, Parameter(help="Print what would be done, and stop.")]


def read_n_clusters(k: str) -> int | None:
    if k == "auto":
        return None
    if not re.fullmatch(r"\d{1,12}", k) or int(k) < 2:
        raise UsageError(f"-k {short(k)}: give a whole number of at least 2, or auto")
    return int(k)


def read_assignments(texts: list[str] | None) -> dict[str, str]:
    values = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: write it as OPTION=VALUE, for example --set dims=64")
        values[name.strip().replace("-", "_")] = value.strip()
    return values


def flag_names(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"
