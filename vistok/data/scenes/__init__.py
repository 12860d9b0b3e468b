"""Rendered scenes whose every answer is known: seed -> image, depth, masks, boxes, attributes, captions, questions."""

from vistok.data.scenes.layout import COLORS, GLYPHS, HELD_OUT, SHAPES, TEXTURES, Layout, Thing, make_layout
from vistok.data.scenes.questions import KINDS, Question, balanced_questions, questions_about
from vistok.data.scenes.render import Scene, render
from vistok.data.scenes.splits import SPLITS, seeds_of, split_of

__all__ = [
    "COLORS",
    "GLYPHS",
    "HELD_OUT",
    "KINDS",
    "SHAPES",
    "SPLITS",
    "TEXTURES",
    "Layout",
    "Question",
    "Scene",
    "Thing",
    "balanced_questions",
    "make_layout",
    "questions_about",
    "render",
    "seeds_of",
    "split_of",
]
