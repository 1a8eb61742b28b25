// The two products of an adapter for up to four rows at a time: h = s x A^T and y += h B. Both read a few
// rank rows side by side, front to back, and fetch those of a page further on meanwhile.
#pragma once

#include <cstdint>
#include <type_traits>

#include "vec.h"

namespace weft {

constexpr int64_t PAGE = 8;  // rank rows

// h[n][r] = scale * x[n] . a[r] for N rows and RANKS rank rows.
template <int N, int RANKS>
inline void shrink_tile(const float* const* x, const float* a, int64_t num_in, float scale,
                        float* const* h) {
    f32x16 acc[N][RANKS] = {};
    int64_t i = 0;
    for (; i + LANES <= num_in; i += LANES) {
        f32x16 xs[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) keep(xs[n] = load(x[n] + i));
#pragma GCC unroll 8
        for (int r = 0; r < RANKS; r++) {
            __builtin_prefetch(a + (r + PAGE) * num_in + i, 0, 2);
            f32x16 w = load(a + r * num_in + i);
            keep(w);
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) acc[n][r] += xs[n] * w;
        }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; n++)
#pragma GCC unroll 8
        for (int r = 0; r < RANKS; r++) {
            float dot = sum(acc[n][r]);
            for (int64_t left = i; left < num_in; left++) dot += x[n][left] * a[r * num_in + left];
            h[n][r] = scale * dot;
        }
}

template <int N>
inline void shrink_page(const float* const* x, const float* a, int64_t num_in, float scale, float* const* h) {
    // N x RANKS sums, N rows and a weight have to fit the registers
    constexpr int ROOM = (REGISTERS - N - 1) / N, RANKS = ROOM >= 4 ? 4 : ROOM >= 2 ? 2 : 1;
    for (int64_t r = 0; r < PAGE; r += RANKS) {
        float* targets[N];
        for (int n = 0; n < N; n++) targets[n] = h[n] + r;
        shrink_tile<N, RANKS>(x, a + r * num_in, num_in, scale, targets);
    }
}

// y[n][o] += sum_r h[n][r] b[r][o] for N rows, RANKS rank rows and the columns [first, last).
template <int N, int RANKS>
inline void expand_ranks(const float* const* h, const float* b, int64_t width, int64_t first, int64_t last,
                         float* const* y) {
    f32x16 factors[N][RANKS];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++)
#pragma GCC unroll 8
        for (int r = 0; r < RANKS; r++) keep(factors[n][r] = splat(h[n][r]));
    int64_t o = first;
    for (; o + LANES <= last; o += LANES) {
        f32x16 acc[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) acc[n] = load(y[n] + o);
#pragma GCC unroll 8
        for (int r = 0; r < RANKS; r++) {
            __builtin_prefetch(b + (r + PAGE) * width + o, 0, 2);
            f32x16 w = load(b + r * width + o);
            keep(w);
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) acc[n] += factors[n][r] * w;
        }
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) store(y[n] + o, acc[n]);
    }
    if (o == last) return;
    const int64_t left = last - o;
    for (int n = 0; n < N; n++) {
        f32x16 acc = load_some(y[n] + o, left);
        for (int r = 0; r < RANKS; r++) acc += factors[n][r] * load_some(b + r * width + o, left);
        store_some(y[n] + o, acc, left);
    }
}

template <int N>
inline void expand(const float* const* h, const float* b, int64_t num_ranks, int64_t width, int64_t first,
                   int64_t last, float* const* y) {
    constexpr int RANKS = REGISTERS >= 32 ? 4 : 1;
    for (int64_t r = 0; r < num_ranks; r += RANKS) {
        const float* factors[N];
        for (int n = 0; n < N; n++) factors[n] = h[n] + r;
        expand_ranks<N, RANKS>(factors, b + r * width, width, first, last, y);
    }
}

// Calls `run.template operator()<N>(first row)` for tiles of up to four rows.
template <typename F>
inline void for_tiles(int64_t num_rows, F&& run) {
    int64_t n = 0;
    for (; n + 4 <= num_rows; n += 4) run(n, std::integral_constant<int, 4>());
    if (num_rows - n == 3) run(n, std::integral_constant<int, 3>());
    if (num_rows - n == 2) run(n, std::integral_constant<int, 2>());
    if (num_rows - n == 1) run(n, std::integral_constant<int, 1>());
}

}  // namespace weft
