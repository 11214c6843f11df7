"""The stages in the order the data flows, and the command line."""
