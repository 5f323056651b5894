"""The web dashboard: optuna-dashboard with our notes, figures and files laid over it."""
