"""CITATION.cff lists the papers that code and model cards name, and no others; every embedded model credits one."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
CITATION: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
CARDS = sorted((ROOT / "vistok" / "pretrained").glob("*/README.md"))
CODE = sorted((ROOT / "vistok").rglob("*.py")) + sorted((ROOT / "triton_kernels").rglob("*.py"))
# Numbers have five digits behind the point since 2015; those of four are told from decimals by "arXiv:" before them.
NUMBER = re.compile(r"(?<![\d.])(?:\d\d(?:0[1-9]|1[0-2])\.\d{5}|(?<=arXiv:)\d\d(?:0[1-9]|1[0-2])\.\d{4})(?!\d)")


def named(files: list[Path]) -> dict[str, str]:
    """arXiv number -> one of the files that name it."""
    return {number: str(file.relative_to(ROOT)) for file in files for number in numbers(file)}


@cache
def numbers(file: Path) -> set[str]:
    """arXiv numbers that a file names."""
    return set(NUMBER.findall(file.read_text(encoding="utf-8")))


def identifiers(reference: dict[str, Any]) -> dict[str, str]:
    """arXiv numbers and DOIs of a reference, by kind."""
    found = {}
    for entry in reference.get("identifiers", []):
        kind, _, value = entry["value"].rpartition(":")
        found["arXiv" if kind == "arXiv" else entry["type"]] = value
    return found


LISTED = [identifiers(reference).get("arXiv", "") for reference in CITATION["references"]]


def is_name(author: dict[str, Any]) -> bool:
    """Whether an author is a person with a family name or an entity with a name."""
    return all(isinstance(part, str) and part.strip() for part in author.values()) and (
        "name" in author or {"given-names", "family-names"} <= author.keys()
    )


def test_the_file_has_what_cff_asks_for() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    assert all(CITATION[key] for key in ("message", "title", "authors"))
    assert all(is_name(author) for author in CITATION["authors"])


@pytest.mark.parametrize("reference", CITATION["references"], ids=lambda reference: str(reference.get("title"))[:40])
def test_a_reference_has_title_authors_year_and_number(reference: dict[str, Any]) -> None:
    assert reference["type"] in ("article", "conference-paper")
    assert isinstance(reference["title"], str) and reference["title"].strip()
    assert reference["authors"] and all(is_name(author) for author in reference["authors"])
    assert len({tuple(sorted(author.items())) for author in reference["authors"]}) == len(reference["authors"])
    ids = identifiers(reference)
    assert "arXiv" in ids or "doi" in ids
    assert isinstance(reference["year"], int)
    if "arXiv" in ids:
        assert NUMBER.fullmatch(f"arXiv:{ids['arXiv']}", len("arXiv:"))
        assert reference["url"] == f"https://arxiv.org/abs/{ids['arXiv']}"
        assert reference["year"] == 2000 + int(ids["arXiv"][:2])


def test_references_are_sorted_by_number_and_listed_once() -> None:
    assert [number for number in LISTED if number] == sorted({number for number in LISTED if number})


def test_papers_that_code_names_are_listed() -> None:
    missing = {number: file for number, file in named(CODE).items() if number not in LISTED}
    assert not missing, (
        f"not in CITATION.cff: {missing}; add title, all authors, year and number, looked up, not by heart"
    )


def test_papers_that_model_cards_name_are_listed() -> None:
    missing = {number: file for number, file in named(CARDS).items() if number not in LISTED}
    assert not missing, (
        f"not in CITATION.cff: {missing}; add title, all authors, year and number, looked up, not by heart"
    )


def test_nothing_is_listed_that_neither_code_nor_card_names() -> None:
    extra = {number for number in LISTED if number} - named(CODE + CARDS).keys()
    assert not extra, (
        f"listed in CITATION.cff, but named by no file: {sorted(extra)}; take it out, or name it where it is used"
    )


@pytest.mark.parametrize("folder", ["tokenizers", "quantizers", "pruning", "codecs", "readouts"])
def test_every_folder_of_methods_names_papers(folder: str) -> None:
    assert named(sorted((ROOT / "vistok" / folder).glob("*.py")))


@pytest.mark.parametrize("card", CARDS, ids=lambda card: str(card.parent.name))
def test_every_model_card_names_a_paper(card: Path) -> None:
    assert numbers(card)


def test_numbers_are_told_from_decimals() -> None:
    text = "arXiv:1406.2283, arXiv:2307.08041 (2310.01218), 1406.2283 and 2313.01218 and 12.2310.01218 and 2310.012189"
    assert NUMBER.findall(text) == ["1406.2283", "2307.08041", "2310.01218"]
