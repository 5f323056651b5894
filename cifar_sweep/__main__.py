"""``python -m cifar_sweep`` is ``cifar-sweep``."""

from cifar_sweep.cli import main

if __name__ == "__main__":
    main()
