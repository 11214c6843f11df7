"""Search spaces as small YAML files, the reader that checks them, and the paper's tables as studies."""
