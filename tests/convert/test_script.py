"""Sweeps in Python scripts and notebooks: what their dicts and assignments say is read, and nothing of them is run."""

import json
from pathlib import Path
from typing import Any

import pytest

from cifar_sweep.convert.foreign import Foreign
from cifar_sweep.convert.reading import read
from cifar_sweep.convert.writing import as_toml
from cifar_sweep.errors import UsageError

PIECEMEAL = """
usual = {'size': 64, 'rate': 3e-3}
study = {'method': 'random'}
study['parameters'] = {}
study['parameters'].update({'batch_size': {'value': usual['size']}})
study['parameters']['lr'] = {'values': [usual['rate'], 1e-2]}
study['parameters'].update(epochs={'value': 3})
"""
CALLED = """
def study(kind):
    return dict(method=kind, metric=dict(name='val_loss', goal='minimize'),
                parameters=dict(lr=dict(min=0.001, max=0.1), epochs={'value': kind}))
"""
IN_PLACE = (
    "class Study:\n    key = wandb.sweep(sweep={'method': 'grid', 'parameters': {'lr': {'values': [0.1, 0.2]}}})\n"
)
COMPUTED = """
SIZES = list(range(16, 49, 16))
prefix = 'learning'
config: dict = {'method': 'grid', 'parameters': {
    'filters': {'values': [2 ** k for k in range(4, 7)]},
    'kernel_size': {'values': [[3] * 3, [5] + [3] * 2]},
    'dense_units': {'values': SIZES},
    f'{prefix}_rate': {'values': [1 / 10, -1e-3 + 2e-3]},
    **{'epochs': {'value': 7 // 2}},
    'dropout': {'values': [random() for k in range(2)]},
}}
"""


def found_in(tmp_path: Path, text: str, name: str = "study.py") -> Foreign:
    (tmp_path / name).write_text(text)
    return read(tmp_path / name)


def values_of(foreign: Foreign) -> dict[str, Any]:
    """The values or ends of each parameter; of one that is not known why."""
    return {each.name: each.reason or each.values or [each.low, each.high] for each in foreign.asked}


def test_entries_that_are_given_one_after_another_are_all_read(tmp_path: Path) -> None:
    foreign = found_in(tmp_path, PIECEMEAL)
    assert values_of(foreign) == {"batch_size": [64], "lr": [0.003, 0.01], "epochs": [3]}


def test_a_sweep_may_be_a_call_of_dict_in_a_function(tmp_path: Path) -> None:
    foreign = found_in(tmp_path, CALLED)
    assert (foreign.metric, foreign.goal) == ("val_loss", "minimize")
    assert values_of(foreign) == {
        "lr": [0.001, 0.1],
        "epochs": "it is computed by the program, which is not run here",
    }


def test_a_sweep_may_stand_where_it_is_used(tmp_path: Path) -> None:
    assert values_of(found_in(tmp_path, IN_PLACE)) == {"lr": [0.1, 0.2]}


def test_numbers_that_are_reckoned_from_numbers_are_known(tmp_path: Path) -> None:
    assert values_of(found_in(tmp_path, COMPUTED)) == {
        "filters": [16, 32, 64],
        "kernel_size": [[3, 3, 3], [5, 3, 3]],
        "dense_units": [16, 32, 48],
        "learning_rate": [0.1, 0.001],
        "epochs": [3],
        "dropout": "it is computed by the program, which is not run here",
    }


def test_a_name_in_a_function_is_not_that_of_the_script(tmp_path: Path) -> None:
    text = """
lr = 0.5
def study(lr):
    return {"parameters": {"lr": {"values": [lr]}, "bs": {"values": [SIZE]}}}
SIZE = 8
"""
    found = values_of(found_in(tmp_path, text))
    assert found == {"lr": "it is computed by the program, which is not run here", "bs": [8]}


def test_what_a_loop_names_is_not_taken_for_its_last_value(tmp_path: Path) -> None:
    text = "p = {}\nk = 1\nfor k in (3, 5):\n    p[f'kernel_{k}'] = {'value': k}\nstudy = {'parameters': p}\n"
    assert list(values_of(found_in(tmp_path, text)).values()) == [
        "it is computed by the program, which is not run here"
    ]


@pytest.mark.parametrize(("agents", "trials"), [("", None), ("12", 12), ("12 12", 12), ("12 20", None)])
def test_the_runs_that_agents_are_told_to_make_are_the_trials(tmp_path: Path, agents: str, trials: int | None) -> None:
    calls = [f"wandb.agent(key, function=train, count={count})" for count in agents.split()]
    text = "key = wandb.sweep({'method': 'random', 'parameters': {'lr': {'values': [1, 2]}}})\n"
    assert found_in(tmp_path, "\n".join([text, *calls])).trials == trials


def test_of_several_sweeps_the_others_are_named(tmp_path: Path) -> None:
    text = (
        "a = {'parameters': {'lr': {'value': 1}, 'bs': {'value': 2}}}\nb = {'parameters': {'epochs': {'value': 3}}}\n"
    )
    foreign = found_in(tmp_path, text)
    assert list(values_of(foreign)) == ["lr", "bs"]
    assert foreign.others == {"another sweep, at line 2": "epochs"}


def test_magics_of_a_notebook_are_passed_over(tmp_path: Path) -> None:
    text = "!pip install wandb \\\n  numpy\n%matplotlib inline\npip install torch\nfor k in ():\n    !ls\nfiles = !ls\n"
    assert values_of(found_in(tmp_path, text + IN_PLACE)) == {"lr": [0.1, 0.2]}


def test_a_notebook_is_read_but_for_cells_that_are_no_python(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["config['parameters']['bs'] = {'value': 2}"]},
        {"cell_type": "code", "source": ["config = {'method': 'grid',\n", " 'parameters': {'lr': {'value': 1}}}"]},
        {"cell_type": "code", "source": "%%bash\nls | wc"},
        {"cell_type": "code", "source": "config['parameters']['epochs'] = {'value': 3}\n!ls"},
    ]
    foreign = found_in(tmp_path, json.dumps({"cells": cells}), "study.ipynb")
    assert values_of(foreign) == {"lr": [1], "epochs": [3]}


def test_a_search_space_of_nni_in_a_script_has_its_experiment_beside_it(tmp_path: Path) -> None:
    text = (
        "space = {'lr': {'_type': 'loguniform', '_value': [1e-4, 0.1]}}\nexperiment = Experiment('local')\n"
        "experiment.config.search_space = space\nexperiment.config.max_trial_number = 9\n"
        "experiment.config.tuner.name = 'Random'\nexperiment.config.tuner.class_args['optimize_mode'] = 'minimize'\n"
    )
    foreign = found_in(tmp_path, text)
    assert (foreign.tool, foreign.method, foreign.trials, foreign.goal) == ("NNI", "Random", 9, "minimize")


@pytest.mark.parametrize("text", ["s = {'parameters': {}}", "s = {'parameters': vars(args)}", "parameters = 1", "def"])
def test_a_script_without_parameters_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"study\.py: .*accepted: a W&B sweep"):
        found_in(tmp_path, text)


def test_large_numbers_are_not_reckoned(tmp_path: Path) -> None:
    text = "s = {'parameters': {'lr': {'value': 9 ** 9 ** 9}, 'bs': {'values': [0] * 10 ** 9}, 'x': {'value': 1 / 0}}}"
    assert set(values_of(found_in(tmp_path, text)).values()) == {"it is computed by the program, which is not run here"}


@pytest.mark.parametrize(
    "change",
    [
        "rates.append(0.3)",
        "study['parameters']['lr']['values'] += [0.3]",
        "rates.extend([0.3])",
        "study['parameters']['bs'] = {'value': 5}; del study['parameters']['bs']; rates.append(0.3)",
        "study['parameters'] |= {'bs': {'value': 5}}; study['parameters'].pop('bs'); rates.insert(2, 0.3)",
    ],
)
def test_lists_and_dicts_may_change_after_they_were_written(tmp_path: Path, change: str) -> None:
    text = "rates = [0.1, 0.2]\nstudy = {'parameters': {'lr': {'values': rates}}}\n" + change
    assert values_of(found_in(tmp_path, text)) == {"lr": [0.1, 0.2, 0.3]}


@pytest.mark.parametrize("change", ["sizes.append(first)", "sizes.pop(first)", "for k in x:\n  sizes.append(1)"])
def test_a_change_that_is_not_known_leaves_nothing_known(tmp_path: Path, change: str) -> None:
    text = f"sizes = [16, 32]\n{change}\nstudy = {{'parameters': {{'bs': {{'values': sizes}}}}}}\n"
    assert values_of(found_in(tmp_path, text)) == {"bs": "it is computed by the program, which is not run here"}


@pytest.mark.parametrize("change", ["if short:\n  most = 1", "for k in x:\n  most += 1", "most += short"])
def test_a_name_of_two_values_has_none(tmp_path: Path, change: str) -> None:
    text = f"most = 9\n{change}\nstudy = {{'parameters': {{'epochs': {{'value': most}}}}}}\n"
    assert values_of(found_in(tmp_path, text)) == {"epochs": "it is computed by the program, which is not run here"}


def test_what_may_never_be_run_is_said(tmp_path: Path) -> None:
    text = """
study = {'parameters': {'lr': {'values': [0.1, 0.2]}, 'epochs': {'value': 9}}}
if short:
    study['parameters']['epochs'] = {'value': 1}
    study['parameters']['bs'] = {'value': 8}
def wide():
    study['parameters']['lr']['values'].append(0.3)
    mine = {}
    mine['parameters'] = {}
if __name__ == '__main__':
    study['parameters']['dropout'] = {'value': 0.5}
"""
    foreign = found_in(tmp_path, text)
    assert values_of(foreign) == {"lr": [0.1, 0.2, 0.3], "epochs": [9], "bs": [8], "dropout": [0.5]}
    assert foreign.others == {
        "not taken, line 4": "study['parameters']['epochs']",
        "taken, line 5": "study['parameters']['bs']",
        "taken, line 7": "study['parameters']['lr']['values'].append(0.3)",
    }
    assert (
        "# taken, line 5: study['parameters']['bs']: the program may never run it" in as_toml(foreign, source="s").text
    )


def test_entries_of_any_kind_and_circles_do_no_harm(tmp_path: Path) -> None:
    text = "seen = {}\nseen[(1, 2)] = seen\nif x:\n    seen['a'] = [seen]\n"
    assert values_of(found_in(tmp_path, text + IN_PLACE)) == {"lr": [0.1, 0.2]}


def test_of_several_search_spaces_of_nni_the_others_are_named(tmp_path: Path) -> None:
    text = "a = {'lr': {'_type': 'choice', '_value': [1]}}\nb = {'bs': {'_type': 'choice', '_value': [2]}}\n"
    foreign = found_in(tmp_path, text)
    assert values_of(foreign) == {"bs": [2]}
    assert foreign.others["another sweep, at line 1"] == "lr"


def test_ends_that_are_written_as_logarithms_are_exponents(tmp_path: Path) -> None:
    ends = "'min': np.log(16), 'max': log(64)"
    text = f"s = {{'parameters': {{'bs': {{'distribution': 'q_log_uniform', 'q': 1, {ends}}}}}}}"
    done = as_toml(found_in(tmp_path, text), source="s")
    assert not done.questions
    assert "batch_size = { low = 16, high = 64, log = true }" in done.text


@pytest.mark.parametrize(
    "said", ["int('9')", "max(9, 3)", "len([1] * 9)", "round(8.7)", "sum([4, 5])", "abs(int(-9.5))"]
)
def test_numbers_from_numbers_by_usual_functions_are_known(tmp_path: Path, said: str) -> None:
    assert values_of(found_in(tmp_path, f"s = {{'parameters': {{'epochs': {{'value': {said}}}}}}}")) == {"epochs": [9]}


@pytest.mark.parametrize(
    "said", ["len(x)", "min(x, 3)", "len([x])", "int(x)", "sum([1, x])", "int('x')", "max(3, y=2)"]
)
def test_numbers_from_what_is_not_known_are_not(tmp_path: Path, said: str) -> None:
    reason = "it is computed by the program, which is not run here"
    assert values_of(found_in(tmp_path, f"s = {{'parameters': {{'e': {{'value': {said}}}}}}}")) == {"e": reason}


@pytest.mark.filterwarnings("error")
def test_what_python_says_of_a_script_is_not_said_again(tmp_path: Path) -> None:
    assert values_of(found_in(tmp_path, "a = '\\d'\nif a is 1:\n    pass\n" + IN_PLACE)) == {"lr": [0.1, 0.2]}
