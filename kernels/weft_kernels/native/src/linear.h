// A linear of the base, to be computed by a team of threads.
#pragma once

#include <cstdint>

// y = x W + bias: x [num_rows, num_in] with a row stride, y [num_rows, num_out] contiguous, bias [num_out] or
// null, W packed by `weft_pack_linear`.
struct Linear {
    const float* x;
    int64_t x_stride;
    const float* packed;
    const float* bias;
    int64_t num_rows, num_in, num_out;
    float* y;

    // The share of one of `size` threads; none waits for another.
    void run(int64_t thread, int64_t size) const;
};
