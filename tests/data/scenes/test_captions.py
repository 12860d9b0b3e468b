from vistok.data.scenes.captions import WORDS, caption
from vistok.data.scenes.layout import make_layout
from vistok.data.scenes.splits import seeds_of


def test_captions_hold_every_known_word_and_no_other() -> None:
    captions = [caption(make_layout(seed)) for split in ("train", "heldout") for seed in seeds_of(split)[:100]]
    assert {word for text in captions for word in text.split()} == set(WORDS)
    assert len(set(WORDS)) == len(WORDS)
