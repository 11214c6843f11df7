"""Published weights of pose networks as checkpoints of this program."""
