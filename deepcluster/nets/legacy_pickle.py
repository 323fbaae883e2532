"""Checkpoints that Python 2 wrote, translated into opcodes that torch still reads without executing anything.

Before its zip archives (1.6) ``torch.save`` wrote five pickles, then the numbers. Python 2 used two opcodes that
torch's weights-only reader does not know (2.13): one for whole numbers beyond 32 bits, by which the optimizer of every
such checkpoint names its parameters, and one for strings of more than 255 bytes.
"""

import io
import pickletools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from deepcluster.runtime.spliced import Spliced

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first pickle: a number, protocol 2
PICKLES = 5  # this number, the version, the machine, the content, and the names of the storages
MAX_PICKLES = 1 << 24  # bytes of all five; an AlexNet's take 20,000


@contextmanager
def readable(path: Path) -> Iterator[Path | BinaryIO]:
    """``path``, or if Python 2 wrote it, a stream with the same content in today's opcodes. Nothing is unpickled."""
    with path.open("rb") as file:
        head = file.read(MAX_PICKLES)
        pickles, end = _translated(head) if head.startswith(MAGIC) else (head, len(head))
        if pickles == head[:end]:
            yield path
        else:
            yield io.BufferedReader(Spliced(pickles, file, end, path.stat().st_size))


def _translated(head: bytes) -> tuple[bytes, int]:
    """The pickles at the start of a file in today's opcodes, and where they end. Unchanged if they cannot be parsed."""
    pickles, stream = bytearray(), io.BytesIO(head)
    try:
        for _ in range(PICKLES):
            for opcode, value, position in pickletools.genops(stream):
                pickles += _modern(opcode.name, value) or head[position : stream.tell()]
    except ValueError:  # torch will say what is wrong with it
        return head, len(head)
    return bytes(pickles), stream.tell()


def _modern(name: str, value: Any) -> bytes:
    """Today's form of one of the two old opcodes; empty for all others."""
    if name == "INT":
        number = int(value)
        length = number.bit_length() // 8 + 1
        if length > 255:
            raise ValueError("not a number of a checkpoint")
        return b"\x8a" + bytes([length]) + number.to_bytes(length, "little", signed=True)
    if name in ("BINSTRING", "SHORT_BINSTRING"):  # pickletools has read its bytes as latin-1
        text = str(value).encode()
        return b"X" + len(text).to_bytes(4, "little") + text
    return b""
