"""Arguments and flags of the commands, declared once, and the readers of their texts. Nothing here imports torch."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, get_args

from cyclopts import Group, Parameter, Token, convert, validators

from deepcluster.errors import UsageError
from deepcluster.nets.names import MODULE
from deepcluster.recipes.options import ANY, DECLARED
from deepcluster.texts import number, short

IMAGE_EXPORTS = ("folders", "imagefolder")  # the forms of `export` that hold images, and use all its flags
Mode = Literal["symlink", "hardlink", "copy"]
Outliers = Literal["keep", "separate", "leave"]
Duplicates = Literal["all", "first"]

# The help lists the flags that most people need first, and these parts behind them.
NETWORK = Group("Network and training", sort_key=2)
MACHINE = Group("Machine", sort_key=3)
MESSAGES = Group("Messages", sort_key=4)


# ---- readers --------------------------------------------------------------------------------------------------------


def read_n_clusters(_: object, tokens: Sequence[Token]) -> int | None:
    text = tokens[0].value
    if text == "auto":
        return None
    if not re.fullmatch(r"\d{1,12}", text) or int(text) < 1:
        raise ValueError(f"{short(text)} is not a whole number of at least 1, or auto")
    return int(text)


def read_form(forms: Any, tokens: Sequence[Token]) -> Any:
    """Return the form of an export; refuse csv, because every run has its table."""
    if tokens[0].value == "csv":
        raise ValueError("the table is clusters.csv in the run folder: copy it, or choose parquet")
    return convert(forms, tokens)


def check_device(_: object, name: str) -> None:
    """Check the type alone: only torch knows the devices of this machine."""
    if name.partition(":")[0] not in ("auto", "cpu", "cuda", "mps"):
        raise ValueError("Choose auto, cpu, cuda or mps.")


def read_assignments(texts: list[str] | None) -> dict[str, str]:
    values = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: write it as OPTION=VALUE, for example --set dims=64")
        values[name.strip().replace("-", "_")] = value.strip()
    return values


def read_shares(split: str | Sequence[float]) -> tuple[float, ...]:
    """Return the shares of training, validation and test in ``.8,.1,.1``. UsageError if they are none."""
    text = split if isinstance(split, str) else ",".join(map(str, split))
    shares = tuple(number(part) for part in text.split(","))
    valid = tuple(share for share in shares if share is not None and share >= 0)
    if len(shares) != 3 or len(valid) != 3 or not valid[0] or abs(sum(valid) - 1) > 1e-6:
        raise UsageError(f"--split {text[:80]!a}: give the shares of train, validation and test, such as .8,.1,.1")
    return valid


def refuse(names: Iterable[str], reason: str) -> None:
    """Raise UsageError if any flag was given that this form of a command cannot use."""
    if flags := ", ".join(f"--{name.replace('_', '-')}" if len(name) > 1 else f"-{name}" for name in names):
        raise UsageError(f"{reason}: leave out {flags}")


# ---- shared by commands ---------------------------------------------------------------------------------------------

RunArgument = Annotated[Path, Parameter(name="RUN", help="The run folder that `deepcluster fit` made.")]
if TYPE_CHECKING:
    PathText = str
else:  # the parser takes the text unchanged; Path lets the shell complete it
    PathText = str | Path
AnyPath = Annotated[PathText, Parameter(allow_leading_hyphen=True)]
ImagesArgument = Annotated[
    AnyPath,
    Parameter(
        help="Folders (searched recursively), images and patterns, which are one collection; or one folder of .tar"
        " shards, text file of paths, .npy array, .tar shard, 'train-{000..146}.tar', - for paths on standard"
        " input, sklearn:digits or torchvision:NAME.",
    ),
]
# Apart from the first one: an argument that may begin with a hyphen and repeat would swallow misspelt options. *args
# make a tuple, and may follow options.
MoreImages = Annotated[tuple[PathText, ...], Parameter(show=False)]
NumberOfClusters = Annotated[
    int | None,
    Parameter(name=["-k", "--clusters"], help="Number of clusters, or auto.", converter=read_n_clusters, n_tokens=1),
]
Out = Annotated[Path, Parameter(name=["-o", "--out"])]
OutOfTable = Annotated[AnyPath, Parameter(name=["-o", "--out"], help="A CSV file, or - for standard output.")]
Overwrite = Annotated[bool, Parameter(help="Replace the file at -o.")]
Assignments = Annotated[
    list[str] | None,
    Parameter(name="--set", consume_multiple=True, help="OPTION=VALUE ... for any other option."),
]
Device = Annotated[str, Parameter(help="auto, cpu, cuda or mps.", validator=check_device, group=MACHINE)]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], help="Print errors only.", group=MESSAGES)]
Json = Annotated[
    bool,
    Parameter(name="--json", help="Result as JSON on standard output, messages on standard error.", group=MESSAGES),
]
MaxSkipped = Annotated[
    int | None,
    Parameter(validator=validators.Number(gte=0), help="Fail, and write nothing, if more files are unusable."),
]
Open = Annotated[bool, Parameter(name="--open", help="Open the report in a browser.", group=MESSAGES)]


@Parameter(name="*")
@dataclass(frozen=True)
class Output:
    """Flags of the commands that make or change a run, and print its result."""

    open_: Open = False
    quiet: Quiet = False
    as_json: Json = False
    dry_run: Annotated[bool, Parameter(help="Say what would be done, and write nothing.")] = False


# ---- of single commands ---------------------------------------------------------------------------------------------


@Parameter(name="*")
@dataclass(frozen=True)
class FitFlags:
    """Flags of ``fit`` that are not options of a recipe. Its Request has them, too.

    Attributes:
        out: The run folder to make (default: runs/NAME-DATE).
        like: Keep the numbers, names and junk marks of this earlier run for its clusters that reappear. Without
            IMAGES, fit its images.
        labels: Labels, for metrics only: folders (or the labels of the source), or a CSV of path,label.
        recipe: A name (see `deepcluster recipes`) or FILE.toml.
        overwrite: Replace the run at -o.
        resume: Continue the run at -o from its last checkpoint; it needs no other option. With --rounds N (at
            most the rounds done) the run ends now, with its last round.
        keep_checkpoints: Keep the last two checkpoints of the finished run.
        seed: The same seed gives the same bits on a CPU (on a GPU with --deterministic).
        deterministic: On a GPU, use only kernels whose results repeat bit for bit; some are slower.
        verbose: Print every choice with its reason, and the figures of the rounds.
        features: IMAGES are features: N x D numbers in an .npy file (paths in a .txt or .csv of the same name), or
            Parquet, a file or a folder, with a column of lists. They are clustered without a network.
    """

    out: Out | None = None
    n_clusters: Annotated[NumberOfClusters, Parameter(show_default="auto")] = None
    labels: PathText | None = None
    like: Path | None = None
    recipe: PathText = "auto"
    overwrite: bool = False
    resume: bool = False
    keep_checkpoints: bool = False
    device: Device = "auto"
    seed: Annotated[int, Parameter(group=MACHINE)] = 0
    deterministic: Annotated[bool, Parameter(group=MACHINE)] = False
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], group=MESSAGES)] = False
    features: bool = False

    def check(self, *, dry_run: bool) -> None:
        """Check the flags without looking at the images, and before torch is imported."""
        if self.resume and (self.overwrite or self.out is None):
            raise UsageError("--resume continues the run at -o: give -o RUN, and no --overwrite")
        if self.features:
            for_rounds = {"dry_run": dry_run, "resume": self.resume, "keep_checkpoints": self.keep_checkpoints}
            refuse(filter(for_rounds.get, for_rounds), "--features clusters at once, without rounds")


def _recipe_flags() -> dict[str, Any]:
    flags: dict[str, Any] = {}
    for name, option in DECLARED.items():
        if option.flag:
            names = tuple(choice for choice in option.choices if choice != MODULE)  # which comes from Python
            kind: Any = str if option.auto else type(option.default)
            if names:
                kind = Literal[names] | str if any(name.endswith(ANY) for name in names) else Literal[names]
            flags[name] = Annotated[kind, Parameter(help=option.help, group=NETWORK)]
    return flags


if TYPE_CHECKING:
    RecipeFlags = dict[str, Any]
else:  # the flags that were given, by the name of their option
    RecipeFlags = TypedDict("RecipeFlags", _recipe_flags(), total=False)


@Parameter(name="*")
@dataclass(frozen=True)
class Placing:
    """Flags of ``predict``.

    Attributes:
        reject: Give cluster -1 to outliers and to images in junk clusters.
    """

    out: OutOfTable = "-"
    reject: bool = False
    max_skipped: MaxSkipped = None
    overwrite: Overwrite = False
    as_json: Annotated[Json, Parameter(help="A line of JSON per file instead of CSV.")] = False


@Parameter(name="*")
@dataclass(frozen=True)
class Sorting:
    """Flags of the exports of images. Python and the dialog of the page make the same choices.

    Attributes:
        mode: How to place the images (default: folders: the first that works; imagefolder: copy).
        outliers: Keep outliers in their cluster, in folders of their own, or leave them out.
        duplicates: Of nearly identical images take all, or the best (first): the largest, then the sharpest.
        split: Shares of train, validation and test, such as .8,.1,.1; nearly identical images stay together.
        n: Number of images, drawn uniformly over the clusters (default: all).
        seed: Seed of --split and -n.
        overwrite: Replace a folder of links that an export made. Files are never replaced.
        images: The images of the run, if they have moved since.
        dry_run: Print what the export would do, and stop.
    """

    mode: Mode | None = None
    outliers: Outliers = "keep"
    duplicates: Duplicates = "all"
    split: str | None = None
    n: Annotated[int | None, Parameter(name=["-n", "--number"])] = None
    seed: int = 0
    overwrite: bool = False
    images: PathText | None = None
    dry_run: bool = False
    is_dataset: Annotated[bool, Parameter(parse=False)] = False

    def __post_init__(self) -> None:
        """Check choices from Python and the page."""
        for name, kind in (("mode", Mode), ("outliers", Outliers), ("duplicates", Duplicates)):
            if (value := getattr(self, name)) not in (getattr(Sorting, name), *get_args(kind)):
                raise UsageError(f"--{name} {value}: choose {', '.join(get_args(kind))}, or leave it out")
        if self.is_dataset and self.outliers == "separate":
            raise UsageError(
                f"--outliers {self.outliers}: choose keep or leave. Every folder of an image folder is a class, and"
                " is_outlier is a column of its metadata.csv"
            )
        if self.n is not None and self.n < 1:
            raise UsageError(f"-n {self.n}: give a number of at least 1")
        if self.split is not None:
            read_shares(self.split)
