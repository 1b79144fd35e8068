"""One verb per file: annotate, distil, segment, evaluate, demo."""
