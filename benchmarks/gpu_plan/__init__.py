"""`make gpu`: half an hour of a GPU as a plan of steps, each a process with its own limit and its own JSON.

Here: the steps (`steps/`), how they run (`plan.py`, `step.py`), what they ask of a device (`device.py`), a stand-in
for it (`stand_in.py`), and the report that the JSONs make (`report.py`). What is timed and how: benchmarks/README.md.
"""
