"""The figures of a study, by name."""

from collections.abc import Callable

import plotly.graph_objects as go  # type: ignore[import-untyped]

from cifar_sweep.figures import search_figures as search
from cifar_sweep.figures.curve_figures import learning_curves
from cifar_sweep.figures.parallel_figures import correlation, correlations_of, parallel
from cifar_sweep.figures.timeline import timeline
from cifar_sweep.figures.trial_figures import front, history, pruned_when, seconds_by_trial
from cifar_sweep.study.study import SweepStudy, data_words

CURVES = 5
FIGURES: dict[str, Callable[[SweepStudy], go.Figure]] = {
    "history": lambda study: history(study.trials()),
    "learning_curves": lambda study: learning_curves(study.ranked()[:CURVES], data=data_words(study)),
    "pruned_when": lambda study: pruned_when(study.trials(), epochs_searched="epochs" in study.sweep.space),
    "importance": lambda study: search.importance(search.importances_of(study.trials())),
    "correlation": lambda study: correlation(correlations_of(study.trials())),
    "parallel": lambda study: parallel(study.trials(), list(study.sweep.space)),
    "accuracy_by_learning_rate": lambda study: search.accuracy_by_learning_rate(study.trials(), data=data_words(study)),
    "learning_rate_by_batch": lambda study: search.learning_rate_by_batch(study.trials(), data=data_words(study)),
    "seconds_by_trial": lambda study: seconds_by_trial(study.trials(), data=data_words(study)),
    "accuracy_by_time": lambda study: front(study.trials()),
    "timeline": lambda study: timeline(study.trials()),
}
