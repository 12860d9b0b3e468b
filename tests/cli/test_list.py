import pytest

import vistok
from vistok.cli.main import main


def test_every_name_of_every_kind_is_listed_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for kind, names in (("tokenizer", vistok.list_tokenizers()), ("pruner", vistok.list_pruners())):
        for name in names:
            (line,) = [line for line in lines if line.split()[:2] == [name, kind]]
            assert line.rstrip().endswith(vistok.info(kind, name).summary)


@pytest.mark.parametrize("kind", ["quantizer", "quantizers"])
def test_a_kind_and_a_pattern_narrow_the_list(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind, "*fsq*"]) == 0
    out = capsys.readouterr().out
    assert "fsq" in out and "lfq" not in out and "nano" not in out


def test_nothing_found_is_said_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "pruner", "no_such*"]) == 1
    assert capsys.readouterr() == ("", "no name of kind pruner matches 'no_such*'\n")


def test_an_unknown_kind_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "tokeniser"]) == 1
    assert "no kind 'tokeniser'; did you mean tokenizer?" in capsys.readouterr().err
