"""What is done to training images is what torchvision does, pixel for pixel, with the same draws."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import _auto_augment as theirs
from torchvision.transforms.v2 import functional

from cifar_sweep.config import Shape, TrialConfig
from cifar_sweep.training.augmentation import Augmented, augmented
from cifar_sweep.training.batches import Batches
from cifar_sweep.training.images.data import ImageData
from cifar_sweep.training.policies import POLICIES, Policy

CPU = torch.device("cpu")


def shape(**params: Any) -> Shape:
    return TrialConfig.from_params(params, classes=10, precision="fp32", data_seed=7, seed=0).shape


def changed(**params: Any) -> Augmented:
    made = augmented(shape(**params), 3)
    assert made is not None
    return made


def pictures(count: int = 40, *, side: int = 32) -> Tensor:
    """Bytes [n, side, side, 3], smooth enough for a pixel to look like its neighbours."""
    small = torch.randint(256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return functional.resize(small, [side, side]).permute(0, 2, 3, 1).contiguous()


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """All that is drawn from a generator."""
    seen: list[Tensor] = []
    for name in ("rand", "randint"):
        draw = getattr(torch, name)

        def noted(*arguments: Any, draw: Any = draw, **options: Any) -> Tensor:
            found: Tensor = draw(*arguments, **options)
            if "generator" in options:
                seen.append(found)
            return found

        monkeypatch.setattr(torch, name, noted)
    return seen


@pytest.mark.parametrize(("name", "side", "pad"), [("flip", 32, 0), ("crop", 32, 4), ("crop", 48, 6)])
def test_mirrored_and_cropped(name: str, side: int, pad: int, draws: list[Tensor]) -> None:
    images = pictures(side=side)
    found = changed(augmentation=name).moved(images)
    (down, right), mirrored = draws[-2], draws[-1] < 0.5
    assert 0 < mirrored.sum() < len(images)
    assert down.max() == 2 * pad
    for k, image in enumerate(images.permute(0, 3, 1, 2)):
        expected = functional.crop(functional.pad(image, [pad]), int(down[k]), int(right[k]), side, side)
        expected = functional.horizontal_flip(expected) if mirrored[k] else expected
        assert torch.equal(found[k].permute(2, 0, 1), expected)


def test_turned_zoomed_and_shifted(draws: list[Tensor]) -> None:
    images = pictures(20).permute(0, 3, 1, 2).double() / 255
    draws.clear()
    found = changed(shift=0.2, rotation=30.0, zoom=0.3).coloured(images)
    angles, zooms, shifts = (2 * each - 1 for each in draws)
    for k, image in enumerate(images):
        across, down = (32 * 0.2 * shifts[k, :, 0]).tolist()
        expected = functional.affine(
            image, angle=30.0 * float(angles[k]), translate=[across, down], scale=1 + 0.3 * float(zooms[k]),
            shear=[0.0, 0.0], interpolation=v2.InterpolationMode.BILINEAR,
        )  # fmt: skip
        torch.testing.assert_close(found[k], expected, rtol=0, atol=1e-6)


def test_colours(draws: list[Tensor]) -> None:
    images = pictures(20).permute(0, 3, 1, 2).double() / 255
    draws.clear()
    found = changed(augmentation="color", color=0.5).coloured(images)
    for k, image in enumerate(images):
        bright, contrast, saturation = (1 + 0.5 * (2 * draws[0][:, k, 0, 0, 0] - 1)).tolist()
        expected = functional.adjust_contrast(functional.adjust_brightness(image, bright), contrast)
        torch.testing.assert_close(found[k], functional.adjust_saturation(expected, saturation))


def test_each_part_of_colour_has_a_strength_of_its_own(draws: list[Tensor]) -> None:
    images = pictures(20).permute(0, 3, 1, 2).double() / 255
    draws.clear()
    found = changed(brightness=0.5, saturation=0.2).coloured(images)
    for k, image in enumerate(images):
        bright, _, saturation = (2 * draws[0][:, k, 0, 0, 0] - 1).tolist()
        expected = functional.adjust_saturation(
            functional.adjust_brightness(image, 1 + 0.5 * bright), 1 + 0.2 * saturation
        )
        torch.testing.assert_close(found[k], expected)


def test_upside_down(draws: list[Tensor]) -> None:
    images = pictures()
    found = changed(vertical_flip=0.4).moved(images)
    turned = draws[-1].flatten() < 0.4
    assert 0 < turned.sum() < len(images)
    for k, image in enumerate(images.permute(0, 3, 1, 2)):
        expected = functional.vertical_flip(image) if turned[k] else image
        assert torch.equal(found[k].permute(2, 0, 1), expected)


def as_theirs(name: str, draws: list[Tensor], k: int) -> Iterator[float]:
    """What torchvision would have drawn for image `k`, in its order."""
    policy = Policy(name.partition(":")[0])._policy
    if name == "autoaugment":
        [chosen, (taken, signs)] = draws
        yield chosen[k]
        for place in range(2):
            yield taken[place][k]
            operation, probability, _ = policy._policies[int(chosen[k])][place]
            if taken[place][k] <= probability and policy._AUGMENTATION_SPACE[operation][1]:
                yield signs[place][k]
        return
    bins = draws[:-2]
    for place, (chosen, sign) in enumerate(zip(draws[-2], draws[-1], strict=True)):
        yield chosen[k]
        operation = list(policy._AUGMENTATION_SPACE)[int(chosen[k])]
        make, signed = policy._AUGMENTATION_SPACE[operation]
        if bins and make(31, 32, 32) is not None:
            yield bins[0][place][k]
        if signed:
            yield sign[k]


@pytest.mark.parametrize("name", [*POLICIES, "randaugment:3:20"])
def test_a_policy_is_that_of_torchvision(name: str, draws: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(150).permute(0, 3, 1, 2)
    draws.clear()
    policy_name, *numbers = name.split(":")
    own = dict(zip(("operations", "magnitude"), map(int, numbers), strict=False))
    found = Policy(policy_name, **own)(images, torch.Generator().manual_seed(0))
    told = list(draws)
    make = {
        "autoaugment": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), "randaugment": v2.RandAugment,
        "randaugment:3:20": lambda: v2.RandAugment(3, 20),
        "trivialaugment": v2.TrivialAugmentWide,
    }  # fmt: skip
    policy = make[name]()
    same = 0
    for k, image in enumerate(images):
        answers = as_theirs(name, told, k)
        with monkeypatch.context() as patch:
            patch.setattr(theirs.torch, "rand", lambda *_, a=answers: next(a))
            patch.setattr(theirs.torch, "randint", lambda *_, a=answers: next(a))
            expected = policy(image)
        assert next(answers, None) is None, "all was asked for"
        assert torch.equal(found[k], expected), k
        same += torch.equal(image, expected)
    assert same < 100, "most are changed"


def test_mixup_and_cutmix_are_those_of_torchvision() -> None:
    images, labels = torch.rand(9, 3, 32, 32), torch.arange(9)
    for name, make in (("mixup", v2.MixUp), ("cutmix", v2.CutMix)):
        transform, change = make(num_classes=10), changed(**{name: 0.8})
        for _ in range(5):
            state = change._batches.getstate()
            found, targets = change.mixed(images, labels)
            change._batches.setstate(state)
            share = change._batches.betavariate(0.8, 0.8)
            x, y = change._batches.randrange(32), change._batches.randrange(32)
            change._batches.random()
            params: dict[str, Any] = {"labels": labels, "batch_size": 9, "lam": share}
            if name == "cutmix":
                reach = 0.5 * (1 - share) ** 0.5 * 32
                params["box"] = box = (
                    max(int(x - reach), 0), max(int(y - reach), 0), min(int(x + reach), 32), min(int(y + reach), 32),
                )  # fmt: skip
                params["lam_adjusted"] = 1 - (box[2] - box[0]) * (box[3] - box[1]) / 1024
            torch.testing.assert_close(found, transform.transform(images, params))
            torch.testing.assert_close(targets, transform.transform(labels, params))


def test_both_mixings_take_turns_and_spare_some_batches() -> None:
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6)
    change, plain, pasted = changed(mixup=0.5, cutmix=0.5, mix_probability=0.6), 0, 0
    for _ in range(200):
        found, targets = change.mixed(images, labels)
        assert targets.sum(dim=1).tolist() == pytest.approx([1] * 6)
        plain += torch.equal(found, images) and bool((targets.max(dim=1).values == 1).all())
        either = (found == images) | (found == images.roll(1, 0))
        pasted += bool(either.all()) and not torch.equal(found, images)
    assert 60 <= plain <= 110
    assert 35 <= pasted <= 90


def test_cutout_blanks_a_square_around_a_pixel() -> None:
    found = changed(cutout=8).cut(torch.ones(200, 3, 32, 32))
    blank = (found == 0).sum(dim=(2, 3))
    assert torch.equal(blank[:, 0], blank[:, 1])
    assert blank.max() == 64
    assert blank.min() >= 16
    assert found.mean().item() == pytest.approx(1 - blank.double().mean().item() / 1024)


EVERYTHING: dict[str, Any] = {
    "augmentation": "trivialaugment", "shift": 0.1, "color": 0.3, "cutout": 4, "cutmix": 1.0, "normalize": True,
}  # fmt: skip


def test_what_is_drawn_follows_from_the_seed_of_the_data_and_the_epoch(small_data: ImageData) -> None:
    def first(epoch: int, **params: Any) -> list[tuple[Tensor, Tensor]]:
        batches = Batches(small_data, device=CPU, normalize=True)
        change = augmented(shape(**params), epoch)
        return list(islice(batches.train(16, seed=7, epoch=epoch, change=change), 2))

    one, again, other = first(1, **EVERYTHING), first(1, **EVERYTHING), first(2, **EVERYTHING)
    for (images, labels), (same, same_labels), (different, _) in zip(one, again, other, strict=True):
        assert torch.equal(images, same)
        assert torch.equal(labels, same_labels)
        assert not torch.equal(images, different)
        assert labels.shape == (16, 10)
        assert images.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(first(1, augmentation="crop")[0][0], first(1)[0][0])
    assert torch.equal(first(1, augmentation="crop")[0][1], first(1)[0][1])


def test_validation_images_stay_as_they_are(small_data: ImageData) -> None:
    batches = Batches(small_data, device=CPU)
    before = next(iter(batches.validation()))[0].clone()
    for _ in batches.train(64, seed=7, epoch=1, change=changed(**EVERYTHING)):
        pass
    assert torch.equal(next(iter(batches.validation()))[0], before)


def test_nothing_is_changed_where_nothing_is_asked_for() -> None:
    assert augmented(shape(), 1) is None
