"""Every picture of a pose: the same colours, marks and legend, whoever draws it."""
