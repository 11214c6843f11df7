"""Serving: networks behind HTTP on Ray Serve, and a page to try them in a browser."""
