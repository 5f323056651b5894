"""The package keeps the limits of its size; `benchmarks/size.py` has them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import size
from benchmarks.size import Size, measure


@pytest.fixture(scope="module")
def package() -> Size:
    return measure(size.PACKAGE)


# Not kept: searching with learning curves, images and databases as people have them came on top of what just kept it.
NOT_YET = pytest.param(size.over_lines, marks=pytest.mark.xfail(strict=True))


@pytest.mark.parametrize("limit", [size.over_rooms, size.over_median, size.over_functions, size.over_modules, NOT_YET])
def test_the_package_keeps_its_limits(limit: Callable[[Size], list[str]], package: Size) -> None:
    assert limit(package) == []


def test_what_is_over_a_limit_is_seen(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    lines = "\n".join(f"    a = {n}" for n in range(size.MOST_LINES))
    (tmp_path / "room" / "large.py").write_text(f"def long():\n{lines}\n")
    (tmp_path / "small.py").write_text("def short():\n    pass\n\n\nasync def other():\n    pass\n")
    found = measure(tmp_path)
    assert found.modules == {"room/large.py": size.MOST_LINES + 1, "small.py": 6}
    assert sorted(found.functions.values()) == [2, 2, size.MOST_LINES + 1]
    for limit in (size.over_lines, size.over_rooms, size.over_functions, size.over_modules):
        assert len(limit(found)) == 1
    assert size.over_median(found) == []
    assert len(size.over_median(Size({}, {"a": 9, "b": 9, "c": 1}))) == 1
