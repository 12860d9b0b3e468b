import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vistok
from vistok.cli import main as command
from vistok.cli._arguments import arrange, run
from vistok.cli.main import main, verbs


@pytest.fixture
def verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a verb's file; the command then finds it beside its own."""
    monkeypatch.setattr(vistok.cli, "__path__", [*vistok.cli.__path__, str(tmp_path)])
    monkeypatch.setattr(command, "_FOLDER", tmp_path)
    monkeypatch.delenv("VISTOK_DEBUG", raising=False)

    def write(name: str, body: str) -> None:
        (tmp_path / f"{name}.py").write_text(f'"""Summary of {name}.\n\nMore."""\n{body}\n')
        monkeypatch.delitem(sys.modules, f"vistok.cli.{name}", raising=False)

    return write


def failing(error: str) -> str:
    return f"def fail() -> None:\n    raise {error}\nCOMMAND = fail"


def test_help_lists_every_file_of_the_folder_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    files = {path.stem for path in Path(command.__file__).parent.glob("[!_]*.py")} - {"main"}
    assert set(verbs()) == files >= {"list", "info", "doctor"}
    for name, summary in verbs().items():
        assert summary and f"  {name}" in shown and summary in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vistok {vistok.__version__}\n"


@pytest.mark.parametrize("name", verbs())
def test_every_verb_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: vistok {name}")
    declared = importlib.import_module(f"vistok.cli.{name}").COMMAND
    for inner in declared if isinstance(declared, dict) else ():
        assert main([name, inner, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: vistok {name} {inner}")


def test_no_verb_is_wrong_usage_and_shows_help_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("usage: vistok")


def test_an_unknown_verb_names_the_close_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docter"]) == 2
    assert capsys.readouterr().err == "error: no command 'docter'; did you mean doctor, docs?\n"


def test_a_new_verb_is_one_file(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    verb("greet", "def greet(name: str, *, times: int = 1) -> None:\n    print(name * times)\nCOMMAND = greet")
    assert verbs() == {"greet": "Summary of greet."}
    assert main(["greet", "ab", "--times", "2"]) == 0
    assert capsys.readouterr().out == "abab\n"


def test_a_mapping_makes_subcommands(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    verb("shop", 'def buy(n: int) -> int:\n    """Buy some."""\n    return n\nCOMMAND = {"buy": buy}')
    assert main(["shop", "buy", "3"]) == 3
    assert main(["shop", "--help"]) == 0
    assert "buy  Buy some." in capsys.readouterr().out
    assert main(["shop", "by"]) == 2
    assert "did you mean buy?" in capsys.readouterr().err
    assert main(["shop"]) == 2


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ('ValueError("expected 3,\\n got 4")', "error: expected 3, got 4"),
        ("KeyError(\"no name 'x'\")", "error: no name 'x'"),
        ('TypeError("no setting")', "error: no setting"),
        ('FileNotFoundError("no such folder: y")', "error: no such folder: y"),
        ('ImportError("pip install z")', "error: pip install z"),
        ("ValueError()", "error: ValueError"),
    ],
)
def test_a_mistake_is_one_line_and_exit_1(
    verb: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: str,
    line: str,
) -> None:
    monkeypatch.setattr(command, "_raised_here", lambda _: True)
    verb("bad", failing(error))
    assert main(["bad"]) == 1
    assert capsys.readouterr().err == line + "\n"


def test_vistok_debug_shows_the_traceback(verb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    verb("bad", failing('ValueError("why")'))
    monkeypatch.setenv("VISTOK_DEBUG", "1")
    with pytest.raises(ValueError, match="why"):
        main(["bad"])


def test_a_fault_of_ours_is_not_dressed_up_as_a_mistake_of_the_user(verb: Any) -> None:
    verb("bad", failing('RuntimeError("internal")'))
    with pytest.raises(RuntimeError, match="internal"):
        main(["bad"])
    verb("worse", "import json\ndef fail() -> None:\n    json.loads(3)\nCOMMAND = fail")
    with pytest.raises(TypeError):
        main(["worse"])


def test_an_interrupt_exits_with_130(verb: Any) -> None:
    verb("slow", failing("KeyboardInterrupt"))
    assert main(["slow"]) == 130


@pytest.mark.parametrize("args", [["list", "--no-such-option"], ["info"], ["list", "tokenizer", "*", "too", "many"]])
def test_wrong_options_exit_with_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    assert capsys.readouterr().err.startswith("usage: vistok")


def test_a_reader_that_stops_early_is_no_error() -> None:
    program = "import sys; from vistok.cli.main import main; sys.exit(main(['list']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def example(
    src: str, photos: list[str], mode: str = "a", *, shard_samples: int = 3, budgets: list[float] | None = None
) -> Any:
    """Say what came in."""
    return src, photos, mode, shard_samples, budgets


@pytest.mark.parametrize(("line", "expected"), [("", False), ("--again", True), ("--again false", False)])
def test_a_bare_flag_is_true(line: str, expected: bool) -> None:
    def f(*, again: bool = False) -> bool:
        return again

    assert run("x", f, line.split()) is expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("s p", ("s", ["p"], "a", 3, None)),
        ("s p q --mode b", ("s", ["p", "q"], "b", 3, None)),
        ("s [p,q] --mode=b", ("s", ["p", "q"], "b", 3, None)),
        ("s 8 --shard-samples 4", ("s", ["8"], "a", 4, None)),
        ("s p --shard_samples=4", ("s", ["p"], "a", 4, None)),
        ("s p --budgets 8 0.5 --mode b", ("s", ["p"], "b", 3, [8.0, 0.5])),
        ("s p --budgets=8", ("s", ["p"], "a", 3, [8.0])),
    ],
)
def test_arguments_are_taken_as_a_shell_user_writes_them(line: str, expected: tuple[Any, ...]) -> None:
    assert run("x", example, line.split()) == expected


def test_words_fill_parameters_with_defaults_but_never_keyword_only_ones() -> None:
    def f(kind: str = "all", pattern: str = "*", *, json: str = "") -> None: ...

    assert arrange(f, ["a", "b", "c"]) == ["c", "--kind=a", "--pattern=b"]


def test_a_word_of_python_is_an_option_too(capsys: pytest.CaptureFixture[str]) -> None:
    def f(src: str, *, as_: str = "", in_order: bool = False) -> str:
        return f"{src} {as_} {in_order}"

    assert run("x", f, ["a", "--as", "b", "--in-order"]) == "a b True"
    assert run("x", f, ["--help"]) == 0
    shown = capsys.readouterr().out
    assert "--as AS" in shown and "as_" not in shown.lower() and "--in-order" in shown


def test_help_shows_dashes_and_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("vistok x", example, ["--help"]) == 0
    shown = capsys.readouterr().out
    assert "--shard-samples" in shown and "Say what came in." in shown and "SRC PHOTOS" in shown
