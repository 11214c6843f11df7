"""Settings compared under noise: runs repeated with paired seeds, the paper's tables, a search's finalists."""
