"""Jobs that are killed again and again until they end, and compared with jobs that were left alone."""
