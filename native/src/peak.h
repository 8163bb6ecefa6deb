// What one core's arithmetic can do at most.

#pragma once

// 1e9 operations per second of CPU time: products and sums of 32-bit floats, or of integers of 16 or 8 bits summed in 32, with
// the widest vectors that our kernels use here. 0 where that is not known.
double asl_measure_peak(int n_bits);
