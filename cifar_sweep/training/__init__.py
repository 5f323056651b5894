"""The torch column: data, models and the one training loop. It knows no study, no SQL and no TOML."""
