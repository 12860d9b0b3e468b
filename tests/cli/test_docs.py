import subprocess
import sys
from pathlib import Path

import pytest

from vistok.cli.docs import _PAGES
from vistok.cli.main import main


@pytest.mark.slow
def test_the_reference_has_a_page_of_every_folder_and_is_written_without_warnings(tmp_path: Path) -> None:
    # In a process of its own, because it imports every module.
    out = tmp_path / "api"
    program = "import sys; from vistok.cli.main import main; sys.exit(main(['docs', sys.argv[1]]))"
    done = subprocess.run([sys.executable, "-c", program, str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warn" not in done.stderr, done.stderr
    assert "k_center" in (out / "vistok/pruning/todre.html").read_text()
    front = (out / "vistok.html").read_text()
    assert "TokenTensor" in front and "tokenizer" in front
    for folder in ("codecs", "data", "lvlm", "ops", "quantizers", "tokenizers", "train"):
        assert (out / f"vistok/{folder}.html").is_file()
    assert (out / "index.html").is_file()
    assert not list(tmp_path.glob("api.tmp*"))
    assert {path.name for path in out.iterdir()} == _PAGES


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["docs", str(tmp_path)]) == 1
    assert "expected a new folder" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_lies_beside_an_earlier_reference_is_not_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vistok").mkdir()  # a checkout, maybe
    for name in ("vistok/notes.txt", "notes.txt", "vistok.html"):
        (tmp_path / name).write_text("mine")
        assert main(["docs", str(tmp_path)]) == 1
        assert "expected a new folder" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "mine"
