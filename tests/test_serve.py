"""The served report, attacked without a browser: nothing gets in, and nothing is lost."""

import os
import shutil
import signal
from pathlib import Path
from threading import Thread

import pytest

from deepcluster.cli import run_command
from deepcluster.runs.recut import apply
from deepcluster.runs.serve import serve
from deepcluster.storage import run_folder as files
from deepcluster.storage.edits_file import Edits
from tests.helpers.runs import contents, record, rows
from tests.helpers.serving import act, ask, serving, version

ATTACKS = [  # path behind the token (or whole), body, method, headers, status
    *(("", None, "", {"Host": host}, 403) for host in (None, "evil.example", "127.0.0.1")),
    ("", None, "", {"Host": ["evil.example", "127.0.0.1"]}, 403),
    ("", None, "", {"Origin": "https://evil.example"}, 403),
    *(("undo", b"{}", "", {"Origin": origin}, 403) for origin in ("https://evil.example", "null", None)),
    *(("undo", b"{}", "", {"Content-Type": kind}, 403) for kind in ("text/plain", None)),
    *(("undo", b"", "", {"Content-Length": length}, 403) for length in (str(5 << 20), "-1")),
    ("undo", b"", "", {"Content-Length": None, "Transfer-Encoding": "chunked"}, 403),
    ("undo", b"{}", "", {"Host": "evil.example"}, 403),
    *(("undo", body, "", {}, 409) for body in (b"version=1", b"[" * 100_000, b"[]", b"\xff")),
    *(("undo", body, "", {}, 409) for body in (b"{}", b'{"version": ["x"]}')),
    ("export", b'{"out": "/tmp/elsewhere"}', "", {}, 409),
    *((path, b"{}", "", {}, 403) for path in ("remove", "/x/apply", "image/-1")),
    *((path, None, "", {}, 403) for path in ("/", "/report.html", "/x/", "run.json", "image/-1", "image//etc/passwd")),
    *((path, None, "", {}, 403) for path in ("image/../../run.json", "image/%2e%2e%2frun.json")),
    ("image/999999999", None, "", {}, 409),
    ("undo", b"{}", "PUT", {}, 501),
    ("undo", None, "OPTIONS", {"Origin": "https://evil.example"}, 501),
]


def test_nothing_gets_in(run: Path):
    address, before, beside = serving(run), contents(run), sorted(run.parent.iterdir())
    for path, body, method, headers, status in ATTACKS:
        answered, text = ask(address, path, body, method=method, headers=headers)
        assert answered == status, (path, body, headers, text)
        assert "root:" not in text and "schema_version" not in text
    now = version(address)
    for edits in ({"names": {"99": "x"}}, {"move": [["/etc/passwd", 0]]}, {"out": "/tmp/x"}, {"cut": "another"}):
        assert act(address, "apply", now, **edits)[0] == 409
    assert contents(run) == before and sorted(run.parent.iterdir()) == beside


def test_edits_undo_and_sorting_are_those_of_the_commands(run: Path):
    by_hand = Path(shutil.copytree(run, run.with_name("by-hand")))
    cut = str(record(run)["cut"])
    address, before = serving(run), rows(run / "clusters.csv")
    status, said = act(address, "apply", version(address), cut=cut, names={"0": "hills"}, move=[[0, 3]], junk=[1])
    assert status == 200 and "1 name, 1 image moved, 1 junk mark changed" in said
    apply(by_hand, Edits(cut, {0: "hills"}, move=((0, 3),), junk=(1,)))
    for name in ("clusters.csv", "cluster_summary.csv", "model/groups.safetensors"):
        assert (run / name).read_bytes() == (by_hand / name).read_bytes(), name

    status, said = act(address, "export", version(address))
    assert status == 200 and "48 images" in said
    sorted_images = run.with_name("run-sorted")
    folder = {row["path"]: Path(row["exported_path"]).parts[0] for row in rows(sorted_images / "inventory.csv")}
    assert folder[before[0]["path"]] == "003" and {"000-hills", "_junk"} < {*folder.values()}

    assert act(address, "undo", version(address))[0] == 200
    assert rows(run / "clusters.csv") == before
    assert act(address, "export", version(address))[0] == 200
    assert {path.name for path in sorted_images.iterdir()} == {"000", "001", "002", "inventory.csv"}
    assert act(address, "undo", version(address))[0] == 409


def test_a_tab_of_an_older_state_changes_nothing(run: Path):
    """Names and marks keep the cut, and a page sends all marks: an older page would remove the newer ones."""
    address = serving(run)
    old = version(address)
    with files.locked(run):
        status, said = act(address, "apply", old, junk=[1])
        assert status == 409 and f"is in use by process {os.getpid()}" in said
    assert act(address, "apply", old, junk=[1])[0] == 200
    before = contents(run)
    for action in ("apply", "undo", "export"):
        status, said = act(address, action, old)
        assert status == 409 and "reload the page" in said
    assert contents(run) == before and not run.with_name("run-sorted").exists()


def test_ctrl_c_is_the_usual_end(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    seen: list[str] = []

    def opened(address: str) -> bool:
        def come() -> None:
            seen.append(ask(address)[1])
            os.kill(os.getpid(), signal.SIGINT)

        seen.append(address)
        Thread(target=come).start()
        return True

    monkeypatch.setattr("webbrowser.open", opened)
    assert run_command(["report", str(run), "--serve", "--open"]) == 0
    address, page = seen
    assert address.startswith("http://127.0.0.1:") and "<!DOCTYPE html>" in page
    with pytest.raises(ConnectionError):
        ask(address)
    monkeypatch.setattr("deepcluster.runs.page.render", lambda data: signal.raise_signal(signal.SIGINT) or "a page")
    assert run_command(["report", str(run), "--serve"]) == 0  # before it serves
    assert "ERROR" not in (run / "log.txt").read_text()


def test_it_ends_when_nobody_asks(run: Path):
    addresses: list[str] = []
    serve(run, print, addresses.append, idle_seconds=0.1)
    with pytest.raises(ConnectionError):
        ask(addresses[0])
