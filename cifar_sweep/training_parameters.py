"""The parameters of how networks are trained, and of how their images are changed. Standard library only."""

from cifar_sweep.parameter import Parameter, Value

OPTIMIZER_NAMES = ("sgd", "nesterov", "adam", "adamw", "nadam", "adamax", "adagrad", "adadelta", "rmsprop", "asgd")
_ADAMS = {"optimizer": ("adam", "adamw", "nadam", "adamax")}
_LOWEST = {"schedule": ("cosine", "warm_restarts", "plateau", "cyclic", "polynomial")}
_CYCLIC: dict[str, tuple[Value, ...]] = {"schedule": ("cyclic",)}
_ASGD: dict[str, tuple[Value, ...]] = {"optimizer": ("asgd",)}
_RESTARTS, _ONECYCLE, _PLATEAU = ({"schedule": (name,)} for name in ("warm_restarts", "onecycle", "plateau"))
SCHEDULE_NAMES = (
    "step", "none", "cosine", "warm_restarts", "onecycle", "exponential", "multistep", "polynomial", "plateau",
    "cyclic",
)  # fmt: skip
# What is counted in epochs of a trial, and is cut with them.
SCHEDULE_LENGTHS = (
    "step_size", "warmup_epochs", "milestones", "cosine_epochs", "restart_epochs", "plateau_patience", "cycle_up",
    "cycle_down", "freeze_epochs", "patience",
)  # fmt: skip
WEIGHT = r"\d*\.?\d+(e-?\d{1,2})?"

# How all networks are trained; what is off where it is not given.
TRAINING: dict[str, Parameter] = {
    "beta1": Parameter(float, 0.9, "share of mean gradients that is kept", high=1, high_is_open=True, only_if=_ADAMS),
    "beta2": Parameter(float, 0.999, "share of mean squares that is kept", high=1, high_is_open=True, only_if=_ADAMS),
    "amsgrad": Parameter(bool, False, "the largest mean square so far", only_if={"optimizer": ("adam", "adamw")}),
    "eps": Parameter(
        float, 0.0, "added to what is divided by; 0 is the optimizer's own", high=1,
        only_if={"optimizer": tuple(name for name in OPTIMIZER_NAMES if name not in ("sgd", "nesterov", "asgd"))},
    ),
    "alpha": Parameter(
        float, 0.99, "share of the mean square that is kept", high=1, high_is_open=True,
        only_if={"optimizer": ("rmsprop",)},
    ),
    "rho": Parameter(
        float, 0.9, "share of the mean square that is kept", high=1, high_is_open=True,
        only_if={"optimizer": ("adadelta",)},
    ),
    "dampening": Parameter(
        float, 0.0, "share of a gradient that does not enter the momentum", high=1, high_is_open=True,
        only_if={"optimizer": ("sgd",)},
    ),
    "asgd_decay": Parameter(float, 1e-4, "how fast weights and steps shrink", high=1, only_if=_ASGD),
    "asgd_power": Parameter(float, 0.75, "the exponent by which steps shrink", high=10, only_if=_ASGD),
    "schedule": Parameter(str, "step", "how the learning rate goes from epoch to epoch", choices=SCHEDULE_NAMES),
    "warmup_epochs": Parameter(
        int, 0, "epochs in which the learning rate grows from 0 first", high=100_000,
        only_if={"schedule": tuple(name for name in SCHEDULE_NAMES if name != "onecycle")},
    ),
    "milestones": Parameter(
        int, 0, "epochs after which it decays; 0 is half and three quarters of all", high=100_000, listed=True,
        each="decay", only_if={"schedule": ("multistep",)},
    ),
    "cosine_epochs": Parameter(
        int, 0, "epochs of half a cosine; 0 is all", high=100_000, only_if={"schedule": ("cosine",)}
    ),
    "restart_epochs": Parameter(int, 10, "epochs until the first restart", low=1, high=100_000, only_if=_RESTARTS),
    "restart_factor": Parameter(int, 1, "how many times as long each cycle is", low=1, high=100, only_if=_RESTARTS),
    "lowest_rate": Parameter(float, 0.0, "the lowest learning rate", high=1000, only_if=_LOWEST),
    "onecycle_peak": Parameter(float, 0.3, "share of epochs until the peak", low=0.01, high=0.99, only_if=_ONECYCLE),
    "onecycle_start": Parameter(float, 25.0, "the peak over the first rate", low=1, high=1e12, only_if=_ONECYCLE),
    "onecycle_end": Parameter(float, 1e4, "the first rate over the last", low=1, high=1e12, only_if=_ONECYCLE),
    "cycle_up": Parameter(int, 10, "epochs from the lowest rate to the highest", low=1, high=100_000, only_if=_CYCLIC),
    "cycle_down": Parameter(int, 0, "epochs back again; 0 is as many", high=100_000, only_if=_CYCLIC),
    "cycle_mode": Parameter(
        str, "triangular", "whether each cycle is half as high as the last, as in triangular2",
        choices=("triangular", "triangular2"), only_if=_CYCLIC,
    ),
    "polynomial_power": Parameter(float, 1.0, "the exponent", high=100, only_if={"schedule": ("polynomial",)}),
    "plateau_factor": Parameter(
        float, 0.1, "factor of each decay", low=1e-6, high=1, high_is_open=True, only_if=_PLATEAU
    ),
    "plateau_patience": Parameter(
        int, 10, "epochs without a lower validation loss before a decay", high=100_000, only_if=_PLATEAU
    ),
    "loss": Parameter(
        str, "cross_entropy", "what is made small; mse and bce are of probabilities, the mean of the classes; f1 is 1 "
        "less the mean F1",
        choices=("cross_entropy", "focal", "mse", "bce", "f1"),
    ),
    "focal_gamma": Parameter(float, 2.0, "how little sure images count", high=100, only_if={"loss": ("focal",)}),
    "label_smoothing": Parameter(
        float, 0.0, "share of an image's class that all classes are given alike", high=1, high_is_open=True
    ),
    "class_weights": Parameter(
        str, "none", "how much images of a class count; balanced is by how rare it is", choices=("none", "balanced"),
        pattern=WEIGHT, pattern_words="numbers", listed=True, each="class",
    ),
    "l1": Parameter(float, 0.0, "L1 penalty", high=1000),
    "gradient_clip": Parameter(float, 0.0, "the greatest norm of the gradient; 0 is none", high=1e6),
    "ema_decay": Parameter(
        float, 0.0, "share that a running mean of the weights keeps in a step; that mean is validated; 0 is none",
        high=1, high_is_open=True,
    ),
    "head_rate": Parameter(
        float, 0.0, "the learning rate of the last layer, which follows the schedule, too; 0 is that of all", high=1000
    ),
    "bias_rate": Parameter(float, 1.0, "how many times the learning rate biases have", high=1e6),
    "freeze_epochs": Parameter(int, 0, "epochs in which the last layer alone is trained", high=100_000),
    "batch_norm_momentum": Parameter(
        float, 0.1, "share of a batch in batch normalisation's statistics", low=1e-6, high=1,
        only_if={"batch_norm": (True,)},
    ),
}  # fmt: skip

AUGMENTATION_NAMES = ("none", "flip", "crop", "affine", "color", "autoaugment", "randaugment", "trivialaugment")
# Of training images. A strength of 0 is that of the set, which is 0 in `none`.
AUGMENTATION: dict[str, Parameter] = {
    "augmentation": Parameter(
        str, "none",
        "how training images are changed: flip mirrors half of them; crop also shifts them by up to an eighth; affine "
        "is shift 0.1, rotation 15, zoom 0.1; color is color 0.2; the others are crop and torchvision's policy",
        choices=AUGMENTATION_NAMES,
    ),
    "flip": Parameter(float, 0.0, "share of images that are mirrored; 0 is as augmentation has it", high=1),
    "shift": Parameter(float, 0.0, "the largest shift, as a share of the side; 0 is as augmentation has it", high=1),
    "rotation": Parameter(float, 0.0, "the largest angle in degrees; 0 is as augmentation has it", high=180),
    "zoom": Parameter(
        float, 0.0, "how much larger or smaller at most, as a share; 0 is as augmentation has it", high=0.9
    ),
    "color": Parameter(
        float, 0.0, "the largest change of brightness, contrast, saturation, a share; 0 is as augmentation has it",
        high=1,
    ),
    "vertical_flip": Parameter(float, 0.0, "share of images that are turned upside down", high=1),
    "brightness": Parameter(float, 0.0, "the largest change of brightness, a share; 0 is as color has it", high=1),
    "contrast": Parameter(float, 0.0, "that of contrast, likewise", high=1),
    "saturation": Parameter(float, 0.0, "that of saturation, likewise", high=1),
    "randaugment_operations": Parameter(
        int, 2, "how many changes an image gets", low=1, high=8, only_if={"augmentation": ("randaugment",)}
    ),
    "randaugment_magnitude": Parameter(
        int, 9, "how large they are", high=30, only_if={"augmentation": ("randaugment",)}
    ),
    "cutout": Parameter(int, 0, "side in pixels of a square that is blanked", high=512),
    "mixup": Parameter(float, 0.0, "images are mixed by shares of Beta(alpha, alpha); 0 is off", high=100),
    "cutmix": Parameter(
        float, 0.0, "boxes of such shares are pasted from others; beside mixup every other time", high=100
    ),
    "mix_probability": Parameter(float, 1.0, "share of batches in which mixup or cutmix acts", high=1),
}  # fmt: skip
CHANGES = tuple(AUGMENTATION)  # the parameters that change training images
