"""What to train next: a model of learning curves, and choices made with it. Knows no database and no network."""
