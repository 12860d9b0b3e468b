"""A typed function as a command line: jsonargparse, with the words of the command taken as a shell user writes them."""

import inspect
import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable
from keyword import iskeyword
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, auto_cli


class _Parser(ArgumentParser):
    """Shows `--shard-samples` for the parameter shard_samples, and SRC for a positional src of whatever type."""

    def format_help(self, *args: Any, **options: Any) -> str:
        self._name_positionals()
        return _with_dashes(super().format_help(*args, **options))

    def format_usage(self, *args: Any, **options: Any) -> str:
        self._name_positionals()
        return _with_dashes(super().format_usage(*args, **options))

    def _name_positionals(self) -> None:
        for action in self._actions:
            if not action.option_strings:
                action.metavar = action.dest.upper()
            elif iskeyword(action.dest[:-1]):
                action.metavar = action.dest[:-1].upper()


def run(prog: str, function: Callable[..., Any], args: list[str]) -> Any:
    """Call `function` with what `args` say and return its result; the exit code (int) if the arguments are wrong."""
    try:
        return auto_cli(
            function,
            args=arrange(function, args),
            parser_class=_Parser,
            prog=prog,
            description=inspect.getdoc(function),
            formatter_class=RawDescriptionHelpFormatter,
        )
    except SystemExit as stop:
        return stop.code


def arrange(function: Callable[..., Any], args: list[str]) -> list[str]:
    """Rewrite a command line to what jsonargparse takes, which knows fewer ways to write one.

    Leading words fill the function's parameters in order, those with a default too (keyword-only ones never); a list
    takes all words that follow, and those of the same option given again; a bare `--flag` is true; `--two-words` is the
    parameter two_words, and a word that is Python's own, such as `--as`, the parameter as_; `-o` is the parameter out.
    """
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    hints = get_type_hints(function)
    lists = {name for name, hint in hints.items() if _is_list(hint)}
    words, rest = _split(args)
    positional, options = [], []
    listed: dict[str, list[str]] = {}
    for parameter in parameters:
        if not words:
            break
        taken = words if parameter.name in lists else words[:1]
        words = words[len(taken) :]
        value = _as_list(taken) if parameter.name in lists else taken[0]
        if parameter.default is parameter.empty:
            positional.append(value)
        else:
            options.append(f"--{parameter.name}={value}")
    while rest:
        option, equals, value = rest[0].partition("=")
        option = "--out" if option == "-o" and "out" in hints else option
        head, dot, tail = option.partition(".")
        name = head.removeprefix("--").replace("-", "_")
        name += "_" if iskeyword(name) else ""
        option = f"--{name}{dot}{tail}" if head.startswith("--") else option
        following, rest = _split(rest[1:])
        if hints.get(name) is bool and not equals and not following:
            options.append(f"{option}=true")
        elif name in lists and not dot and (equals or following):
            listed.setdefault(option, []).extend([value, *following] if equals else following)
        else:
            options += [option + equals + value, *following]
    return positional + words + options + [f"{option}={_as_list(values)}" for option, values in listed.items()]


def _split(args: list[str]) -> tuple[list[str], list[str]]:
    """The words up to the next option, and the rest from that option on."""
    end = next((i for i, arg in enumerate(args) if arg.startswith("-") and arg != "-"), len(args))
    return args[:end], args[end:]


def _as_list(words: list[str]) -> str:
    return words[0] if len(words) == 1 and words[0].startswith("[") else json.dumps(words)


def _is_list(hint: Any) -> bool:
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return any(option is list or get_origin(option) is list for option in options)


def _with_dashes(text: str) -> str:
    return " ".join(_dashed(word) if word.lstrip("[").startswith("--") else word for word in text.split(" "))


def _dashed(option: str) -> str:
    name = option.strip("[-")
    return option[: -len(name)] + name[:-1] if iskeyword(name[:-1]) else option.replace("_", "-")
