// A share of the work for each thread of torch's own OpenMP team.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace weft {

// Waking a team costs a few microseconds; less work than this many floats runs on the calling thread.
constexpr int64_t MIN_PARALLEL = 16384;

inline int num_threads(int64_t work, int32_t most) { return work < MIN_PARALLEL ? 1 : most; }

// Part `i` of `n` of the items 0 .. count - 1: [first, last).
inline void share(int64_t count, int64_t i, int64_t n, int64_t* first, int64_t* last) {
    *first = count * i / n;
    *last = count * (i + 1) / n;
}

}  // namespace weft
