"""The figures of a study, by name."""

from collections.abc import Callable

import plotly.graph_objects as go  # type: ignore[import-untyped]

from cifar_sweep.results.figures import accuracy_by_learning_rate, learning_curves
from cifar_sweep.results.hand import data_words
from cifar_sweep.results.search_figures import learning_rate_by_batch, seconds_by_trial
from cifar_sweep.search.study import SweepStudy

CURVES = 5
FIGURES: dict[str, Callable[[SweepStudy], go.Figure]] = {
    "learning_curves": lambda study: learning_curves(study.ranked()[:CURVES], data=data_words(study)),
    "accuracy_by_learning_rate": lambda study: accuracy_by_learning_rate(study.trials(), data=data_words(study)),
    "learning_rate_by_batch": lambda study: learning_rate_by_batch(study.trials(), data=data_words(study)),
    "seconds_by_trial": lambda study: seconds_by_trial(study.trials(), data=data_words(study)),
}
