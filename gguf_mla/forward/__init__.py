"""A model computed layer by layer, read without the converter's tables.

`walk` runs any model; an architecture is one file here that defines ARCHITECTURE (`architecture`): today `mla`. What
they share is in `layers`, whose `Pass` makes all products with stored matrices and can be observed.
"""
