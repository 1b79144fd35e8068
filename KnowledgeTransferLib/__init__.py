"""KnowledgeTransferLib: distil segmentation models that others trained into a small fast student."""

__version__ = "0.1.0"
