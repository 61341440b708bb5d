"""Nothing is written through what somebody has put into a folder."""

import os
import stat
import threading

import pytest

from marginlab import files

WRITES = {
    "append": lambda path: files.append(path, "more\n"),
    "lock": lambda path: files.Lock(path).take(),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("kind", ["a link", "a link to nothing", "a pipe", "a folder"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, write, kind):
    victim, path = tmp_path / "victim", tmp_path / "name"
    victim.write_text("precious")
    match kind:
        case "a link":
            path.symlink_to(victim)
        case "a link to nothing":
            path.symlink_to(tmp_path / "absent")
        case "a pipe":
            os.mkfifo(path)
        case "a folder":
            path.mkdir()
    said = []

    def attempt():
        try:
            write(path)
        except OSError as error:
            said.append(str(error))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(10)
    assert len(said) == 1
    assert str(path) in said[0]
    assert kind == "a folder" or f"it is {kind[:6]}" in said[0]
    assert victim.read_text() == "precious"
    assert not (tmp_path / "absent").exists()


def test_a_file_is_added_to_and_a_lock_keeps_what_it_holds(tmp_path):
    path = tmp_path / "name"
    for _ in range(2):
        WRITES["append"](path)
    WRITES["lock"](path)
    assert path.read_text() == "more\nmore\n"


def test_a_link_in_the_place_of_a_file_is_replaced(tmp_path):
    victim, path, beside = (tmp_path / name for name in ("victim", "name", "beside"))
    victim.write_text("precious")
    path.symlink_to(victim)
    beside.symlink_to(victim)
    files.write(path, "new", beside)
    assert victim.read_text() == "precious"
    assert path.read_text() == "new"
    assert stat.S_ISREG(path.lstat().st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["name", "victim"]


def test_what_fails_leaves_the_file_of_before(tmp_path, monkeypatch):
    path = tmp_path / "name"
    files.write(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write(path, b"new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["name"]


def test_a_lock_knows_whether_its_file_is_still_in_place(tmp_path):
    lock = files.Lock(tmp_path / "lock")
    assert not lock.in_place
    assert lock.take()
    assert lock.in_place
    (tmp_path / "lock").unlink()
    assert not lock.in_place
    (tmp_path / "lock").touch()  # another file of the same name
    assert not lock.in_place
    other = files.Lock(tmp_path / "lock")
    assert other.take()
    assert other.in_place
    lock.release()
    other.release()
    assert not other.in_place


def test_rows_that_are_added_to_a_table_have_no_header():
    rows = [(1, "a, b", 0.1)]
    whole = files.csv_text(("n", "name", "value"), rows)
    assert whole == "n,name,value\n" + files.csv_text((), rows)
