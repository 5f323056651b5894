"""The wheel holds everything that `pip install` must bring."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_holds_the_sweeps_and_the_command(tmp_path: Path) -> None:
    """From an empty folder, the installed wheel alone knows the sweeps."""
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [entry_points] = [name for name in names if name.endswith("entry_points.txt")]
        assert b"cifar-sweep = cifar_sweep.cli:main" in archive.read(entry_points)
        archive.extractall(tmp_path / "installed")
    shipped = {f"cifar_sweep/sweeps/{path.name}" for path in (ROOT / "sweeps").glob("*.toml")}
    assert shipped
    assert shipped <= set(names)
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cifar_sweep").rglob("templates/*.*")}
    assert {Path(name).suffix for name in templates} >= {".jinja", ".html"}
    assert templates <= set(names)
    assert "cifar_sweep/training/lanes/lanes.c" in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]
    script = f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r}); sys.argv[1:] = ['run', 'nothing']; " + (
        "import cifar_sweep; print(cifar_sweep.__file__); from cifar_sweep.cli import main; main()"
    )
    (tmp_path / "empty").mkdir()
    refused = subprocess.run([sys.executable, "-c", script], cwd=tmp_path / "empty", capture_output=True, text=True)
    assert str(tmp_path / "installed") in refused.stdout
    assert "lr_batch" in refused.stderr, "what it knows instead"
    assert refused.returncode == 2
