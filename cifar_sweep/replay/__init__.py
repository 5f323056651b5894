"""What another strategy would have come to on curves that were trained before. Trains nothing."""
