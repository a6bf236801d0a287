"""What is at fault for an error, and what to do about it. Flows and a plain loop use it in the same way.

classify    whether the run or the part is at fault, or unsure; and whether a retry may help
suspect     a part that may be at fault, as an error that can be pickled
trial       the parts of a stage that are given up, and whether the machine may be at fault
supervisor  retry a part alone or in its own process, probe the machine, quarantine, stop
quarantine  record a part that is given up
"""
