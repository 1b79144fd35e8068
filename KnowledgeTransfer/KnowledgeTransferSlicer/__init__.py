"""The Slicer side of KnowledgeTransfer: Qt and MRML. It never imports torch; the library runs in a child process."""
