// Adapters of a mixed batch (SGMV), read in place from the page pool:
//
//     y[t, c + o] += s * sum_r (x[t] . A[r]) B[r, o]
//
// for every part (site) of the slot that row t uses, and then, where the slot has a row scale m or a bias b,
//
//     y[t, c + o] = m[o] * (y[t, c + o] - base[c + o]) + base[c + o] + b[o]
//
// Rows of one slot form a segment, so that a page is read once per segment; rows without an adapter are in
// none. Phases: h = s x A^T, split between the threads by pages; y += h B, split by sites and their columns
// (see lora_tiles.h); the row scales, split by rows, where any slot has some. No sum depends on the number of
// threads or on what else is in the batch.
#include <vector>

#include "linear.h"
#include "lora_tiles.h"
#include "operators.h"
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

// The row scale and the bias of one site in one slot, each null where there is none (`VECTORS`).
struct Vectors {
    const float* row_scale;  // [width]
    const float* bias;       // [width]
    int64_t column;
    int64_t width;
};

// The parts of one slot: those of input i are parts[starts[i]] .. parts[starts[i + 1] - 1]. Sites that read
// the same rows (q, k and v; gate and up) share an input. Its vectors likewise; both null where it has none.
struct Slot {
    const Part* parts;
    const int64_t* starts;
    const Vectors* vectors;
    const int64_t* vector_starts;
};

// Rows rows[first] .. rows[first + num_rows - 1] use `slot`, at the input that many behind the call's.
struct Segment {
    int64_t slot;
    int64_t input;
    int64_t first;
    int64_t num_rows;
};

namespace {

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

// The parts of one site, which follow each other and add to the same columns.
struct SiteParts {
    const Part *first, *last;
    int64_t num_ranks, num_vectors;

    SiteParts(const Part* part, const Part* end) : first(part), last(part), num_ranks(0) {
        for (; last < end && last->column == first->column; last++) num_ranks += last->num_ranks;
        num_vectors = (first->width + LANES - 1) / LANES;
    }
};

// The vectors of a segment at the call's input.
struct OwnVectors {
    const Vectors *first = nullptr, *last = nullptr;

    OwnVectors(const Slot* slots, const Segment& segment, int64_t input) {
        const Slot& slot = slots[segment.slot];
        if (!slot.vectors) return;
        first = slot.vectors + slot.vector_starts[input + segment.input];
        last = slot.vectors + slot.vector_starts[input + segment.input + 1];
    }
};

// m (y - base) + base + bias for the columns from o on that `read` takes; `base` may be null.
template <typename Read>
inline f32x16 scaled(const Vectors& own, const float* base, const float* y, int64_t o, Read&& read) {
    f32x16 value = read(y + o);
    if (own.row_scale) {
        const f32x16 m = read(own.row_scale + o);
        value *= m;
        if (base) value += (1.0f - m) * read(base + o);
    }
    if (own.bias) value += read(own.bias + o);
    return value;
}

inline void scale_row(const Vectors& own, const float* base, float* y) {
    int64_t o = 0;
    for (; o + LANES <= own.width; o += LANES)
        store(y + o, scaled(own, base, y, o, [](const float* p) { return load(p); }));
    const int64_t left = own.width - o;
    if (left > 0)
        store_some(y + o, scaled(own, base, y, o, [=](const float* p) { return load_some(p, left); }), left);
}

// One call's adapters, to be computed by a team of threads: `shrink` by all, then `expand`, and where a slot
// of the batch has vectors then `scale`.
struct Lora {
    const Slot* slots;
    int64_t input;
    const Segment* segments;
    int64_t num_segments;
    const int64_t* rows;
    const float* x;
    int64_t x_stride, num_in;
    float* y;
    int64_t y_stride;
    float* h;
    const float* bias;                                         // the base's, by columns of y, or null
    int64_t total = 0, total_columns = 0, total_vectors = 0;  // what the phases cost

    Lora(const Slot* slots, int64_t input, const Segment* segments, int64_t num_segments, const int64_t* rows,
         const float* x, int64_t x_stride, int64_t num_in, float* y, int64_t y_stride, float* h,
         const float* bias, bool has_vectors)
        : slots(slots), input(input), segments(segments), num_segments(num_segments), rows(rows), x(x),
          x_stride(x_stride), num_in(num_in), y(y), y_stride(y_stride), h(h), bias(bias) {
        for (int64_t s = 0; s < num_segments; s++) {
            const Own own(slots, segments[s], input);
            total += cost(own.num_ranks, segments[s]);
            for (SiteParts site(own.first, own.last); site.first < own.last; site = {site.last, own.last})
                total_columns += cost(site.num_ranks, segments[s]) * site.num_vectors;
        }
        for (int64_t s = 0; has_vectors && s < num_segments; s++) {
            const OwnVectors own(slots, segments[s], input);
            total_vectors += segments[s].num_rows * (own.last - own.first);
        }
    }

    void shrink(int64_t thread, int64_t size) const {
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
    }

    void expand(int64_t thread, int64_t size) const {
        int64_t from, to, done = 0;
        share(total_columns, thread, size, &from, &to);
        const float* h_segment = h;
        for (int64_t s = 0; s < num_segments; s++) {
            const Segment& segment = segments[s];
            const Own own(slots, segment, input);
            int64_t rank = 0;
            for (SiteParts site(own.first, own.last); site.first < own.last; site = {site.last, own.last}) {
                // a vector of columns is whose share it begins in
                const int64_t each = cost(site.num_ranks, segment), count = site.num_vectors;
                const int64_t begin = std::clamp<int64_t>((from - done + each - 1) / each, 0, count);
                const int64_t end = std::clamp<int64_t>((to - done + each - 1) / each, 0, count);
                done += each * count;
                const int64_t first = begin * LANES, last = std::min(end * LANES, site.first->width);
                for (const Part* part = site.first; part < site.last; rank += part->num_ranks, part++) {
                    if (begin == end) continue;
                    for_tiles(segment.num_rows, [&](int64_t n, auto tile) {
                        constexpr int N = decltype(tile)::value;
                        const float* hs[N];
                        float* ys[N];
                        for (int i = 0; i < N; i++) {
                            hs[i] = h_segment + (n + i) * own.num_ranks + rank;
                            ys[i] = y + rows[segment.first + n + i] * y_stride + part->column;
                        }
                        weft::expand<N>(hs, part->b, part->num_ranks, part->width, first, last, ys);
                    });
                }
            }
            h_segment += segment.num_rows * own.num_ranks;
        }
    }

    void scale(int64_t thread, int64_t size) const {
        int64_t from, to, done = 0;
        share(total_vectors, thread, size, &from, &to);
        for (int64_t s = 0; s < num_segments; s++) {
            const Segment& segment = segments[s];
            const OwnVectors own(slots, segment, input);
            for (const Vectors* v = own.first; v < own.last; done += segment.num_rows, v++) {
                const int64_t first = std::clamp<int64_t>(from - done, 0, segment.num_rows);
                const int64_t last = std::clamp<int64_t>(to - done, 0, segment.num_rows);
                for (int64_t n = first; n < last; n++)
                    scale_row(*v, bias ? bias + v->column : nullptr,
                              y + rows[segment.first + n] * y_stride + v->column);
            }
        }
    }
};

}  // namespace

extern "C" {

// x [T, num_in] and y [T, ...] with row strides; h: room for the rows of all segments times the rank rows
// that they have at this input; bias: what y has of the base's, or null; has_vectors: false where no slot of
// the segments has any.
void weft_lora(const Slot* slots, int64_t input, const Segment* segments, int64_t num_segments,
               const int64_t* rows, const float* x, int64_t x_stride, int64_t num_in, float* y,
               int64_t y_stride, float* h, const float* bias, int32_t has_vectors, int32_t threads) {
    const Lora lora(slots, input, segments, num_segments, rows, x, x_stride, num_in, y, y_stride, h, bias,
                    has_vectors);
    if (lora.total == 0 && lora.total_vectors == 0) return;
#pragma omp parallel num_threads(num_threads(lora.total * num_in, threads))
    {
        const int64_t size = omp_get_num_threads(), thread = omp_get_thread_num();
        lora.shrink(thread, size);
#pragma omp barrier
        lora.expand(thread, size);
        if (lora.total_vectors > 0) {
#pragma omp barrier
            lora.scale(thread, size);
        }
    }
}

// y = x W + bias, then the adapters, as `weft_linear` and `weft_lora`; the same sums. The first is short of
// arithmetic, the other of memory bandwidth: while one half of the threads computes the base's columns the
// other reads A, and then the other way round.
void weft_adapted_linear(const float* x, int64_t x_stride, const float* packed, const float* bias,
                         int64_t num_rows, int64_t num_in, int64_t num_out, float* y, const Slot* slots,
                         int64_t input, const Segment* segments, int64_t num_segments, const int64_t* rows,
                         float* h, int32_t has_vectors, int32_t threads) {
    const Linear linear = {x, x_stride, packed, bias, num_rows, num_in, num_out, y};
    const Lora lora(slots, input, segments, num_segments, rows, x, x_stride, num_in, y, num_out, h, bias,
                    has_vectors);
#pragma omp parallel num_threads(num_threads(num_in * num_out, threads))
    {
        const int64_t size = omp_get_num_threads(), thread = omp_get_thread_num();
        const bool is_first = thread < size / 2;
        if (is_first) lora.shrink(thread, size);
        linear.run(thread, size);
        if (!is_first) lora.shrink(thread, size);
#pragma omp barrier
        lora.expand(thread, size);
        if (lora.total_vectors > 0) {
#pragma omp barrier
            lora.scale(thread, size);
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
