"""Files and folders that appear whole or not at all."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import ROOT, refused

from bench.export.ensure import foreign_files
from bench.files import digest, make_once, new_file, new_folder, parse_object, read_json
from bench.label.folder import locked
from bench.naming import file_name, markdown, slug
from bench.report.rows import COLUMNS, append_row
from bench.tables.storage import locate
from utils import RunError


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file"
    with new_file(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(ValueError, match="half"), new_file(path) as file:
        file.write(b"half")
        raise ValueError("half")
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def fill(folder, content: str) -> None:
    (folder / "file").write_text(content)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "folder"
    with new_folder(folder) as temporary:
        fill(temporary, "first")
        assert not folder.exists()
    with pytest.raises(ValueError, match="half"), new_folder(folder, replace=True) as temporary:
        fill(temporary, "half")
        raise ValueError("half")
    assert (folder / "file").read_text() == "first"
    with pytest.raises(RunError, match=r"folder.*Directory not empty"), new_folder(folder) as temporary:
        fill(temporary, "second")
    with new_folder(folder, replace=True) as temporary:
        fill(temporary, "third")
    assert (folder / "file").read_text() == "third"
    assert list(tmp_path.iterdir()) == [folder]


def test_the_umask_decides_who_may_read_files_and_folders(tmp_path):
    before = os.umask(0o027)
    try:
        with new_file(tmp_path / "file"), new_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_the_temporary_folder_of_a_killed_run_is_removed_and_no_other(tmp_path):
    code = "import os, pathlib, bench.files; making = bench.files.new_folder(pathlib.Path({!r})); "
    code = code.format(str(tmp_path / "export")) + "(making.__enter__() / 'graph').touch(); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert (left / "graph").exists()
    for name in (".swiftsure-notes.tmp", ".export-mybackup", f"{left.name[:-4]}.old"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name, "mine")
    with new_folder(tmp_path / "other") as running:
        fill(running, "other")
        with new_folder(tmp_path / "export") as temporary:
            fill(temporary, "new")
        assert not left.exists() and (running / "file").exists()
    names = {".swiftsure-notes.tmp", ".export-mybackup", f"{left.name[:-4]}.old", "export", "other"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_what_a_killed_run_left_in_an_export_is_removed_and_hinders_nothing(tmp_path):
    export = tmp_path / "export"
    for content in (b"half", b""):
        code = f"import os, pathlib, bench.files as f; file = f.new_file(pathlib.Path({str(export)!r}) / 'parity.json')"
        code += f"; opened = file.__enter__(); opened.write({content!r}); opened.flush(); os.kill(os.getpid(), 9)"
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert len(list(export.iterdir())) == 2
    with new_file(export / "README.md") as running:
        running.write(b"whole")
        running.flush()
        assert foreign_files(export) == []
    assert (export / "README.md").read_bytes() == b"whole"
    assert [file.stat().st_size for file in export.iterdir() if file.suffix == ".tmp"] == [0]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_replaced_and_its_target_stays(exists, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "export").symlink_to("kept" if exists else "missing")
    with new_folder(tmp_path / "export", replace=True) as temporary:
        fill(temporary, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "kept"]
    assert (tmp_path / "export" / "file").read_text() == "new" and not list((tmp_path / "kept").iterdir())


def test_json_is_read_from_a_file_or_an_open_pipe_but_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in refused(read_json, tmp_path / "pipe")
    reading, writing = os.pipe()
    os.write(writing, b'{"a": 1}')
    os.close(writing)
    assert read_json(Path(f"/dev/fd/{reading}")) == {"a": 1}, "the shell's <(...)"
    os.close(reading)


def test_no_output_file_is_reached_by_a_link(tmp_path):
    row = dict.fromkeys(COLUMNS, "")
    for name in ("rows.tsv", "_lock"):
        (tmp_path / name).symlink_to(tmp_path.parent / "elsewhere")
    with pytest.raises(OSError):
        append_row(tmp_path / "rows.tsv", row)
    with pytest.raises(OSError, match="_lock"), locked(locate(str(tmp_path))):
        pass
    assert not (tmp_path.parent / "elsewhere").exists()


def test_different_folders_have_different_digests(tmp_path):
    ids = []
    for name, content in (("ab", "c"), ("a", "bc"), ("abc", "")):
        (tmp_path / name).write_text(content)
        ids.append(digest([tmp_path / name]))
    assert len(set(ids)) == 3


OURS = {"rows": int, "reason": str | None, "files": list | None}


NOT_OURS = ["", "[]", "5", "{}", '{"rows": "5"}', '{"rows": 1e999}', '{"rows": 5, "more": {"deep": [NaN]}}']
NOT_OURS += ['{"rows": 5, "reason": 5}', '{"rows": 5, "files": [5]}', '{"rows": null}', '{"rows": 5, "files": {}}']


@pytest.mark.parametrize("content", NOT_OURS)
def test_an_object_that_we_have_not_written_is_refused(content):
    with pytest.raises(ValueError):
        parse_object(content.encode(), OURS)
    good = {"rows": 5, "files": ["a"], "more": [1.5, {}]}
    assert parse_object(b'{"rows": 5, "files": ["a"], "more": [1.5, {}]}', OURS) == good


def test_a_folder_is_filled_once_and_that_of_another_run_is_used(tmp_path):
    made = []
    for content in ("first", "second"):
        make_once(tmp_path / "a", lambda folder, content=content: made.append(content) or fill(folder, content))
    assert made == ["first"]

    def meanwhile(folder):
        (tmp_path / "b").mkdir()
        fill(tmp_path / "b", "another run's")
        fill(folder, "ours")

    make_once(tmp_path / "b", meanwhile)
    assert (tmp_path / "b" / "file").read_text() == "another run's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_different_names_become_different_file_names():
    names = [
        "a b",
        "a-b",
        "a_b",
        "a.b",
        ".a",
        "a",
        "Комментарии_2024 (1)",
        "評論",
        "???",
        "",
        "..",
        "a/b",
        "a%20b",
        "x" * 9,
        "€",
        " AC",
    ]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(files)
    assert not any(re.search(r"[\s/?]|^[.]|^$", file) for file in files)
    assert [unquote(file_name(name)) for name in names if name] == [name for name in names if name]
    assert file_name("Комментарии_2024") == "Комментарии_2024"
    assert slug("NVIDIA GeForce RTX 4090") == "NVIDIA-GeForce-RTX-4090"


def test_markdown_is_escaped():
    attack = "<!-- end --> ![x](http://evil) | `code` \x1b[31m <script> **b**\nnext"
    assert markdown(attack) == (
        "&lt;!-- end --&gt; !\\[x\\](http:\\//evil) \\| \\`code\\`  \\[31m &lt;script&gt; \\*\\*b\\*\\* next"
    )
