"""What the maps and masks of a case say in numbers: lesions, their volumes, diameters, places and sides.

One decision: facts are computed, and never by the language model; what it says is held against them.
"""
