"""The Optuna column: sweep files, spaces, storage and studies. It knows no tensor."""
