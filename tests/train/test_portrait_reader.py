"""The judge of drawn pictures reads what captions say."""

import torch

from vistok.train.portrait_reader import ATTRIBUTES, PortraitReader, attributes_of


def test_attributes_are_the_words_of_a_caption_in_order():
    found = attributes_of(["a large dotted pink ring", "a small plain red circle"])
    words = [[ATTRIBUTES[name][int(found[name][row])] for name in ATTRIBUTES] for row in range(2)]
    assert words == [["large", "dotted", "pink", "ring"], ["small", "plain", "red", "circle"]]


def test_colours_of_flat_pictures_are_learnt_in_a_few_steps():
    colors = {"red": (1.0, 0, 0), "green": (0, 1.0, 0)}
    captions = [f"a small plain {name} circle" for name in colors] * 8
    flat = torch.tensor([colors[caption.split()[3]] for caption in captions])
    flat = torch.tensor([colors[caption.split()[3]] for caption in captions])
    images = flat[:, :, None, None].expand(-1, 3, 32, 32)
    shown = attributes_of(captions)
    reader = PortraitReader.learn(images, shown, steps=15, batch=16)
    assert reader.accuracy(images, shown) == dict.fromkeys(ATTRIBUTES, 1.0)
