"""The served report, attacked without a browser: nothing gets in, and nothing is lost."""

import errno
import json
import os
import re
import select
import signal
import socket
import socketserver
import time
from datetime import datetime
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import pytest
from PIL import Image

from deepcluster.cli import run_command
from deepcluster.clustering.blocks import nearest
from deepcluster.runs.change import Carried, carry_out
from deepcluster.runs.edits import apply
from deepcluster.runs.serve import MAX_CONNECTIONS
from deepcluster.storage import run_folder
from deepcluster.storage.edits_file import Edits
from deepcluster.storage.state import HIDDEN
from deepcluster.texts import plural
from tests.helpers.runs import contents, record, result, rows, small_fit
from tests.helpers.serving import answer, ask, colour, serving, version

ATTACKS = [  # path behind the token (or whole), body, method, headers, status
    *(("", None, "", {"Host": host}, 403) for host in (None, "evil.example", "127.0.0.1")),
    ("", None, "", {"Host": ["evil.example", "127.0.0.1"]}, 403),
    ("", None, "", {"Origin": "https://evil.example"}, 403),
    *(
        (act, b"{}", "", {"Origin": o}, 403)
        for act in ("undo", "redo", "recut", "teach", "preview")
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


def test_nothing_gets_in(run: Path):
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
        status, text = ask(address, "export", json.dumps({"version": now, "sorting": sorting}).encode())
        assert status == 409, (sorting, text)
    for k in (0, 1, -1, 501, 10**9, 10**400, "3", "auto", True, 3.0, None, [3], {}):
        status, error = answer(address, "recut", now, k=k)
        assert status == 409 and "2 to 500" in error["error"], k
    for steps in (0, -1, 101, 10**400, "1", "all", True, None, [1], 1):  # the run has no change to take back
        assert answer(address, "undo", now, steps=steps)[0] == 409, steps
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
    for action in ("apply", "undo", "export", "recut", "teach", "ask", "preview"):
        status, answered = answer(address, action, old, **({"k": 4} if action == "recut" else {}))
        assert status == 409 and answered["outdated"]
    assert contents(run) == before and not run.with_name("run-sorted").exists()
    old, kept = version(address), result(run)  # of a page that would make a cluster 3 again
    assert answer(address, "apply", old, move=[[0, 3]])[0] == answer(address, "undo", version(address))[0] == 200
    assert result(run) == kept and answer(address, "ask", old)[1]["outdated"]

    def late(path: Path, *change: Any, **options: Any) -> Carried:
        """Change the run as another process that has the lock first."""
        apply(path, Edits(names={0: "theirs"}))
        return carry_out(path, *change, **options)

    monkeypatch.setattr("deepcluster.runs.actions.carry_out", late)
    taught = {"answers": [{"path": 0, "name": "ours"}]}
    status, answered = answer(address, "teach", version(address), taught=taught)
    assert status == 409 and answered["outdated"]
    assert {row["name"] for row in rows(run / "clusters.csv")} == {"theirs", ""}


def test_every_change_has_a_preview_and_a_step_back_can_be_made_again(run: Path):
    address = serving(run)

    def state() -> dict[str, Any]:
        found = re.search(r'"served":(\{.*?\}),"', ask(address)[1])
        assert found
        return json.loads(found[1])

    changes: list[tuple[str, dict[str, Any]]] = [
        ("apply", {"edits": {"schema_version": 1, "merge": [[0, 1]], "names": {"0": "both"}}}),
        ("teach", {"taught": {"answers": [{"path": 0, "name": "new"}]}}),
        ("recut", {"k": 4}),
        ("undo", {"steps": 2}),
        ("redo", {"steps": 2}),
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
        table = [row for row in rows(run / "clusters.csv") if row["status"] == "ok"]
        assert [row["cluster"] for row in table] == [str(number) for number in seen["after"]]
        assert {row["name"] for row in table} == {seen["names"][number] for number in seen["after"]}
        if action in ("apply", "teach", "recut"):
            said, _, moved, at = state()["done"][0]
            assert plural(seen["changed"], "image") + " moved" in (said, moved) and datetime.fromisoformat(at)
        if action == "undo" and words:
            assert [len(state()[name]) for name in ("done", "undone")] == [1, 2]
            assert state()["undone"][0][0] == "1 answer"
    assert [len(state()[name]) for name in ("done", "undone")] == [3, 0]
    for change in ("export", "preview", "", None, ["undo"], "redo"):  # the last has nothing to make again
        assert answer(address, "preview", version(address), change=change)[0] == 409


def test_an_answer_has_the_state_of_the_page_and_pictures_are_drawn_at_the_next_load(
    run: Path, monkeypatch: pytest.MonkeyPatch
):
    """A name changes neither the clusters nor a picture; a change decodes nothing, because the page may stay open. Nor
    does a change compare all images with all: only an update has other features."""
    address = serving(run)
    cut = result(run)["cut"]
    now = version(address)  # loads the page
    (run / "tiles.json").unlink()
    compared: list[int] = []
    monkeypatch.setattr("deepcluster.runs.page.nearest", lambda rows, k: compared.append(len(rows)) or nearest(rows, k))
    status, named = answer(address, "apply", now, names={"1": "<owl>"})
    state = named["state"]
    assert status == 200 and [one["name"] for one in state["clusters"]] == ["", "<owl>", ""]
    status, taught = answer(address, "teach", state["version"], taught={"answers": [{"path": 0, "name": "new"}]})
    assert status == 200 and "new" in [one["name"] for one in taught["state"]["clusters"]]
    assert taught["state"]["answers"] == 1 and taught["state"]["cut"] != state["cut"] == cut
    assert compared == [3, 4]  # centres of the clusters
    with run_folder.locked(run):  # as another process
        assert ask(address)[0] == 200
    assert not (run / "tiles.json").exists()
    assert ask(address)[0] == 200
    assert (run / "tiles.json").exists()


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
    old = version(address)
    assert colour(address, old, 0) == "red"
    assert run_command(["fit", str(tmp_path / "blue"), *options, "--overwrite"]) == 0
    status, text = ask(address, f"image/{old}/0")
    assert status == 409 and json.loads(text)["outdated"]
    assert colour(address, version(address), 0) == "blue"
    assert run_command(["update", str(run), str(tmp_path / "green")]) == 0
    now = version(address)
    assert [colour(address, now, row) for row in (11, 12, 23)] == ["blue", "green", "green"]
    status, text = ask(address, f"image/{now}/24")
    assert status == 409 and not json.loads(text)["outdated"]


def connected(address: str) -> socket.socket:
    parts = urlsplit(address)
    return socket.create_connection((parts.hostname, parts.port), timeout=60)


def is_open(connection: socket.socket, seconds: float = 0.0) -> bool:
    """Whether nothing comes from a server within so many seconds, not even the end."""
    return not select.select([connection], [], [], seconds)[0]


def test_connections_without_a_request_make_room(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deepcluster.runs.serve.REQUEST_SECONDS", 600.0)  # none is closed because it is late
    address, more = serving(run), 8
    idle = [connected(address) for _ in range(MAX_CONNECTIONS + more)]
    assert ask(address)[0] == 200
    assert not any(is_open(connection, 60) for connection in idle[:more])
    assert all(is_open(connection) for connection in idle[more + 1 :])
    for connection in idle:
        connection.close()


def test_a_request_has_one_deadline_however_its_bytes_come(run: Path, monkeypatch: pytest.MonkeyPatch):
    address = serving(run)
    monkeypatch.setattr("deepcluster.runs.serve.REQUEST_SECONDS", 0.5)
    parts = urlsplit(address)
    head = f"POST {parts.path}undo HTTP/1.1\r\nHost: {parts.netloc}\r\nOrigin: http://{parts.netloc}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    slow = [connected(address) for _ in range(2)]
    slow[1].sendall(head.encode())
    begin, late = time.monotonic(), set(slow)
    while late and time.monotonic() - begin < 60:
        for connection in [*late]:
            try:
                connection.sendall(b"G")
            except ConnectionError:
                late.discard(connection)
        late = {connection for connection in late if is_open(connection, 0.05)}
    assert not late
    monkeypatch.undo()
    assert ask(address)[0] == 200


def test_it_waits_for_a_file_that_another_connection_needs(run: Path, monkeypatch: pytest.MonkeyPatch):
    address, tries = serving(run), []

    def none_left(server: object) -> NoReturn:
        tries.append(server)
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(socketserver.TCPServer, "get_request", none_left)
        begin = time.monotonic()
        waiting = connected(address)
        while len(tries) < 3 and time.monotonic() - begin < 60:
            time.sleep(0.05)
        assert 3 <= len(tries) <= 2 + 10 * (time.monotonic() - begin)  # it does not spin
    assert ask(address)[0] == 200
    waiting.close()


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
            (run / "tiles.json").unlink()
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
    assert "1 name" in said and (run / "tiles.json").exists()
    assert address.startswith("http://127.0.0.1:") and "<!DOCTYPE html>" in page
    assert not pages[0].parent.exists() and not left.exists()
    with pytest.raises(ConnectionError):
        ask(address)
    # A second one ends the process, and the servers of other tests hear of the first one, end and draw, too.
    once = iter([signal.SIGINT])

    def ctrl_c(data: object) -> str:
        for number in once:
            signal.raise_signal(number)
        return "a page"

    monkeypatch.setattr("deepcluster.runs.page.render", ctrl_c)
    assert run_command(["report", str(run), "--serve"]) == 0  # before it serves
    assert "ERROR" not in (run / "log.txt").read_text()[before:]
