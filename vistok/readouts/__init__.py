"""Readouts: features of images through a backbone that stays as it is, for a head or a language model to learn on."""
