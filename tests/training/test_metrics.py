"""What trials are chosen by besides loss and accuracy: against plain loops, and in a group as alone."""

from typing import Any

import pytest
import torch

from cifar_sweep.config import TrialConfig
from cifar_sweep.training import metrics
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.train import Run


def plain_f1(named: list[int], right: list[int], classes: int) -> float:
    scores = []
    for each in range(classes):
        both = sum(n == r == each for n, r in zip(named, right, strict=True))
        wrong = sum((n == each) != (r == each) for n, r in zip(named, right, strict=True))
        scores.append(2 * both / (2 * both + wrong) if both else 0.0)
    return sum(scores) / classes


def plain_top5(logits: list[list[float]], right: list[int]) -> float:
    best = [sorted(range(len(row)), key=lambda k: -row[k])[:5] for row in logits]
    return sum(each in five for five, each in zip(best, right, strict=True)) / len(right)


def test_they_are_what_plain_loops_count() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 200, 7), torch.randint(6, (200,))  # the last class is never there
    batches = [(logits[:, k : k + 64], labels[k : k + 64]) for k in range(0, 200, 64)]

    def measured(metric: str) -> list[float]:
        counts = [metrics.counts(metric, *batch) for batch in batches]
        return metrics.figures([each for each in counts if each is not None], images=200).tolist()

    right = labels.tolist()
    assert measured("f1") == pytest.approx([plain_f1(each.argmax(1).tolist(), right, 7) for each in logits])
    assert measured("top5") == pytest.approx([plain_top5(each.tolist(), right) for each in logits])
    assert metrics.counts("accuracy", logits, labels) is metrics.counts("loss", logits, labels) is None


def trained(data: ImageData, *rates: float, **params: Any) -> Run:
    small = {"model": "lenet", "batch_size": 32, "epochs": 4} | params
    run = Run(
        [
            TrialConfig.from_params(
                small | {"learning_rate": rate}, classes=10, precision="fp32", data_seed=7, seed=seed
            )
            for seed, rate in enumerate(rates)
        ],
        data,
        device=torch.device("cpu"),
    )
    for _ in range(4):
        run.epoch()
    return run


@pytest.mark.parametrize("metric", ["loss", "f1", "top5"])
def test_the_weights_are_those_of_the_best_epoch_by_the_metric(small_data: ImageData, metric: str) -> None:
    plain, group = trained(small_data, 0.01, 0.02), trained(small_data, 0.01, 0.02, metric=metric)
    field = {"loss": "validation_loss", "f1": "validation_f1", "top5": "validation_top5"}[metric]
    for member, other in zip(group.members, plain.members, strict=True):
        values = [getattr(result, field) for result in member.history]
        best = values.index(min(values) if metric == "loss" else max(values))
        # The training is the same; only which weights are kept is another question.
        assert [each.validation_loss for each in member.history] == [each.validation_loss for each in other.history]
        assert torch.equal(member.correct.float().mean(), torch.tensor(member.history[best].validation_accuracy))
        stored = {"validation_f1", "validation_top5"} & member.history[0].to_dict().keys()
        assert stored == {field} - {"validation_loss"}
    alone = trained(small_data, 0.01, metric=metric)
    mine, its = ([getattr(result, field) for result in run.members[0].history] for run in (alone, group))
    assert mine == pytest.approx(its, abs=0.02)


def test_a_run_chosen_by_f1_goes_on_bit_for_bit(small_data: ImageData) -> None:
    whole = trained(small_data, 0.01, metric="f1")
    half = trained(small_data, 0.01, metric="f1")
    fresh = Run([half.members[0].config], small_data, device=torch.device("cpu"))
    fresh.restore(0, whole.state(0))
    assert fresh.members[0].history == whole.members[0].history
    assert all(torch.equal(fresh.members[0].best_weights[k], v) for k, v in whole.members[0].best_weights.items())
