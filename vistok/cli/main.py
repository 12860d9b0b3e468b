"""The `vistok` command: every other file in this folder is one verb, found by listing, imported when it is called.

A verb's file has a docstring, whose first line is its summary, and `COMMAND`: one typed function, or a mapping from
names to functions. Functions return None or an exit code. Nothing here imports torch, so that `vistok --help` is quick.
"""

import ast
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

import vistok
from vistok.config import unknown

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
_FOLDER = Path(__file__).parent
_USER_ERRORS = (
    *(ValueError, KeyError, TypeError, OSError, ImportError, yaml.YAMLError),
    *(NotImplementedError, FloatingPointError),  # a method without a decoder; a training that diverged
)
_USAGE = """usage: vistok {owner} ...

{about}

commands:
{commands}

`vistok {owner} --help` tells more. NO_COLOR=1 leaves out colours, VISTOK_DEBUG=1 shows the traceback of an error."""


def main(argv: list[str] | None = None) -> int:
    """Run one command line, default `sys.argv[1:]`; returns 0 ok, 1 failed, 2 wrong usage, 130 interrupted."""
    args = sys.argv[1:] if argv is None else argv
    try:
        return _dispatch(args)
    except BrokenPipeError:
        # The reader (`vistok list | head`) has enough; Python would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except _USER_ERRORS as error:
        if os.environ.get("VISTOK_DEBUG") == "1" or (isinstance(error, TypeError) and not _raised_here(error)):
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return FAILED


def verbs() -> dict[str, str]:
    """Name and one-line summary of every verb, read from the files without importing them."""
    return {path.stem: _summary(path) for path in sorted(_FOLDER.glob("[!_]*.py")) if path.stem != "main"}


def _dispatch(args: list[str]) -> int:
    if args[:1] == ["--version"]:
        print(f"vistok {vistok.__version__}")
        return OK
    known = verbs()
    if not args or args[0] not in known:
        return _explain("COMMAND", vistok.__doc__ or "", known, args)
    module = import_module(f"vistok.cli.{args[0]}")
    return _run(args[0], module.COMMAND, known[args[0]], args[1:])


def _run(verb: str, command: Callable[..., Any] | Mapping[str, Callable[..., Any]], about: str, args: list[str]) -> int:
    if not isinstance(command, Mapping):
        return _call(f"vistok {verb}", command, args)
    if not args or args[0] not in command:
        known = {name: (function.__doc__ or "").partition("\n")[0] for name, function in command.items()}
        return _explain(f"{verb} COMMAND", about, known, args)
    return _call(f"vistok {verb} {args[0]}", command[args[0]], args[1:])


def _call(prog: str, function: Callable[..., Any], args: list[str]) -> int:
    from vistok.cli._arguments import run  # jsonargparse takes longer to import than all of `vistok --help`

    result = run(prog, function, args)
    return result if isinstance(result, int) else OK


def _explain(owner: str, about: str, known: Mapping[str, str], args: list[str]) -> int:
    """Print the commands that there are, or which one a mistyped name may have meant."""
    if args and args[0] not in ("-h", "--help"):
        print(f"error: {unknown('command', args[0], known)}", file=sys.stderr)
        return USAGE
    width = max(map(len, known), default=0)
    commands = "\n".join(f"  {name:{width}}  {summary}" for name, summary in known.items())
    print(_USAGE.format(owner=owner, about=about, commands=commands), file=sys.stdout if args else sys.stderr)
    return OK if args else USAGE


def _summary(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_bytes())) or "").partition("\n")[0]


def _one_line(error: BaseException) -> str:
    # str() of a KeyError is the repr of its message.
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(message.split()) or type(error).__name__


def _raised_here(error: BaseException) -> bool:
    """Whether our own code raised the error, to tell the user something; elsewhere a TypeError is a fault of ours."""
    frames: Iterable[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)[-1:]
    return any(Path(frame.filename).is_relative_to(_FOLDER.parent) for frame in frames)


if __name__ == "__main__":
    sys.exit(main())
