"""Where data come from: data sets known by name, folders of pictures, texts; the one place to add a data set."""
