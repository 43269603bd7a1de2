"""common/files.py: what other processes, killed ones and full disks do to a file."""

import os
import subprocess
import sys
import threading

import pytest

from common.errors import UserError
from common.files import leftovers, only_process, unfinished_file, write_file

KILLED = """
import os, signal, sys
from pathlib import Path
from common.files import unfinished_file
with unfinished_file(Path(sys.argv[1])) as unfinished:
    unfinished.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.posix
def test_what_a_killed_writer_left_behind_goes_with_the_next_write(tmp_path):
    path = tmp_path / "scores.json"
    write_file(path, b"old")
    mine = [".scores.json", ".scores.mine.json", ".scores.1a2b3c4d.unfinished.txt", "scores.json.9"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=os.getcwd(), check=False)
    assert path.read_bytes() == b"old" and len(leftovers(path)) == 1
    write_file(path, b"new")
    assert path.read_bytes() == b"new" and not leftovers(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*mine, "scores.json"])


def test_writers_of_one_path_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([number]) * 300_000 for number in range(4)]
    seen = []

    def write(content):
        for _ in range(20):
            write_file(path, content)
            seen.append(path.read_bytes() in contents)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 80 and all(seen)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_fails_part_way_is_not_there(tmp_path):
    def fail(file):
        file.write(b"half")
        raise RuntimeError("as torch.save does")

    with pytest.raises(UserError, match=r"x cannot be written \(the write failed part way\)"):
        write_file(tmp_path / "x", fail)
    with pytest.raises(UserError, match=r"x cannot be written \(No such file"):
        write_file(tmp_path / "missing" / "x", b"1")
    with pytest.raises(UserError, match=r"cannot be written \(File name too long\)"):
        write_file(tmp_path / ("x" * 300), b"1")
    with pytest.raises(ZeroDivisionError), unfinished_file(tmp_path / "y") as unfinished:
        unfinished.write_bytes(b"half")
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


HOLDS = """
import sys
from pathlib import Path
from common.files import only_process
with only_process(Path(sys.argv[1]), "at work"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_waited_for_and_a_killed_process_holds_none(tmp_path, capsys):
    lock = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDS, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        timer = threading.Timer(0.3, process.kill)
        timer.start()
        with only_process(lock, "at work [/x]"):
            assert "Waiting for another process that is at work [/x]" in capsys.readouterr().err
            assert process.wait() < 0
