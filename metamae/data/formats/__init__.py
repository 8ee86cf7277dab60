"""File formats: one file each, none knows of a data set."""
