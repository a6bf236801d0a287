"""Whose fault an error is, and what to do about it; without an orchestrator, so flows and a plain loop do the same.

classify    the run's fault, the part's, or unsure; and whether trying again may help
suspect     a part that is blamed, as an error that crosses processes
trial       the parts of a stage that are given up, and whether the machine is in doubt
supervisor  try alone, make apart, prove the machine, quarantine, stop
quarantine  a part that is given up, recorded
"""
