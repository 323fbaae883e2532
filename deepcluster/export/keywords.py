"""Names of clusters as keywords of the image files, for exiftool, which writes them."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from io import StringIO
from operator import methodcaller
from pathlib import Path

from deepcluster.errors import DataError
from deepcluster.export.plan import plan, read_run_images
from deepcluster.recipes.flags import Sorting
from deepcluster.runtime.console import Display, Silent
from deepcluster.runtime.tables import write_csv
from deepcluster.storage.files import check_no_file, new_file
from deepcluster.texts import plural

BRANCH = "deepcluster"  # above our keywords, so that they are told from all others
COLUMNS = ("SourceFile", "XMP-dc:Subject", "XMP-lr:HierarchicalSubject", "XMP-digiKam:TagsList")
NESTING = str.maketrans("/|", "--")  # digiKam and Lightroom nest keywords by these

# Arguments of exiftool. Programs read the first list that is not empty, so a missing list begins with the keywords of
# the others (FILL). Flat keywords that the nested list lacks are added to it (NEST): a later table then knows that they
# are not ours. The keywords of the table replace those of an earlier one (REPLACE). A flat keyword of another branch is
# not ours and stays; of two equal ones one stays (SINGLE).
SEPARATOR = "\x1f"  # between the keywords of a list; no name has it
FILL = """-wm
cg
-XMP-dc:Subject<IPTC:Keywords
-XMP-lr:HierarchicalSubject<IPTC:Keywords
-XMP-lr:HierarchicalSubject<XMP-dc:Subject
-XMP-lr:HierarchicalSubject<${XMP-digiKam:TagsList;tr(/)(|)}
-XMP-digiKam:TagsList<IPTC:Keywords
-XMP-digiKam:TagsList<XMP-dc:Subject
-XMP-digiKam:TagsList<${XMP-lr:HierarchicalSubject;tr(|)(/)}"""
_LEAVES = "map{$_=>1}map{split/[|]/}map{ref?@$_:$_}$self->GetValue('XMP-lr:HierarchicalSubject')"
_LACKING = f"my%h={_LEAVES};$_=join('{SEPARATOR}',grep{{!$h{{$_}}}}split/{SEPARATOR}/)||undef"
NEST = f"-XMP-lr:HierarchicalSubject+<${{XMP-dc:Subject;{_LACKING}}}"
_OURS = f'$_=join"{SEPARATOR}",grep{{m(^{BRANCH}[|/])}}split/{SEPARATOR}/'
_OTHERS = f"my%h=map{{$_=>1}}map{{split/[|]/}}grep{{!m(^{BRANCH}[|])}}split/{SEPARATOR}/"
_FLAT = f'$_=join"{SEPARATOR}",grep{{!$h{{$_}}}}map{{m(^{BRANCH}[|](.*))?$1:()}}split/{SEPARATOR}/'
REPLACE = f"""-XMP-dc:Subject-<${{XMP-lr:HierarchicalSubject;{_OTHERS};{_FLAT}}}
-XMP-lr:HierarchicalSubject-<${{XMP-lr:HierarchicalSubject;{_OURS}}}
-XMP-digiKam:TagsList-<${{XMP-digiKam:TagsList;{_OURS}}}"""
SINGLE = "-XMP-dc:Subject<${XMP-dc:Subject;NoDups(1)}"
# A new sidecar hides the keywords and captions in the image from some programs, so it begins with all of these.
CREATE = "-use\nMWG\n-tagsFromFile\n@\n-mwg:all\n-xmp:all\n-o\n%d%F.xmp"


def keywords(run: Path, out: Path, sorting: Sorting = Sorting(), *, display: Display = Silent()) -> None:
    """Write a table for ``exiftool -csv+=OUT``: a row for each image file in a cluster with a name, and its keywords.

    Beside it are arguments for exiftool, by which no other keyword is lost or hidden, those of an earlier table go, and
    a second time changes nothing: NAME.args writes into the images, NAME-sidecars.args into sidecars beside them.
    Images of junk clusters have no row. ``sorting``: Its ``images`` and ``outliers`` count.

    Raises DataError if no image has a keyword.

    Examples:
        >>> keywords(Path("runs/photos"), Path("keywords.csv"))
        >>> Path("keywords.csv").read_text().count("beach")
        3
    """
    beside = out.with_name(f"{out.stem}-sidecars{out.suffix}")
    for table in (out, beside):
        check_no_file(table)
        check_no_file(table.with_suffix(".args"))
    images = read_run_images(run, sorting.images)
    rows = [target.row for target in plan(images, sorting) if target.place]
    names: dict[str, str] = {}
    for row in rows:
        file = images.original(row["path"])
        if row["name"] and row["cluster"] not in images.junk and file and file.is_file() and "\n" not in str(file):
            names[str(file.absolute())] = row["name"].translate(NESTING)
    if not names:
        raise DataError(f"no image of {run} gets a keyword: name a cluster whose images are files")
    sidecars = {f"{file}.xmp": name for file, name in names.items()}
    create = [file for file in names if not Path(f"{file}.xmp").exists()]
    with ExitStack() as undo:
        for path, content in {**_contents(out, names), **_contents(beside, sidecars, create)}.items():
            new_file(path, methodcaller("write", content.encode(errors="surrogateescape")))
            undo.callback(path.unlink)
        undo.pop_all()  # without a call: all four are written
    rest = len(rows) - len(names)
    why = f"; {plural(rest, 'image')} without one: no name, junk or no file" if rest else ""
    display.say("Exported", f"keywords of {plural(len(names), 'image')} to {out}{why}")
    for heading, table in (("Images", out), ("Sidecars", beside)):
        display.say(heading, f"exiftool -@ {shlex.quote(str(table.with_suffix('.args')))}")


def _contents(table: Path, names: Mapping[str, str], create: Sequence[str] = ()) -> dict[Path, str]:
    """Return a table with the keywords of files, and its arguments. ``create``: Images whose sidecars are new."""
    cells = ((file, name, f"{BRANCH}|{name}", f"{BRANCH}/{name}") for file, name in names.items())
    text = StringIO()
    write_csv(text, COLUMNS, (dict(zip(COLUMNS, row, strict=True)) for row in cells))
    add = f"-csv+={table.absolute()}"
    commands = [(CREATE, create), *((options, names) for options in (FILL, NEST, f"{REPLACE}\n{add}", SINGLE))]
    quiet = f"-q\n-q\n-sep\n{SEPARATOR}"
    lines = ("\n".join((quiet, options, *files)) for options, files in commands if files)
    return {table: text.getvalue(), table.with_suffix(".args"): "\n-execute\n".join(lines)}
