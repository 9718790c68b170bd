"""zooport: export a zoo of detectron2 checkpoints, and know which exports can be trusted.

``zooport.export_core`` turns one checkpoint into one verified artifact and is usable as a plain library;
``zooport.jobs`` runs many of them on Ray and remembers the results; ``zooport.cli`` is the command line.
"""

__version__ = "0.1.0"
