"""What was measured of each method, told from result files that lie beside the embedded weights.

`vistok/pretrained/NAME/eval_VERB.json` is what `vistok eval VERB ... --json` wrote, of pruners without the rows by kind
of question; `train_ett_nano.json` holds the last metrics of runs of `vistok train ett_nano`, by the way to tune. A new
verb adds its sentence to `SENTENCES`.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import vistok

_PACKAGE = Path(vistok.__file__).parent
_ARXIV = re.compile(r"arXiv[: ]*(\d{4}\.\d{4,5})")


class Measured(NamedTuple):
    """One line: what was measured, its first papers by arXiv number, the command that measured, and what it found."""

    name: str
    papers: list[str]
    command: str
    found: str


def measured(pretrained: Path = _PACKAGE / "pretrained") -> list[Measured]:
    """All results, in the order of the names of weights and verbs; then pruners, one line each, the best first."""
    lines: list[Measured] = []
    pruners: list[Measured] = []
    for file in sorted(pretrained.glob("*/*.json")):
        verb = file.stem.replace("_", " ", 1)
        result = json.loads(file.read_text(encoding="utf-8")) if verb in (*SENTENCES, _PRUNE) else {}
        if verb == _PRUNE:
            pruners += _pruners(result)
        elif verb in SENTENCES:
            papers = _papers((file.parent / "README.md").read_text(encoding="utf-8"))
            command = f"vistok {verb} OUT" if verb.startswith("train") else f"vistok {verb}"
            lines.append(Measured(file.parent.name, papers, command, SENTENCES[verb](result)))
    return lines + pruners


def markdown(lines: list[Measured]) -> str:
    """A table in Markdown."""
    rows = ["| name | papers | measured by | found |", "|---|---|---|---|"]
    for line in lines:
        papers = ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in line.papers)
        rows.append(f"| `{line.name}` | {papers} | `{line.command}` | {line.found} |")
    return "\n".join(rows)


def _pruners(result: dict[str, Any]) -> Iterator[Measured]:
    rows = [row for row in result["rows"] if row["budget"] < 1 and row["score"] is not None]
    for row in sorted(rows, key=lambda row: -row["score"]["accuracy"]):
        against = row["against_random"]
        low, high = (0.0, 0.0) if against is None else against["interval"]
        over = (
            "" if against is None else f", {_points(against['difference'])} [{_points(low)}, {_points(high)}] to random"
        )
        found = f"{row['of_unpruned']:.0%} of the accuracy with {row['kept']:.0%} of the visual tokens{over}"
        yield Measured(row["method"], _method_papers("pruner", row["method"]), f"vistok {_PRUNE}", found)


def _method_papers(kind: str, name: str) -> list[str]:
    from vistok.registry import FOLDERS, info, names

    if name not in names(kind):
        return []
    file = _PACKAGE / FOLDERS[kind] / f"{info(kind, name).method}.py"
    return _papers(ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "")


def _papers(text: str) -> list[str]:
    return list(dict.fromkeys(_ARXIV.findall(text)))[:_PAPERS]


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _tokenizer(result: dict[str, Any]) -> str:
    means = result["means"]
    bits, jpeg = means["bits_per_pixel"], means["jpeg_psnr"]
    rate = "continuous tokens" if bits is None else f"{bits:.3g} bits a pixel"
    beside = "" if jpeg is None else f"; JPEG of as many bytes {jpeg:.1f} dB"
    return f"{len(result['images'])} photographs: {means['psnr']:.1f} dB, {rate}{beside}"


def _adaptive(result: dict[str, Any]) -> str:
    first, last = result["rows"][0], result["rows"][-1]
    gains = [row["psnr"] - row["fixed_psnr"] for row in result["rows"]]
    return (
        f"{first['tokens']:.0f} to {last['tokens']:.0f} of {result['slots']} tokens as the error asked for goes from "
        f"{first['eps']:g} to {last['eps']:g}; {min(gains):+.2f} to {max(gains):+.2f} dB to one count for all"
    )


def _retrieval(result: dict[str, Any]) -> str:
    test = result["splits"]["test"]
    embeddings, codes = (test[source]["image_to_text"]["1"] for source in ("embeddings", "codes"))
    return f"a scene's caption first among {test['scenes']}: {embeddings:.1%} by embeddings, {codes:.1%} by codes"


def _depth(result: dict[str, Any]) -> str:
    test = result["splits"]["test"]
    return f"AbsRel {test['abs_rel']:.3f} after the round trip, {test['codebook']['usage']:.0%} of the codes in use"


def _perception(result: dict[str, Any]) -> str:
    rows = result["rows"]
    told = ", ".join(f"{name} {rows[name]['accuracy']:.1%}" for name in ("direct", "chain", "oracle", "random"))
    return f"nearest or farthest thing: {told}; a guess {result['blind']:.1%}"


def _vqt(result: dict[str, Any]) -> str:
    rows = [row for row in result["rows"] if row["task"] == "mean" and row["over_linear"] is not None]
    return "VQT: " + "; ".join(
        f"{row['readout'].removeprefix('vqt_').replace('t', 'T=')} {row['accuracy']:.1%}, "
        f"{_points(row['over_linear']['mean'])} [{_points(row['over_linear']['low'])}, "
        f"{_points(row['over_linear']['high'])}] to a linear probe"
        for row in rows
    )


def _lvlm(result: dict[str, Any]) -> str:
    return f"{result['accuracy']:.1%} of questions about scenes"


def _probe(result: dict[str, Any]) -> str:
    images = [row["accuracy"] for row in result["rows"] if row["level"] == "image"]
    latent, semantic = (mean(row[stage] for row in images) for stage in ("latent", "semantic"))
    return f"attributes of scenes off pooled tokens: latent {latent:.1%}, semantic {semantic:.1%}"


def _ett(result: dict[str, Any]) -> str:
    told = (
        f"{way} {mean(run['accuracy'] for run in runs):.1%} and {mean(run['psnr'] for run in runs):.1f} dB"
        for way, runs in result.items()
    )
    return f"answers and reconstruction by the way to tune: {'; '.join(told)}"


_PRUNE = "eval prune"
_PAPERS = 2  # a card names its own method first, then what it builds on
SENTENCES: dict[str, Callable[[dict[str, Any]], str]] = {
    "eval adaptive": _adaptive,
    "eval depth": _depth,
    "eval lvlm": _lvlm,
    "eval perception": _perception,
    "eval probe": _probe,
    "eval retrieval": _retrieval,
    "eval tokenizer": _tokenizer,
    "eval vqt": _vqt,
    "train ett_nano": _ett,
}
