"""One verb per file: annotate, distil, segment, evaluate, describe, compare, phantom, serve, demo."""
