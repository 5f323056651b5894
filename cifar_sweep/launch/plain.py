"""The loop that the reports wrote, to measure ours against: in `bench`, and in the peers of `benchmarks/`.

PIL images through ToTensor in a DataLoader, the network in float32, Adam, and ``.item()`` in each step.
"""

import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from torchvision import transforms  # type: ignore[import-untyped]

from cifar_sweep.config import TrialConfig
from cifar_sweep.training.models import build


class PilImages(Dataset[tuple[torch.Tensor, int]]):
    """Images as torchvision's CIFAR10 hands them out: a PIL image made from an array, then ToTensor."""

    def __init__(self, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        self.pixels = pixels.numpy()
        self.labels = labels.tolist()
        self.transform = transforms.ToTensor()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


class PlainTraining:
    """One trial as the reports train it: the network in float32, Adam, and ``.item()`` in each step.

    Attributes:
        loss: the sum of the images' losses so far.
        right: how many images were named right so far.
    """

    def __init__(self, config: TrialConfig, *, device: torch.device) -> None:
        self.device = device
        self.network = build(config.shape, seed=0).to(device).train()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.knobs.learning_rate)
        self.criterion = nn.CrossEntropyLoss()
        self.loss = 0.0
        self.right = 0.0

    def step(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Train on one batch."""
        inputs, labels = inputs.to(self.device), labels.to(self.device)
        self.optimizer.zero_grad()
        outputs = self.network(inputs)
        loss = self.criterion(outputs, labels)
        loss.backward()
        self.optimizer.step()
        self.loss += loss.item() * len(labels)
        self.right += (outputs.argmax(dim=1) == labels).sum().item()
