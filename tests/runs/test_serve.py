"""The served report, attacked without a browser: nothing gets in, and nothing is lost."""

import io
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import pytest
from PIL import Image

from deepcluster.clustering.blocks import nearest
from deepcluster.commands.cli import run_command
from deepcluster.export import folders
from deepcluster.export.read_back import by_folder
from deepcluster.images import Source
from deepcluster.runs.apply import apply
from deepcluster.runs.change import undo
from deepcluster.runs.recut import by_number, recut
from deepcluster.runs.run import read_run
from deepcluster.runs.serve import _Server, page_version
from deepcluster.runs.views import report
from deepcluster.storage import run_folder
from deepcluster.storage.content import CLUSTERS
from deepcluster.storage.edits_file import Edits
from deepcluster.storage.lock import HIDDEN
from deepcluster.storage.run_folder import RunFolder
from deepcluster.texts import plural
from tests.helpers.runs import contents, record, result, rows, small_fit
from tests.helpers.serving import answer, ask, colour, pictures_of, serving, version

ATTACKS = [  # path behind the token (or whole), body, method, headers, status
    *(("", None, "", {"Host": host}, 403) for host in (None, "evil.example", "127.0.0.1")),
    ("", None, "", {"Host": ["evil.example", "127.0.0.1"]}, 403),
    ("", None, "", {"Origin": "https://evil.example"}, 403),
    *(
        (act, b"{}", "", {"Origin": o}, 403)
        for act in ("undo", "redo", "recut", "teach", "preview", "read", "open")
        for o in ("https://evil.example", "null", None)
    ),
    *((act, b"{}", "", {"Content-Type": kind}, 403) for act in ("undo", "recut") for kind in ("text/plain", None)),
    *((act, None, "", {}, 403) for act in ("undo", "recut", "recut/3", "recut?k=3", "teach", "ask", "preview")),
    *((act, b'{"taught": {}}', "", {}, 409) for act in ("teach", "ask", "preview")),
    *(("recut", body, "", {}, 409) for body in (b"{}", b'{"k": 3}', b'{"version": null, "k": 3}')),
    *(("undo", b"", "", {"Content-Length": length}, 403) for length in (str(5 << 20), "-1")),
    ("undo", b"", "", {"Content-Length": None, "Transfer-Encoding": "chunked"}, 403),
    ("undo", b"{}", "", {"Host": "evil.example"}, 403),
    *(("undo", body, "", {}, 409) for body in (b"version=1", b"[" * 100_000, b"[]", b"\xff")),
    *(("undo", body, "", {}, 409) for body in (b"{}", b'{"version": ["x"]}')),
    ("export", b'{"out": "/tmp/elsewhere"}', "", {}, 409),
    *((path, b"{}", "", {}, 403) for path in ("remove", "/x/apply", "image/-1", "version")),
    *((path, None, "", {}, 403) for path in ("/", "/report.html", "/x/", "run.json", "image/-1", "image//etc/passwd")),
    *((path, None, "", {}, 403) for path in ("image/../../run.json", "image/%2e%2e%2frun.json")),
    ("image/0", None, "", {}, 403),
    *((f"image/{place}", None, "", {}, 409) for place in ("0/0", "x/999999999", "/0")),
    ("undo", b"{}", "PUT", {}, 501),
    ("undo", None, "OPTIONS", {"Origin": "https://evil.example"}, 501),
]


def test_nothing_gets_in(run: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    address, before, beside = serving(run), contents(run), sorted(run.parent.iterdir())
    for path, body, method, headers, status in ATTACKS:
        answered, text = ask(address, path, body, method=method, headers=headers)
        assert answered == status, (path, body, headers, text)
        assert "root:" not in text and "schema_version" not in text
    now = version(address)
    for edits in ({"names": {"99": "x"}}, {"move": [["/etc/passwd", 0]]}, {"out": "/tmp/x"}, {"cut": "another"}):
        assert answer(address, "apply", now, **edits)[0] == 409
    for sorting in [
        *(
            {"name": name}
            for name in ("", ".", "..", "../x", "/tmp/x", "a/b", "a\\b", ".x", "a.", "x" * 101, "a\nb", 5)
        ),
        *({"name": "x", "place": place} for place in ("elsewhere", "/tmp", "", None)),
        *({"name": "x", key: value} for key, value in (("mode", "move"), ("mode", None), ("duplicates", 1))),
        *({"name": "x", key: value} for key, value in (("images", "/tmp"), ("out", "/tmp/x"), ("layout", "dataset"))),
        *({"name": name} for name in (run.name, "x/../y")),
        *({"name": Path(record(run)["base"]).name, "place": "images"}, [], "x", {}),
    ]:
        for action in ("export", "read", "open"):
            status, text = ask(address, action, json.dumps({"version": now, "sorting": sorting}).encode())
            assert status == 409, (action, sorting, text)
    for action in ("read", "open"):  # where nothing was sorted
        assert "sort into it first" in answer(address, action, now, sorting={"name": "elsewhere"})[1]["error"]
    assert not opened
    for k in (0, 1, -1, 501, 10**9, 10**400, "3", "auto", True, 3.0, None, [3], {}):
        status, error = answer(address, "recut", now, k=k)
        assert status == 409 and "2 to 500" in error["error"], k
    for changes in (0, -1, 101, 10**400, "1", "all", True, None, [1], 1):  # the run has no change to take back
        assert answer(address, "undo", now, changes=changes)[0] == 409, changes
    one = {"path": 0, "cluster": 0}
    for taught in (
        *({"answers": [one | wrong]} for wrong in ({"path": -1}, {"path": 10**9}, {"path": "/etc/passwd"}, {"x": 1})),
        *(
            {"answers": [one | wrong]}
            for wrong in ({"cluster": -1}, {"cluster": 99}, {"cluster": "1"}, {"by": "guess"})
        ),
        *({"answers": [{"path": 0, "name": name}]} for name in ("a\nb", "x" * 201, 5)),
        *({"answers": answers} for answers in ([one, one], [one, {"path": 1}] * 2, one, None)),
        *({"out": "/tmp/x"}, [], None),
    ):
        assert [answer(address, act, now, taught=taught)[0] for act in ("teach", "preview")] == [409, 409], taught
    for n in (0, -1, 1001, "3", 10**400):
        assert answer(address, "ask", now, taught={"n": n})[0] == 409
    for words in (
        *({"clusters": numbers, "order": "near"} for numbers in (0, "0", None, ["0"], [0.5], [None])),
        *({"clusters": [0], "order": order} for order in ("x", None, ["near"])),
    ):
        assert answer(address, "list", now, **words)[0] == 409, words
    for rows_asked in ([-1], [10**9], ["0"], [None], "0", 0, {}, [0] * 201):
        assert [answer(address, name, now, rows=rows_asked)[0] for name in ("facts", "alike")] == [409, 409], rows_asked
    assert answer(address, "recut", now, k=49)[0] == 409
    assert answer(address, "recut", now)[0] == 409
    with urlopen(address) as page:  # and no page may frame it
        assert page.headers["Content-Security-Policy"].endswith("; frame-ancestors 'none'")
        assert b"frame-ancestors" not in page.read()  # browsers ignore it there, and complain
    assert contents(run) == before and sorted(run.parent.iterdir()) == beside


def test_a_tab_of_an_older_state_changes_nothing(run: Path, monkeypatch: pytest.MonkeyPatch):
    """Names and marks keep the cut, and a page sends all marks: an older page would remove the newer ones."""
    address = serving(run)
    old = version(address)
    with run_folder.locked(run):
        for action, words in (("apply", {"junk": [1]}), ("recut", {"k": 4})):
            status, answered = answer(address, action, old, **words)
            assert status == 409 and str(os.getpid()) in answered["error"]
    assert answer(address, "apply", old, junk=[1])[0] == 200
    before = contents(run)
    for action in ("apply", "undo", "export", "recut", "teach", "ask", "preview", "read", "open"):
        status, answered = answer(address, action, old, **({"k": 4} if action == "recut" else {}))
        assert status == 409 and "reload the page" in answered["error"]
    assert contents(run) == before and not run.with_name("run-sorted").exists()
    old, facts = version(address), result(run)  # of a page that would make a cluster 3 again
    assert answer(address, "apply", old, move=[[0, 3]])[0] == answer(address, "undo", version(address))[0] == 200
    assert result(run) == facts and "reload the page" in answer(address, "ask", old)[1]["error"]

    @contextmanager
    def late(path: Path) -> Iterator[run_folder.LockedFolder]:
        """Lock the run after another process has changed it."""
        monkeypatch.undo()
        apply(path, Edits(names={0: "theirs"}))
        with run_folder.locked(path) as folder:
            yield folder

    monkeypatch.setattr("deepcluster.runs.serve.run_folder.locked", late)
    taught = {"answers": [{"path": 0, "name": "ours"}]}
    status, answered = answer(address, "teach", version(address), taught=taught)
    assert status == 409 and "reload the page" in answered["error"]
    assert {row["name"] for row in rows(run / "clusters.csv")} == {"theirs", ""}


def test_every_change_has_a_preview_and_a_step_back_can_be_made_again(run: Path):
    address = serving(run)

    def state() -> dict[str, Any]:
        data = re.search(r'id="data">(.*?)</script>', ask(address)[1])
        assert data
        return json.loads(data[1])["served"]

    changes: list[tuple[str, dict[str, Any]]] = [
        ("apply", {"edits": {"schema_version": 1, "merge": [[0, 1]], "names": {"0": "both"}}}),
        ("teach", {"taught": {"answers": [{"path": 0, "name": "new"}]}}),
        ("recut", {"k": 4}),
        ("undo", {"changes": 2}),
        ("redo", {"changes": 2}),
        ("undo", {}),
        ("redo", {}),
    ]
    for action, words in changes:
        now = version(address)
        before = contents(run)
        status, seen = answer(address, "preview", now, change=action, **words)
        assert status == 200 and contents(run) == before
        status, text = ask(address, action, json.dumps({"version": now, **words}).encode())
        assert status == 200 and "said" in json.loads(text), text
        with _Server(run, folders, by_folder) as fresh:  # which reads the run
            assert json.loads(text)["page"] == ask(address)[1] == fresh.page()[1].decode()
        if action in ("apply", "teach", "recut"):
            said, _, moved, at = state()["done"][0]
            assert plural(seen["changed"], "image") + " moved" in (said, moved) and datetime.fromisoformat(at)
        if action == "undo" and words:
            assert [len(state()[name]) for name in ("done", "undone")] == [1, 2]
            assert state()["undone"][0][0] == "1 answer"
    assert [len(state()[name]) for name in ("done", "undone")] == [3, 0]
    for change in ("export", "preview", "", None, ["undo"], "redo"):  # the last has nothing to make again
        assert answer(address, "preview", version(address), change=change)[0] == 409


def test_a_change_after_its_preview_is_not_computed_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recut(alone := Path(shutil.copytree(run, tmp_path / "alone")), 3)
    numbers: list[int] = []
    monkeypatch.setattr(
        "deepcluster.runs.actions.by_number", lambda k, *others: numbers.append(k) or by_number(k, *others)
    )
    with _Server(run, folders, by_folder) as server:
        now = {"version": page_version(RunFolder(run))}
        for k in (4, 3):
            server.act("preview", {**now, "change": "recut", "k": k})
        server.act("recut", {**now, "k": 3})
        server.act("recut", {"version": page_version(RunFolder(run)), "k": 3})  # of another version
    assert numbers == [4, 3, 3]
    undo(run)
    assert read_run(RunFolder(run)).clusters.tolist() == read_run(RunFolder(alone)).clusters.tolist()


def test_a_change_writes_the_clusters_alone_until_the_server_rests(run: Path, monkeypatch: pytest.MonkeyPatch):
    """The answer needs no picture, and no comparison of all images with all: only an update has other features."""
    compared: list[int] = []
    decoded: list[str] = []
    read = Source.read
    monkeypatch.setattr(
        Source, "read", lambda source, i, size: decoded.append(source.paths[i]) or read(source, i, size)
    )
    monkeypatch.setattr("deepcluster.runs.page.nearest", lambda rows, k: compared.append(len(rows)) or nearest(rows, k))
    report(run)
    with _Server(run, folders, by_folder) as server:
        before, decoded[:] = contents(run), []
        now = {"version": page_version(RunFolder(run))}
        edits = {"schema_version": 1, "names": {"1": "<owl>"}}
        page = json.loads(server.act("apply", {**now, "edits": edits})[1])["page"]
        after = contents(run)
        assert {name for name in after if after[name] != before.get(name)} == {CLUSTERS, "former/000000.safetensors"}
        assert "\\u003cowl" in page and 'src="thumb/' in page and not decoded
        assert {*compared} == {3}  # centres of the clusters
        with run_folder.locked(run):  # as another process
            server.draw()
        assert not run_folder.are_current(RunFolder(run))
        server.draw()
        assert run_folder.are_current(RunFolder(run)) and decoded and "owl" in (run / "report.html").read_text()
        decoded.clear()
        server.draw()
        assert not decoded
    rested = Event()
    monkeypatch.setattr("deepcluster.runs.serve.REST_SECONDS", 0.0)
    monkeypatch.setattr(_Server, "draw", lambda _: rested.set())
    serving(run)
    assert rested.wait(60)


def test_images_belong_to_the_version_of_the_page(tmp_path: Path):
    """Another process replaces the run, and adds images: no page shows images of the run before."""
    for name, pixel in {"red": (200, 0, 0), "blue": (0, 0, 200), "green": (0, 200, 0)}.items():
        (tmp_path / name).mkdir()
        for i in range(12):
            Image.new("RGB", (24, 24), tuple(value and value + i for value in pixel)).save(tmp_path / name / f"{i}.png")
    run = tmp_path / "run"
    options = [*small_fit("-k", "2", "--rounds", "0", "--pseudo-labels", "2"), "-o", str(run)]
    assert run_command(["fit", str(tmp_path / "red"), *options]) == 0
    address = serving(run)
    old = pictures_of(address)
    assert colour(address, old, 0) == "red"
    assert run_command(["fit", str(tmp_path / "blue"), *options, "--overwrite"]) == 0
    status, text = ask(address, f"image/{old}/0")
    assert status == 409 and "reload" in json.loads(text)["error"]
    assert colour(address, pictures_of(address), 0) == "blue"
    assert run_command(["update", str(run), str(tmp_path / "green")]) == 0
    now = pictures_of(address)
    with urlopen(f"{address}thumb/{now}/11") as small:
        assert small.headers["Cache-Control"].endswith("immutable")  # its address has a version
        assert Image.open(io.BytesIO(small.read())).size == (24, 24)
    with urlopen(f"{address}image/{now}/11") as large:
        assert large.headers["Cache-Control"] == "no-store"
    assert [colour(address, now, row) for row in (11, 12, 23)] == ["blue", "green", "green"]
    status, text = ask(address, f"image/{now}/24")
    assert status == 409 and "not found" in json.loads(text)["error"]


def test_ctrl_c_is_the_usual_end(run: Path, monkeypatch: pytest.MonkeyPatch):
    """The browser's command line, which every user of the machine can read, has a file that only this user can. A slow
    browser finds it after a change, too. The end draws the page of the last change."""
    seen: list[str] = []
    pages: list[Path] = []
    before = len((run / "log.txt").read_text())

    def opened(page: str) -> bool:
        def come() -> None:
            seen.append(ask(seen[0])[1])
            now = version(seen[0])
            seen.append(answer(seen[0], "apply", now, names={"1": "owl"})[1]["said"] * pages[0].exists())
            os.kill(os.getpid(), signal.SIGINT)

        pages.append(Path(unquote(urlsplit(page).path)))
        modes = [path.stat().st_mode & 0o777 for path in (pages[0], pages[0].parent)]
        assert page.startswith("file:") and modes == [0o600, 0o700]
        seen.extend(re.findall(r'url=(.*)"', pages[0].read_text()))
        Thread(target=come).start()
        return True

    monkeypatch.setattr("webbrowser.open", opened)
    left = run / HIDDEN / "open-x"  # by a killed process
    left.mkdir(parents=True)
    assert run_command(["report", str(run), "--serve", "--open"]) == 0
    address, page, said = seen
    assert "1 name" in said and "owl" in (run / "report.html").read_text()
    assert address.startswith("http://127.0.0.1:") and "<!DOCTYPE html>" in page
    assert not pages[0].parent.exists() and not left.exists()
    with pytest.raises(ConnectionError):
        ask(address)
    # Servers of earlier tests end in threads of their own, and draw their pages.
    stop = lambda: current_thread() is main_thread() and signal.raise_signal(signal.SIGINT)  # noqa: E731
    monkeypatch.setattr("deepcluster.runs.page.render", lambda data: stop() or "a page")
    assert run_command(["report", str(run), "--serve"]) == 0  # before it serves
    assert "ERROR" not in (run / "log.txt").read_text()[before:]
