// Root-mean-square norm and SwiGLU's gate, each in one pass over its rows.
#include <cmath>

#include "operators.h"
#include "parallel.h"
#include "vec.h"

using namespace weft;

namespace {

inline float square_sum(const float* x, int64_t width) {
    f32x16 acc = {};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        const f32x16 v = load(x + i);
        acc += v * v;
    }
    if (i < width) {
        const f32x16 v = load_some(x + i, width - i);
        acc += v * v;
    }
    return sum(acc);
}

inline void add_to(float* x, const float* delta, int64_t width) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) store(x + i, load(x + i) + load(delta + i));
    for (; i < width; i++) x[i] += delta[i];
}

inline void scale_into(float* y, const float* x, const float* weight, float by, int64_t width) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) store(y + i, load(x + i) * by * load(weight + i));
    for (; i < width; i++) y[i] = x[i] * by * weight[i];
}

}  // namespace

extern "C" {

// x += delta (where given); y = x / sqrt(mean(x^2) + eps) * weight. Rows of `width`, all contiguous.
void weft_add_rms_norm(float* x, const float* delta, const float* weight, float* y, int64_t num_rows,
                       int64_t width, float eps, int32_t threads) {
    const int n = num_threads(num_rows * width, threads);
#pragma omp parallel for num_threads(n) schedule(static)
    for (int64_t t = 0; t < num_rows; t++) {
        float* row = x + t * width;
        if (delta) add_to(row, delta + t * width, width);
        const float by = 1.0f / std::sqrt(square_sum(row, width) / width + eps);
        scale_into(y + t * width, row, weight, by, width);
    }
}

// y = silu(g) * u with [g | u] = gate_up; rows of 2 * width to rows of width.
void weft_silu_mul(const float* gate_up, float* y, int64_t num_rows, int64_t width, int32_t threads) {
    const int n = num_threads(num_rows * width, threads);
#pragma omp parallel for num_threads(n) schedule(static)
    for (int64_t t = 0; t < num_rows; t++) {
        const float *g = gate_up + t * 2 * width, *u = g + width;
        float* out = y + t * width;
        for (int64_t i = 0; i < width; i += LANES) {
            const int64_t left = width - i;
            if (left >= LANES) {
                const f32x16 gate = load(g + i);
                store(out + i, gate / (1.0f + exp(-gate)) * load(u + i));
            } else {
                const f32x16 gate = load_some(g + i, left);
                store_some(out + i, gate / (1.0f + exp(-gate)) * load_some(u + i, left), left);
            }
        }
    }
}

}  // extern "C"
