"""cifar-sweep: hyperparameter sweeps for CIFAR-sized convolutional networks."""

__version__ = "0.1.0"
