// y = x W + bias, W packed in panels of 32 columns: each is read once, front to back, by the thread that
// owns it, while the next is fetched and a few rows' sums stay in registers. Made for the few rows of a
// decoding batch, where a GEMM is short of memory bandwidth and arithmetic alike.
#include "linear.h"

#include <algorithm>

#include "operators.h"
#include "parallel.h"
#include "vec.h"

using namespace weft;

namespace {

constexpr int64_t PANEL = 2 * LANES;               // columns
constexpr int64_t ROWS = REGISTERS >= 32 ? 8 : 3;  // of a tile, whose sums stay in registers
constexpr int64_t DEPTH = 512;  // rows of a panel that stay in the L2 cache for all tiles: 64 KiB

// M rows by one part of a panel; y += where it is not the first. Meanwhile the next part is fetched into the
// L2 cache, from `next` on, `step` bytes for each row of this one.
template <int M>
void multiply(const float* x, int64_t x_stride, const float* panel, int64_t depth, bool is_first,
              const float* bias, int64_t width, float* y, int64_t y_stride, const char* next, int64_t step) {
    f32x16 acc[M][2];
    for (int m = 0; m < M; m++) acc[m][0] = acc[m][1] = f32x16{};
    const float* rows[M];
    for (int m = 0; m < M; m++) rows[m] = x + m * x_stride;
    for (int64_t k = 0; k < depth; k++, panel += PANEL) {
        f32x16 w0 = load(panel), w1 = load(panel + LANES);
        keep(w0);
        keep(w1);
        __builtin_prefetch(next, 0, 2);
        __builtin_prefetch(next + step / 2, 0, 2);
        next += step;
        for (int m = 0; m < M; m++) {
            const float value = rows[m][k];
            acc[m][0] += value * w0;
            acc[m][1] += value * w1;
        }
    }
    if (width == PANEL) {
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            float* out = y + m * y_stride;
            if (!is_first || bias) {
                const float* before = is_first ? bias : out;
                acc[m][0] += load(before);
                acc[m][1] += load(before + LANES);
            }
            store(out, acc[m][0]);
            store(out + LANES, acc[m][1]);
        }
        return;
    }
    for (int m = 0; m < M; m++)  // the last panel
        for (int64_t o = 0; o < width; o++) {
            float* out = y + m * y_stride + o;
            *out = acc[m][o / LANES][o % LANES] + (is_first ? (bias ? bias[o] : 0) : *out);
        }
}

typedef void (*Multiply)(const float*, int64_t, const float*, int64_t, bool, const float*, int64_t, float*,
                         int64_t, const char*, int64_t);
constexpr Multiply FORMS[] = {multiply<1>, multiply<2>, multiply<3>, multiply<4>,
                              multiply<5>, multiply<6>, multiply<7>, multiply<8>};

}  // namespace

void Linear::run(int64_t thread, int64_t size) const {
    const int64_t num_panels = (num_out + PANEL - 1) / PANEL, num_tiles = (num_rows + ROWS - 1) / ROWS;
    // the first tiles fetch the next part between them
    const int64_t fetching = std::clamp<int64_t>(num_tiles, 1, 4), step = PANEL * sizeof(float) / fetching;
    int64_t begin, end;
    share(num_panels, thread, size, &begin, &end);
    for (int64_t p = begin; p < end; p++) {
        const int64_t column = p * PANEL, width = std::min(PANEL, num_out - column);
        for (int64_t k = 0; k < num_in; k += DEPTH) {
            const int64_t depth = std::min(DEPTH, num_in - k);
            const float* panel = packed + (p * num_in + k) * PANEL;
            const char* next = reinterpret_cast<const char*>(panel + depth * PANEL);
            for (int64_t tile = 0; tile < num_tiles; tile++) {
                const int64_t m = tile * ROWS, rows = std::min(ROWS, num_rows - m);
                const bool fetches = tile < fetching;
                FORMS[rows - 1](x + m * x_stride + k, x_stride, panel, depth, k == 0,
                                bias ? bias + column : nullptr, width, y + m * num_out + column, num_out,
                                fetches ? next + tile * depth * step : next, fetches ? step : 0);
            }
        }
    }
}

extern "C" {

// w [num_in, num_out] into `packed` [ceil(num_out / 32), num_in, 32], columns past the last zero.
void weft_pack_linear(const float* w, int64_t num_in, int64_t num_out, float* packed) {
    for (int64_t first = 0; first < num_out; first += PANEL) {
        const int64_t width = std::min(PANEL, num_out - first);
        for (int64_t k = 0; k < num_in; k++, packed += PANEL) {
            std::memcpy(packed, w + k * num_out + first, width * sizeof(float));
            std::memset(packed + width, 0, (PANEL - width) * sizeof(float));
        }
    }
}

void weft_linear(const float* x, int64_t x_stride, const float* packed, const float* bias,
                 int64_t num_rows, int64_t num_in, int64_t num_out, float* y, int32_t threads) {
    const Linear linear = {x, x_stride, packed, bias, num_rows, num_in, num_out, y};
#pragma omp parallel num_threads(num_threads(num_in * num_out, threads))
    linear.run(omp_get_thread_num(), omp_get_num_threads());
}

}  // extern "C"
