"""What surrounds medad on a machine: proxies, the environment of processes that it starts.

One decision: what libraries and child processes read from the environment is settled once, in the environment itself.
So it holds for every library and for every process, also for those whose command line or client is not ours.
"""
