import json
import re
from pathlib import Path

import pytest

from vistok.cli.main import main
from vistok.report.measured import markdown, measured


def put(folder: Path, name: str, verb: str, result: object, card: str = "of arXiv:1234.56789") -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "README.md").write_text(card)
    (folder / name / f"{verb}.json").write_text(json.dumps(result))


def test_a_result_beside_weights_is_a_sentence_with_the_papers_of_the_card(tmp_path: Path) -> None:
    split = {"scenes": 500, "abs_rel": 0.03938, "codebook": {"usage": 1.0}}
    put(tmp_path, "mine", "eval_depth", {"splits": {"test": split}})
    put(tmp_path, "mine", "config", {"splits": "not a result"})
    (line,) = measured(tmp_path)
    assert (line.name, line.papers, line.command) == ("mine", ["1234.56789"], "vistok eval depth")
    assert "AbsRel 0.039" in line.found and "100%" in line.found


def test_pruners_come_best_first_with_their_distance_to_random(tmp_path: Path) -> None:
    def row(method: str, accuracy: float, budget: float = 0.25) -> dict[str, object]:
        difference = {"difference": accuracy - 0.5, "interval": [accuracy - 0.6, accuracy - 0.4]}
        score, against = {"accuracy": accuracy}, None if method == "random" else difference
        found = {"score": score, "of_unpruned": accuracy, "kept": budget, "against_random": against}
        return {"method": method, "budget": budget, **found}

    refused = row("tome", 0.0) | {"score": None}
    put(
        tmp_path,
        "lm",
        "eval_prune",
        {"rows": [row("unpruned", 1.0, 1.0), row("random", 0.5), row("todre", 0.75), refused]},
    )
    todre, random = measured(tmp_path)
    assert (todre.name, todre.papers, todre.command) == ("todre", ["2505.18757"], "vistok eval prune")
    assert todre.found == "75% of the accuracy with 25% of the visual tokens, +25.0 [+15.0, +35.0] to random"
    assert random.name == "random" and random.found.endswith("visual tokens")


def test_every_system_of_the_title_page_has_a_result_that_ships(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {line.name: line for line in measured()}
    systems = (
        "seed_nano",
        "ett_nano",
        "mingtok_nano",
        "karl_nano",
        "aurora_micro",
        "vit_nano",
        "todre",
        "explain_micro",
    )
    assert not [name for name in systems if name not in lines]
    assert [name for name in lines if name.startswith("transprune")]
    assert main(["status"]) == 0
    said = capsys.readouterr().out
    assert all(line.name in said for line in lines.values())


def test_the_table_of_the_readme_is_what_the_results_say() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- vistok status --as-markdown -->\n(.*?)\n<!-- end -->", readme, re.DOTALL)
    assert found is not None and found[1] == markdown(measured())
