"""What a run leaves on disk or in a bucket: whole files, checkpoints, metrics, rows of results, event files."""
