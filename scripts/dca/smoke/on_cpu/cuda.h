// The driver has no part in a run on the CPU.
