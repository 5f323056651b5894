"""The parameters of a trial as the tables of docs/spaces.md, made from the code: python benchmarks/parameters_table.py

With --write the tables there are replaced.
"""

import sys
from pathlib import Path

from cifar_sweep.config import decides_shape
from cifar_sweep.parameter import Parameter
from cifar_sweep.parameters import BY_LAYER, MODEL_NAMES, NAMES, PARAMETERS, traits

DOCS = Path(__file__).parent.parent / "docs" / "spaces.md"
BEGIN, END = "<!-- made by benchmarks/parameters_table.py -->", "<!-- end -->"


def row(name: str) -> str:
    """A parameter as a line of the table."""
    each = PARAMETERS[name]
    default = str(each.default).lower() if each.kind is bool else each.default
    split = "apart" if decides_shape(name) else "together"
    return f"| `{name}` | {_words(name, each)} | {each.accepted()} | {default} | {_where(name, each)} | {split} |"


def _words(name: str, each: Parameter) -> str:
    return f"{each.words}; by layer as `{name}_2`" if name in BY_LAYER else each.words


def _where(name: str, each: Parameter) -> str:
    models = [model for model in (*MODEL_NAMES, "torchvision:resnet18", "my:build") if name in traits(model)[0]]
    kinds = {
        "every": len(models) == len(MODEL_NAMES) + 2,
        "`cnn`": models == ["cnn"],
        "torchvision, timm": models == ["torchvision:resnet18"],
    }
    place = next((words for words, found in kinds.items() if found), "those that have it")
    beside = {other: ", ".join(str(value).lower() for value in values) for other, values in each.only_if.items()}
    return "; ".join([place, *(f"`{other}` = {values}" for other, values in beside.items())])


def table() -> str:
    """All of them."""
    head = "| parameter | what it is | accepted | default | networks, and beside what | trials train |"
    return "\n".join([head, "|---" * 6 + "|", *map(row, NAMES)])


def main() -> None:
    if "--write" not in sys.argv:
        print(table())
        return
    text = DOCS.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    DOCS.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")


if __name__ == "__main__":
    main()
