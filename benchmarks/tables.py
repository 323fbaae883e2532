"""Write the tables of README.md and docs/results.md from results/*.json, and the columns in docs/run-folder.md.

Type `python benchmarks/tables.py` after a change of a result, or of COLUMNS in deepcluster/storage/content.py.

`python benchmarks/tables.py FILE BY COLUMN ...` prints one, such as `ablation setting linear change nmi`.

A table stands between `<!-- table FILE | BY | COLUMN | ... -->` and `<!-- end -->`. Its rows are mean and standard
deviation of the objects that have the first column, for each value of BY; `name` is an object's path in the file,
FILE~WORDS keeps the rows whose BY matches, and COLUMN: TITLE has a title of its own. A COLUMN of another file is named
as in `figure`, with * for the row's BY as far as its first comma.
"""

import json
import re
import sys
from pathlib import Path
from statistics import mean, stdev

from deepcluster.storage.content import COLUMNS

HERE = Path(__file__).parent


def objects(value, path=""):
    if isinstance(value, dict):
        yield {"name": path.removeprefix(", ")} | value
    for key, part in value.items() if isinstance(value, dict) else (("", part) for part in value):
        if isinstance(part, dict | list):
            yield from objects(part, f"{path}, {key}" if key else path)


def cell(values):
    if len(values) == 1 and isinstance(values[0], int):
        return f"{values[0]:,}"
    digits = 3 if max(values, default=0) < 2 else 0 if max(values) >= 100 else 1
    numbers = [mean(values), stdev(values)] if len(values) > 1 else values
    return " ± ".join(re.sub(r"^(-?)0\.", r"\1.", f"{number:,.{digits}f}") for number in numbers)


def known(runs, name):
    return [run[name] for run in runs if run.get(name) is not None]


def table(file, by, *columns):
    file, _, only = file.partition("~")
    titles = [column.partition(": ")[2] or column.replace("_", " ") for column in columns]
    lines = [f"| {by} | runs | {' | '.join(titles)} |", "|---" * (len(columns) + 2) + "|"]
    columns = [column.partition(": ")[0] for column in columns]
    rows = [row for row in objects(json.loads((HERE / f"results/{file}.json").read_text())) if columns[0] in row]
    for group in dict.fromkeys(row[by] for row in rows if re.search(only, str(row[by]))):
        runs = [row for row in rows if row[by] == group]
        names = [name.replace("*", str(group).split(",")[0]) for name in columns]
        cells = [cell([figure(name)] if "~" in name else known(runs, name)) for name in names]
        lines.append(f"| {group} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(name):
    """Return the mean of a column: FILE.COLUMN, or FILE~WORDS.COLUMN of the objects with these words, as `seed 0`."""
    path, _, column = name.rpartition(".")
    file, _, only = path.partition("~")
    rows = objects(json.loads((HERE / f"results/{file}.json").read_text()))
    return mean(row[column] for row in rows if column in row and only in re.sub("[':,]", "", str(row)))


def columns():
    """Return the table of the columns of clusters.csv."""
    types = {str: "text", int: "whole number", float: "number", bool: "0 or 1"}
    lines = ["| column of `clusters.csv` | type | content |", "|---|---|---|"]
    for column in COLUMNS:
        lines.append(f"| `{column.name}` | {types[column.type]} | {column.meaning} |")
    return "\n".join(lines)


def written(page):
    spec = re.compile(r"(<!-- (table|columns) ?(.*?) ?-->\n).*?(?=<!-- end)", re.DOTALL)
    makers = {"table": table, "columns": columns}
    return spec.sub(lambda match: f"{match[1]}{makers[match[2]](*filter(None, match[3].split(' | ')))}\n", page)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(table(*sys.argv[1:]))
        sys.exit()
    for page in (HERE.parent / name for name in ("README.md", "docs/results.md", "docs/run-folder.md")):
        page.write_text(written(page.read_text()))
