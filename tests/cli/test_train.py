import json
from importlib import import_module

import pytest
from PIL import Image
from skimage import data

from vistok.cli.train import _read, train
from vistok.config import check_settings, check_types, config_names

RECIPE = """
method: autoencoder
tokenizer: vq_nano
settings: {width: 16, fine_width: 8, encoder_blocks: 1, decoder_blocks: 1, fine_blocks: 1}
steps: 3
batch: 2
crop: 32
scales: [64]
log_every: 1
"""


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(data.astronaut()).save(tmp_path / "astronaut.png")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


@pytest.mark.parametrize("name", config_names("train"))
def test_every_recipe_names_a_training_and_settings_that_it_takes(name):
    settings = _read(name)
    training = import_module(f"vistok.train.{settings.pop('method')}").Training
    check_settings(name, training, settings)
    check_types(name, training, settings)


def test_a_recipe_file_trains_to_a_model_and_reports_its_numbers(folder):
    out = str(folder / "run")
    train(str(folder / "recipe.yaml"), out, photos=[str(folder)], options={"batch": 1}, json=str(folder / "m.json"))
    assert (folder / "run" / "model" / "model.safetensors").is_file()
    assert json.loads((folder / "m.json").read_text())["step"] == 3
    assert json.loads((folder / "run" / "config.json").read_text())["batch"] == 1


def test_a_recipe_may_build_on_a_preset(folder):
    (folder / "child.yaml").write_text("base: vq_nano\n" + RECIPE.replace("method: autoencoder\n", ""))
    train(str(folder / "child.yaml"), str(folder / "run"), photos=[str(folder)])
    assert json.loads((folder / "run" / "config.json").read_text())["losses"] == {"l2": 1.0}


def test_unknown_settings_and_missing_pictures_are_errors_that_say_what_to_do(folder):
    with pytest.raises(TypeError, match="did you mean.*batch"):
        train(str(folder / "recipe.yaml"), str(folder / "run"), photos=[str(folder)], options={"batsh": 1})
    with pytest.raises(ValueError, match="vistok data photos"):
        train("vq_nano", str(folder / "run"))
    with pytest.raises(KeyError, match="vq_nano"):
        train("vq_nanno", str(folder / "run"), photos=[str(folder)])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "learning_rate: 3e-3",
            "'learning_rate': expected float, got '3e-3'; YAML reads 3e-3 as text .*write 0.003",
        ),
        ("scales: 64", r"'scales': expected list\[int\], got 64"),
        ("scales: [64, 6.5]", r"'scales': expected list\[int\], got \[64, 6.5\]"),
        ("bf16: maybe", "'bf16': expected bool, got 'maybe'"),
        ("batch: true", "'batch': expected int, got True"),
        ("settings: vq_nano", "'settings': expected dict"),
    ],
)
def test_a_value_of_another_type_is_named_with_what_was_expected(folder, line, said):
    recipe = [old for old in RECIPE.splitlines() if old.split(":")[0] != line.split(":")[0]]
    (folder / "typed.yaml").write_text("\n".join([*recipe, line]))
    with pytest.raises(TypeError, match=f"typed.yaml' setting {said}"):
        train(str(folder / "typed.yaml"), str(folder / "typed"), photos=[str(folder)])
    assert not (folder / "typed").exists()
