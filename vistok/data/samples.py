"""The five photographs that scikit-image ships in its wheel, by file: no download, never trained on."""

from importlib.util import find_spec
from pathlib import Path

_FILES = {name: f"{name}.png" for name in ("astronaut", "coffee", "chelsea")} | {
    name: f"{name}.jpg" for name in ("rocket", "retina")
}
SAMPLES = tuple(_FILES)


def sample_path(name: str) -> Path:
    """The file of a sample photograph, in the installed scikit-image package.

    Raises: KeyError naming the samples; ImportError naming the extra if scikit-image is absent; FileNotFoundError if
    this version of scikit-image no longer ships the file.
    """
    if name not in _FILES:
        raise KeyError(f"no sample {name!r}; there are: {', '.join(SAMPLES)}")
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "the sample photographs come with scikit-image; install the extra: pip install 'vistok[demo]'"
        )
    path = Path(spec.submodule_search_locations[0], "data", _FILES[name])
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected in scikit-image >= 0.25; reinstall it: pip install 'vistok[demo]'")
    return path
