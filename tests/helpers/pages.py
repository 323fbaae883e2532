"""The pages of the documentation, and what is fenced in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRANSLATED = ROOT / "README.zh-CN.md"
TRANSLATIONS = (TRANSLATED, ROOT / "docs/zh/photographs.md", ROOT / "docs/zh/questions.md", ROOT / "docs/zh/teach.md")
PAGES = [
    *(ROOT / name for name in ("README.md", TRANSLATED.name, "CONTRIBUTING.md", "SECURITY.md")),
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
]
FENCE = re.compile(r"^( *)```(\S+)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, and its text without what the fence is indented by."""

    language: str
    text: str

    def lines(self) -> list[str]:
        """Its commands: lines that are neither empty nor a comment, continued ones joined."""
        lines = map(str.strip, self.text.replace("\\\n", " ").splitlines())
        return [line for line in lines if line and not line.startswith("#")]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    return FENCE.sub("", text_of(page))


def blocks(page: Path) -> list[Block]:
    return [
        Block(fenced[2], re.sub(rf"^{fenced[1]}", "", fenced[3], flags=re.MULTILINE))
        for fenced in FENCE.finditer(text_of(page))
    ]


def pages_with(*languages: str) -> list[Path]:
    return [page for page in PAGES if any(block.language in languages for block in blocks(page))]


def commands(page: Path) -> list[str]:
    return [line for block in blocks(page) if block.language == "console" for line in block.lines()]


def words_of(line: str) -> list[str]:
    """The words of a command, without its comment and the variables in front."""
    words = shlex.split(line, comments=True)
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return words


def of_deepcluster(line: str) -> list[str] | None:
    """The arguments of the last command of a line, where it is ours."""
    words = words_of(line.rpartition("| ")[2])
    return words[1:] if words[0] == "deepcluster" else None
