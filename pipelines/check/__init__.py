"""Looking at new data before a long training: samples beside their targets, and a few persons overfitted."""
