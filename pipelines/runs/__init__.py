"""Sets of training runs, whatever they are for: run side by side, resumed, tried again, logged and measured."""
