"""Models as TensorFlow graphs: translated module by module from their settings and parameters.

:mod:`blueprint` writes down what a torch model is made of, as plain values and arrays. Everything else runs
in a process of its own, which has TensorFlow and never torch: :mod:`conversion` builds the graph with the
``translators`` and saves it, :mod:`running` runs what was saved. :mod:`process` is the way to that process.
"""
