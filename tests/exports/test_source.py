"""`predict.py`: the network's own layers, what `cifar-sweep predict` says, and users' words as literals only."""

import ast
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_sweep.config import TrialConfig
from cifar_sweep.exports.source import layer_source, network_source, script
from cifar_sweep.exports.trained import Provenance, Trained
from cifar_sweep.exports.write import write
from cifar_sweep.parameters import MODEL_NAMES
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.models import build
from tests.bare import BarePython, module_of


@pytest.fixture
def predict_script(small_data: ImageData, tmp_path: Path) -> Path:
    """Of a network that was never trained."""
    config = TrialConfig.from_params({"model": "lenet"}, classes=10, precision="fp32", data_seed=0, seed=0)
    provenance = Provenance(
        study="a study", trial=0, best_epoch=1, validation_accuracy=0.1, data_source="auto", device="cpu", threads=1,
        commit="", versions={}, params={},
    )  # fmt: skip
    trained = Trained(config, build(config.shape, seed=0).state_dict(), provenance)
    write(tmp_path / "out", [trained], data=small_data, device=torch.device("cpu"))
    return tmp_path / "out" / "predict.py"


@pytest.mark.parametrize("model", MODEL_NAMES)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_printed_layers_are_the_networks(model: str, batch_norm: bool) -> None:
    params = {"model": model, "batch_norm": batch_norm, "activation": "leaky_relu"}
    config = TrialConfig.from_params(params, classes=7, precision="fp32", data_seed=0, seed=0)
    network = build(config.shape, seed=0)
    printed = eval(network_source(config, network), {"nn": torch.nn})
    assert {name: value.shape for name, value in printed.state_dict().items()} == {
        name: value.shape for name, value in network.state_dict().items()
    }
    printed.load_state_dict(network.state_dict())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(printed.eval()(images), network.eval()(images))


def test_an_unknown_layer_is_refused() -> None:
    class Doubled(torch.nn.Module):
        pass

    for layer in (Doubled(), torch.nn.Sequential(torch.nn.ReLU())):
        with pytest.raises(ValueError, match=type(layer).__name__):
            layer_source(layer)


def test_users_words_are_literals(small_data: ImageData) -> None:
    """Class names are names of folders, which anybody may have named."""
    names = ('a "quoted" one', "it's # {this}", "new\nline = 1", '"""', "\\", "\udcff", "猫 " * 60, "7", "8", "9")
    data = replace(small_data, classes=names, name='"""\nimport x')
    config = TrialConfig.from_params({"model": "lenet"}, classes=10, precision="fp32", data_seed=0, seed=0)
    text = script([config], [build(config.shape, seed=0)], data=data)
    text.encode()
    tree = ast.parse(text)
    [classes] = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "CLASSES"]
    assert ast.literal_eval(classes) == list(names)
    plain = ast.parse(script([config], [build(config.shape, seed=0)], data=small_data))
    assert [type(node) for node in tree.body] == [type(node) for node in plain.body]


def test_pictures_that_are_missing_or_broken(predict_script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save("whole.png")
    Path("half.png").write_bytes(Path("whole.png").read_bytes()[:3000])
    Path("note.txt").write_text("no picture")
    main = module_of(predict_script).main
    for name, words in {
        "nothing.png": "No such file or directory",
        "half.png": "truncated",
        "note.txt": "not an image that Pillow reads",
        "out": "Is a directory",
    }.items():
        with pytest.raises(SystemExit) as ended:
            main(["whole.png", name])
        assert str(ended.value).startswith(f"error: {name}: the picture cannot be read: ")
        assert words in str(ended.value)
        assert len(str(ended.value).splitlines()) == 1
        assert capsys.readouterr().out.startswith("whole.png: ")
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "usage: python predict.py PICTURE [PICTURE ...]\n"


@pytest.mark.slow
def test_a_terminal_of_few_letters_and_a_reader_that_leaves(predict_script: Path) -> None:
    text = predict_script.read_text()
    names = ["größe", "a\u202eb", "new\nline", *map(str, range(7))]
    predict_script.write_text(text.replace("WEIGHTS =", f"CLASSES = {names}\nWEIGHTS =", 1))
    Image.new("RGB", (32, 32)).save("größe.png")
    for way, wanted in (("", rb"gr\xf6\xdfe.png: "), ("| true; exit ${PIPESTATUS[0]}", b"")):
        shell = f"PYTHONIOENCODING=ascii {sys.executable} {predict_script} {' '.join(['größe.png'] * 2)} {way}"
        ended = subprocess.run(["bash", "-c", shell], capture_output=True)
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert ended.stdout.startswith(wanted)
        assert ended.stdout.count(b"\n") == (0 if way else 2)
        ended.stdout.decode("ascii")


@pytest.mark.slow
def test_its_exit_code_is_1_for_a_missing_picture(predict_script: Path, bare_python: BarePython) -> None:
    finished = bare_python(predict_script, "nothing.png", cwd=Path())
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr == "error: nothing.png: the picture cannot be read: No such file or directory.\n"


def test_damaged_weights_are_said_to_be(predict_script: Path, tmp_path: Path) -> None:
    weights = predict_script.with_name("weights.safetensors")
    for content in (weights.read_bytes()[:-100], b"", None):
        copy = tmp_path / "copy"
        copy.mkdir(exist_ok=True)
        (copy / "predict.py").write_text(predict_script.read_text())
        (copy / weights.name).unlink(missing_ok=True)
        if content is not None:
            (copy / weights.name).write_bytes(content)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(copy / "predict.py"))
        assert str(ended.value).startswith(f"error: {copy / weights.name}: the weights cannot be read: ")
        assert "\n" not in str(ended.value)


@pytest.mark.slow
def test_where_scripts_are_tried_we_are_not_installed(bare_python: BarePython, tmp_path: Path) -> None:
    for module, exit_code in (("cifar_sweep", 1), ("optuna", 1), ("torch, safetensors, PIL", 0)):
        assert bare_python("-c", f"import {module}", cwd=tmp_path).returncode == exit_code
