"""Hand-written schedule templates, one folder per kind of target, one file per algorithm.

A template is a module with

    VERSION        int, raised whenever old decisions would mean something else
    COMPUTE_KNOBS  names of the knobs that the compute definition takes as arguments
    space(sch, device)             -> Space: knobs, valid and worthwhile combinations, costs
    schedule(sch, device, decisions)  applies the decisions to the schedule in place
    schedule_pack(sch)             optional: schedules, for the CPU, the packing of the weight

`device` is what templates may know of the machine, a CpuModel or a GpuModel.
Templates read sizes from the loops of named blocks; block names are their only contract with the
computes. They change how a result is computed, never the result.
"""
