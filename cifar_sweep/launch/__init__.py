"""Where workers are started. Each way only starts `runner.work` somewhere."""
