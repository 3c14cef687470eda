"""The jobs behind `configs/`: a checked config in, a folder of results out. Only this folder sees a ConfigDict."""
