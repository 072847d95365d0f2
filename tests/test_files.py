"""Files and folders that appear whole or not at all."""

import re

import pytest

from bench.files import make_once, new_file, new_folder
from bench.naming import file_name, markdown, slug
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
    ]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(files)
    assert not any(re.search(r"[\s/?]|^[.]|^$", file) for file in files)
    assert file_name("Комментарии_2024") == "Комментарии_2024"
    assert slug("NVIDIA GeForce RTX 4090") == "NVIDIA-GeForce-RTX-4090"


def test_markdown_is_escaped():
    attack = "<!-- end --> ![x](http://evil) | `code` \x1b[31m <script> **b**\nnext"
    assert markdown(attack) == (
        "&lt;!-- end --&gt; !\\[x\\](http:\\//evil) \\| \\`code\\`  \\[31m &lt;script&gt; \\*\\*b\\*\\* next"
    )
