"""The jobs behind `configs/`: each turns a checked config into a folder of results. ConfigDict is used here only."""
