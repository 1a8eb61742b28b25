// Adapters of a mixed batch (SGMV), read in place from the page pool:
//
//     y[t, c + o] += s * sum_r (x[t] . A[r]) B[r, o]
//
// for every part (site) of the slot that row t uses. Rows of one slot form a segment, so that a page is
// read once per segment; rows without an adapter are in none. Two phases: h = s x A^T, split between the
// threads by pages, and y += h B, split by sites and their columns. Both read a few rank rows side by side,
// front to back, and fetch those of a page further on meanwhile. No sum depends on the number of threads or
// on what else is in the batch.
#include <vector>

#include "parallel.h"
#include "vec.h"

using namespace weft;

// One run of rank rows of one site in one slot. The Python side writes these (`PART` in binding.py).
struct Part {
    const float* a;  // [num_ranks, num_in]
    const float* b;  // [num_ranks, width]
    int64_t num_ranks;
    int64_t column;  // the site's first column of y
    int64_t width;
    float scale;
    int32_t padding;
};

// The parts of one slot: those of input i are parts[starts[i]] .. parts[starts[i + 1] - 1]. Sites that read
// the same rows (q, k and v; gate and up) share an input.
struct Slot {
    const Part* parts;
    const int64_t* starts;
};

// Rows rows[first] .. rows[first + num_rows - 1] use `slot`, at the input that many behind the call's.
struct Segment {
    int64_t slot;
    int64_t input;
    int64_t first;
    int64_t num_rows;
};

namespace {

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

// The parts of a segment at the call's input, and how many rank rows they have together.
struct Own {
    const Part *first, *last;
    int64_t num_ranks;

    Own(const Slot* slots, const Segment& segment, int64_t input) : num_ranks(0) {
        const Slot& slot = slots[segment.slot];
        first = slot.parts + slot.starts[input + segment.input];
        last = slot.parts + slot.starts[input + segment.input + 1];
        for (const Part* p = first; p < last; p++) num_ranks += p->num_ranks;
    }
};

// What rank rows of a segment cost: their bytes, and the products with each row.
inline int64_t cost(int64_t num_ranks, const Segment& segment) {
    return num_ranks * (2 + segment.num_rows);
}

inline int64_t num_vectors(const Part& part) { return (part.width + LANES - 1) / LANES; }

}  // namespace

extern "C" {

// x [T, num_in] and y [T, ...] with row strides; h: room for the rows of all segments times the rank rows
// that they have at this input.
void weft_lora(const Slot* slots, int64_t input, const Segment* segments, int64_t num_segments,
               const int64_t* rows, const float* x, int64_t x_stride, int64_t num_in, float* y,
               int64_t y_stride, float* h, int32_t threads) {
    int64_t total = 0, total_columns = 0;
    for (int64_t s = 0; s < num_segments; s++) {
        const Own own(slots, segments[s], input);
        total += cost(own.num_ranks, segments[s]);
        for (const Part* part = own.first; part < own.last; part++)
            total_columns += cost(part->num_ranks, segments[s]) * num_vectors(*part);
    }
    if (total == 0) return;
#pragma omp parallel num_threads(num_threads(total * num_in, threads))
    {
        const int64_t size = omp_get_num_threads(), thread = omp_get_thread_num();
        int64_t from, to, done = 0;
        share(total, thread, size, &from, &to);
        float* h_segment = h;
        for (int64_t s = 0; s < num_segments; s++) {
            const Segment& segment = segments[s];
            const Own own(slots, segment, input);
            int64_t rank = 0;
            for (const Part* part = own.first; part < own.last; part++) {
                for (int64_t r = 0; r < part->num_ranks; r += PAGE, rank += PAGE) {
                    const bool is_mine = from <= done && done < to;
                    done += cost(PAGE, segment);
                    if (!is_mine) continue;
                    for_tiles(segment.num_rows, [&](int64_t n, auto tile) {
                        constexpr int N = decltype(tile)::value;
                        const float* xs[N];
                        float* hs[N];
                        for (int i = 0; i < N; i++) {
                            xs[i] = x + rows[segment.first + n + i] * x_stride;
                            hs[i] = h_segment + (n + i) * own.num_ranks + rank;
                        }
                        shrink_page<N>(xs, part->a + r * num_in, num_in, part->scale, hs);
                    });
                }
            }
            h_segment += segment.num_rows * own.num_ranks;
        }
#pragma omp barrier
        h_segment = h, done = 0;
        share(total_columns, thread, size, &from, &to);
        for (int64_t s = 0; s < num_segments; s++) {
            const Segment& segment = segments[s];
            const Own own(slots, segment, input);
            int64_t rank = 0;
            for (const Part* part = own.first; part < own.last; rank += part->num_ranks, part++) {
                // a vector of columns is whose share it begins in
                const int64_t each = cost(part->num_ranks, segment), count = num_vectors(*part);
                const int64_t begin = std::clamp<int64_t>((from - done + each - 1) / each, 0, count);
                const int64_t end = std::clamp<int64_t>((to - done + each - 1) / each, 0, count);
                done += each * count;
                if (begin == end) continue;
                const int64_t last = std::min(end * LANES, part->width);
                for_tiles(segment.num_rows, [&](int64_t n, auto tile) {
                    constexpr int N = decltype(tile)::value;
                    const float* hs[N];
                    float* ys[N];
                    for (int i = 0; i < N; i++) {
                        hs[i] = h_segment + (n + i) * own.num_ranks + rank;
                        ys[i] = y + rows[segment.first + n + i] * y_stride + part->column;
                    }
                    expand<N>(hs, part->b, part->num_ranks, part->width, begin * LANES, last, ys);
                });
            }
            h_segment += segment.num_rows * own.num_ranks;
        }
    }
}

// Segments of (token, expert) pairs that share slot and expert, in that order, pairs in the order of their
// tokens. experts, positions [T, K]: each pair's expert, and its row; slot_of [T], -1 for none. Writes
// segments (one for each pair at most) and rows, and returns the number of segments.
int64_t weft_expert_segments(const int64_t* experts, const int64_t* positions, const int64_t* slot_of,
                             int64_t num_tokens, int64_t top_k, int64_t num_slots, int64_t num_experts,
                             Segment* segments, int64_t* rows) {
    std::vector<int64_t> ends(num_slots * num_experts + 1, 0);
    for (int64_t t = 0; t < num_tokens; t++)
        if (slot_of[t] >= 0)
            for (int64_t k = 0; k < top_k; k++) ends[slot_of[t] * num_experts + experts[t * top_k + k] + 1]++;
    int64_t num_segments = 0;
    for (int64_t u = 0; u < num_slots * num_experts; u++) {
        const int64_t count = ends[u + 1];
        if (count > 0) segments[num_segments++] = {u / num_experts, u % num_experts, ends[u], count};
        ends[u + 1] += ends[u];
    }
    // ends[u] is where unit u starts, and moves on to where it ends
    for (int64_t t = 0; t < num_tokens; t++)
        if (slot_of[t] >= 0)
            for (int64_t k = 0; k < top_k; k++)
                rows[ends[slot_of[t] * num_experts + experts[t * top_k + k]]++] = positions[t * top_k + k];
    return num_segments;
}

}  // extern "C"
