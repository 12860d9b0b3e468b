"""`import vistok` and the torch-free verbs stay light: what they load is Python's own, PyYAML and little more."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "timm", "diffusers", "transformers", "triton", "open_clip", "vector_quantize_pytorch"}
LOADED = """
import json, sys
before = set(sys.modules)
{body}
loaded = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print("LOADED" + json.dumps(sorted(loaded - set(sys.stdlib_module_names))))
"""


def loaded_by(body: str) -> set[str]:
    """Top-level names, beyond the standard library, that a fresh interpreter has loaded after running `body`."""
    done = subprocess.run([sys.executable, "-c", LOADED.format(body=body)], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.rpartition("LOADED")[2]))


def test_importing_vistok_loads_nothing_else() -> None:
    assert loaded_by("import vistok") == {"vistok"}


@pytest.mark.parametrize("args", [["--help"], ["--version"], [], ["no-such-verb"]])
def test_help_and_version_load_only_yaml(args: list[str]) -> None:
    loaded = loaded_by(f"from vistok.cli.main import main; main({args!r})")
    # PyYAML's C parser brings Cython's bookkeeping modules.
    assert {name for name in loaded if "cython" not in name} == {"vistok", "yaml"}


@pytest.mark.parametrize("args", [["list"], ["list", "--help"]])
def test_listing_loads_no_heavy_library(args: list[str]) -> None:
    loaded = loaded_by(f"from vistok.cli.main import main; main({args!r})")
    assert "vistok" in loaded and not loaded & HEAVY


def test_names_load_when_they_are_used() -> None:
    assert "torch" not in loaded_by("import vistok; vistok.list_tokenizers(); vistok.info('tokenizer', 'vq_nano')")
    assert "torch" in loaded_by("import vistok; vistok.TokenTensor")


@pytest.mark.parametrize("order", ["import vistok.ops.nearest_code, vistok.ops", "import vistok.ops"])
def test_a_function_and_its_file_may_share_a_name_in_either_import_order(order: str) -> None:
    assert "torch" in loaded_by(f"{order}; assert callable(vistok.ops.nearest_code), vistok.ops.nearest_code")
