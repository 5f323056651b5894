"""What is taken away: networks as files that stand by themselves."""
