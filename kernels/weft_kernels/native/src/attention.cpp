// Attention of decoding requests over KV blocks where they lie, and what comes before it: norms and
// rotation of the heads of q and k, keys and values into their blocks.
#include <algorithm>
#include <cmath>

#include "parallel.h"
#include "vec.h"

using namespace weft;

namespace {

// One head: y = norm(x) * weight where there is a weight, rotated by [cos | sin] of its position.
inline void norm_rotate(const float* x, const float* weight, float eps, const float* table, int64_t dim,
                        float* y) {
    float scratch[1024];
    const int64_t half = dim / 2;
    if (weight) {
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < dim; i++) squares += x[i] * x[i];
        const float by = 1.0f / std::sqrt(squares / dim + eps);
#pragma omp simd
        for (int64_t i = 0; i < dim; i++) scratch[i] = x[i] * by * weight[i];
        x = scratch;
    }
    const float *cos = table, *sin = table + half;
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        const float x1 = x[i], x2 = x[half + i];
        y[i] = x1 * cos[i] - x2 * sin[i];
        y[half + i] = x2 * cos[i] + x1 * sin[i];
    }
}

inline f32x16 load_part(const float* p, int64_t i, int64_t dim) {
    const int64_t left = dim - i * LANES;
    return left >= LANES ? load(p + i * LANES) : load_some(p + i * LANES, left);
}

constexpr int MAX_VECTORS = 64;  // of a head: 1024 floats
constexpr int HEADS = 4;         // query heads that share the loads of a KV head

// N query heads of one KV head of one request, in one pass over its tokens with a running maximum (Milakov
// & Gimelshein 2018). V: vectors of a head, all whole; 0 = any dim.
template <int N, int V>
void attend(const float* q, const float* k_cache, const float* v_cache, const int64_t* table, int64_t first,
            int64_t length, int64_t block_size, int64_t token_stride, int64_t dim, float scale, float* o) {
    const int64_t vectors = V ? V : (dim + LANES - 1) / LANES;
    auto part = [&](const float* p, int64_t i) { return V ? load(p + i * LANES) : load_part(p, i, dim); };
    f32x16 query[N][V ? V : MAX_VECTORS], acc[N][V ? V : MAX_VECTORS];
    float most[N], total[N];
    for (int n = 0; n < N; n++) {
        most[n] = -__builtin_inff(), total[n] = 0;
        for (int64_t i = 0; i < vectors; i++) query[n][i] = part(q + n * dim, i) * scale, acc[n][i] = f32x16{};
    }
    for (int64_t j = first; j < length;) {
        const int64_t in_block = j % block_size;
        const int64_t num = std::min({LANES, block_size - in_block, length - j});
        const int64_t at = (table[j / block_size] * block_size + in_block) * token_stride;
        const float *k = k_cache + at, *v = v_cache + at;
        for (int64_t t = 0; t < num; t++)  // while the scores are worked out
            for (int64_t i = 0; i < vectors; i++) __builtin_prefetch(v + t * token_stride + i * LANES);
        f32x16 scores[N];
        for (int n = 0; n < N; n++) scores[n] = splat(-__builtin_inff());
        for (int64_t t = 0; t < num; t++) {
            f32x16 dots[N] = {};
            for (int64_t i = 0; i < vectors; i++) {
                const f32x16 key = part(k + t * token_stride, i);
                for (int n = 0; n < N; n++) dots[n] += query[n][i] * key;
            }
            for (int n = 0; n < N; n++) scores[n][t] = sum(dots[n]);
        }
        j += num;
        if (j < length) {
            const int64_t next = (table[j / block_size] * block_size + j % block_size) * token_stride;
            for (int64_t t = 0; t < std::min(block_size, length - j); t++)
                for (int64_t i = 0; i < vectors; i++)
                    __builtin_prefetch(k_cache + next + t * token_stride + i * LANES);
        }
        for (int n = 0; n < N; n++) {
            float peak = most[n];
            for (int64_t t = 0; t < num; t++) peak = scores[n][t] > peak ? scores[n][t] : peak;
            const float correction = exp(splat(most[n] - peak))[0];
            scores[n] = exp(scores[n] - peak);
            total[n] = total[n] * correction + sum(scores[n]);
            most[n] = peak;
            for (int64_t i = 0; i < vectors; i++) acc[n][i] *= correction;
        }
        for (int64_t t = 0; t < num; t++)
            for (int64_t i = 0; i < vectors; i++) {
                const f32x16 value = part(v + t * token_stride, i);
                for (int n = 0; n < N; n++) acc[n][i] += scores[n][t] * value;
            }
    }
    for (int n = 0; n < N; n++) {
        const float by = 1.0f / total[n];
        for (int64_t i = 0; i < vectors; i++) {
            const int64_t left = V ? LANES : std::min(LANES, dim - i * LANES);
            store_some(o + n * dim + i * LANES, acc[n][i] * by, left);
        }
    }
}

typedef void (*Attend)(const float*, const float*, const float*, const int64_t*, int64_t, int64_t, int64_t,
                       int64_t, int64_t, float, float*);

template <int V>
Attend attend_heads(int64_t num) {
    static const Attend forms[HEADS] = {attend<1, V>, attend<2, V>, attend<3, V>, attend<4, V>};
    return forms[num - 1];
}

inline Attend choose(int64_t num, int64_t dim) {
    if (dim == 64) return attend_heads<4>(num);
    if (dim == 128) return attend_heads<8>(num);
    return attend_heads<0>(num);
}

}  // namespace

extern "C" {

// [q | k | v] of each row: q and k normalised per head (where norms are given) and rotated, q into
// q_out [T, num_heads, dim], k and v into their slots of the caches [slots, num_kv_heads, dim].
// norms [num_heads + num_kv_heads, dim] or null; rotary [T, 2, dim / 2]; dim <= 1024.
void weft_rotate_and_write(const float* qkv, const float* norms, float eps, const float* rotary,
                           const int64_t* kv_slots, int64_t num_rows, int64_t num_heads,
                           int64_t num_kv_heads, int64_t dim, float* q_out, float* k_cache,
                           float* v_cache, int32_t threads) {
    const int64_t width = (num_heads + 2 * num_kv_heads) * dim, kv_width = num_kv_heads * dim;
    const int n = num_threads(num_rows * width, threads);
#pragma omp parallel for num_threads(n) schedule(static)
    for (int64_t t = 0; t < num_rows; t++) {
        const float *row = qkv + t * width, *table = rotary + t * dim;
        float* k_out = k_cache + kv_slots[t] * kv_width;
        for (int64_t h = 0; h < num_heads + num_kv_heads; h++) {
            const float* norm = norms ? norms + h * dim : nullptr;
            float* out = h < num_heads ? q_out + (t * num_heads + h) * dim : k_out + (h - num_heads) * dim;
            norm_rotate(row + h * dim, norm, eps, table, dim, out);
        }
        std::memcpy(v_cache + kv_slots[t] * kv_width, row + (num_heads + num_kv_heads) * dim,
                    kv_width * sizeof(float));
    }
}

// One query per request: o[b, h] = softmax(scale q[b, h] . k) v over the last `window` (0: all) of the
// lengths[b] tokens in its blocks. q, o [rows, num_heads, dim], request b's at rows[b]; caches
// [blocks, block_size, num_kv_heads, dim]; tables [B, table_width].
void weft_paged_decode(const float* q, const float* k_cache, const float* v_cache, const int64_t* rows,
                       const int64_t* tables, const int64_t* lengths, int64_t num_requests,
                       int64_t table_width, int64_t block_size, int64_t num_heads,
                       int64_t num_kv_heads, int64_t dim, int64_t window, float scale, float* o,
                       int32_t threads) {
    const int64_t groups = num_heads / num_kv_heads, token_stride = num_kv_heads * dim;
    int64_t total = 0;
    for (int64_t b = 0; b < num_requests; b++) total += lengths[b];
    // a request's KV heads lie side by side in each token, so one thread takes them all where there is
    // enough else to do
    const int64_t split = num_requests >= 4 * threads ? 1 : num_kv_heads, each = num_kv_heads / split;
#pragma omp parallel for num_threads(num_threads(total * token_stride, threads)) schedule(dynamic, 1)
    for (int64_t task = 0; task < num_requests * split; task++) {
        const int64_t b = task / split, length = lengths[b];
        const int64_t first = window > 0 && length > window ? length - window : 0;
        for (int64_t kv = task % split * each; kv < (task % split + 1) * each; kv++)
            for (int64_t g = 0; g < groups; g += HEADS) {
                const int64_t num = std::min<int64_t>(HEADS, groups - g);
                const int64_t at = (rows[b] * num_heads + kv * groups + g) * dim;
                choose(num, dim)(q + at, k_cache + kv * dim, v_cache + kv * dim, tables + b * table_width,
                                 first, length, block_size, token_stride, dim, scale, o + at);
            }
    }
}

}  // extern "C"
