"""The token strings of published models, each family in the order that its model has them.

SEED-LLaMA (arXiv:2310.01218), Chameleon (arXiv:2405.09818), Emu3 (arXiv:2409.18869), AURORA (arXiv:2412.03548),
PaliGemma (arXiv:2407.07726), Florence-2 (arXiv:2311.06242). Chameleon and Emu3 have theirs already, the others add
them to a language model.
"""

from typing import Any

from vistok.codecs._token_strings import (
    DEPTH_ENDS,
    NORMAL_ENDS,
    depth_codes,
    florence_codes,
    loc_codes,
    normal_codes,
    pixel_codes,
    seg_codes,
)
from vistok.lvlm.vocabulary import TokenFamily

_CHAMELEON = "IMGIMG"
_DIGITS = str.maketrans("ABCDEFGHIJ", "0123456789")


def seed(codes: int = 8192) -> TokenFamily:
    """`<img_00000>` .. and `<img>`, `</img>` around the 32 codes of an image."""
    strings = tuple(f"<img_{code:05d}>" for code in range(codes))
    return TokenFamily("seed", (*strings, "<img>", "</img>"), ("<img>",), ("</img>",))


def chameleon(tokenizer: Any) -> TokenFamily:
    """What a tokenizer of Chameleon or Anole calls its image tokens: IMGIMG, digits as letters A..J, a closing letter.

    Ids do not follow the codes there. Raises: ValueError if the tokenizer has no such tokens, or not every code once.
    """
    names = [name for name in tokenizer.get_vocab() if name.startswith(_CHAMELEON)]
    spelled = {name: name[len(_CHAMELEON) : -1].translate(_DIGITS) for name in names}
    wrong = [name for name, digits in spelled.items() if not (digits.isascii() and digits.isdigit())]
    codes = {int(digits): name for name, digits in spelled.items() if name not in wrong}
    if wrong or not names or sorted(codes) != list(range(len(names))):
        raise ValueError(
            f"chameleon: expected a tokenizer with image tokens {_CHAMELEON}A..Z for every code from 0, each once, got "
            f"{len(names)} of them for {len(codes)} codes{', such as ' + wrong[0] if wrong else ''}"
        )
    begin = getattr(tokenizer, "boi_token", None) or "<racm3:break>"
    end = getattr(tokenizer, "eoi_token", None) or "<eoss>"
    return TokenFamily("chameleon", tuple(codes[code] for code in range(len(codes))), (begin,), (end,))


def emu3(codes: int = 32768) -> TokenFamily:
    """`<|visual token 000000|>` .., an end of line behind every row, an end of frame; "rows*columns" goes first.

    Use it to look ids up: Emu3's tokenizer has all of them.
    """
    return TokenFamily(
        "emu3",
        tuple(f"<|visual token {code:06d}|>" for code in range(codes)),
        begin=("<|image start|>",),
        size_end="<|image token|>",
        row_end="<|extra_200|>",
        end=("<|extra_201|>", "<|image end|>"),
    )


def depth(codes: int = 128) -> TokenFamily:
    """AURORA: `<DEPTH_START>`, `<DEPTH_END>`, then `<DEPTH_0>` .."""
    begin, end = DEPTH_ENDS
    return TokenFamily("depth", (begin, end, *depth_codes(codes)), (begin,), (end,))


def normal(codes: int = 256) -> TokenFamily:
    """Surface normals: `<NORMAL_START>`, `<NORMAL_END>`, then `<NORMAL_0>` .."""
    begin, end = NORMAL_ENDS
    return TokenFamily("normal", (begin, end, *normal_codes(codes)), (begin,), (end,))


def pixel(bins: int = 336) -> TokenFamily:
    """AURORA: `<PIXEL_0>` .., coordinates in an image of that many pixels a side."""
    return TokenFamily("pixel", pixel_codes(bins))


def cells(bins: int = 12) -> TokenFamily:
    """Cells of a coarse grid: `(`, `)`, then `<PIXEL_0>` .., column before row, as AURORA writes coordinates."""
    return TokenFamily("cells", ("(", ")", *pixel_codes(bins)), ("(",), (")",))


def loc(bins: int = 1024) -> TokenFamily:
    """PaliGemma: `<loc0000>` .."""
    return TokenFamily("loc", loc_codes(bins))


def seg(codes: int = 128) -> TokenFamily:
    """PaliGemma: `<seg000>` .."""
    return TokenFamily("seg", seg_codes(codes))


def florence_loc(bins: int = 1000) -> TokenFamily:
    """Florence-2: `<loc_0>` .., not padded."""
    return TokenFamily("florence_loc", florence_codes(bins))
