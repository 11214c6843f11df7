"""Files from outside, read at the border: one reader for annotations, one for detections, one for results."""
