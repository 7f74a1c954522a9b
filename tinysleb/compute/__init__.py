"""Where to compute: device, precision, memory budget, processes.

May import everything from `errors` to `model`.
"""
